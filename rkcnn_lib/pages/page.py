"""Run folders as pages: what was recorded and rendered, their order, and the templates that they are written by."""

import math
import re
from collections.abc import Container
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rkcnn_lib import figures, pages
from rkcnn_lib.pages import answers, glossary
from rkcnn_lib.pages.render import Rendered, figure_block, render_notebook
from rkcnn_lib.runs import gates
from rkcnn_lib.runs.gates import Recorded
from rkcnn_lib.runs.params import NOTEBOOKS
from rkcnn_lib.strings import cut, duration

NAMES = {  # of each notebook: its title, and its name where there is little room
    "01_toy_superposition": ("Toy models whose features are known", "Toy models"),
    "02_probe_validation": ("Does the score choose?", "Probe"),
    "03_gpt2_cache": ("The activations", "Activations"),
    "04_sae_compare": ("Sparse autoencoders, arm by arm", "SAE arms"),
    "05_multilayer": ("Across layers", "Layers"),
    "06_causal_checks": ("Causal checks", "Causal checks"),
}
SHORT_TITLES = {notebook: short for notebook, (_, short) in NAMES.items()}
COPIED = ("run.json", "metrics.parquet")


@dataclass
class Page:
    """One run and the page made of it."""

    record: dict[str, Any]
    file: str
    rendered: Rendered
    files: list[str]  # copied beside the page, as relative links

    def __post_init__(self) -> None:
        self.notebook: str = self.record["notebook"]
        self.number = self.notebook[:2]  # in the argument, "01" to "06"
        heading = re.sub(r"^\d\d · ", "", self.rendered.title or "")
        name = NAMES.get(self.notebook, (self.notebook.replace("_", " "),))[0]
        self.title = self.record.get("title") or heading or name
        self.profile, self.variant = answers.profile_of(self.record)
        self.gate = gates.judged(self.record)
        self.place = answers.place(self.record)
        self.answers = answers.answers(self.record)
        self.grid = answers.grid_of(self.record)
        self.verdicts: list[dict[str, Any]] = self.record.get("verdicts") or []  # the contrasts behind the answers
        # what a run of small sizes may not be read as; why what the run says cannot be kept
        self.caution = answers.PROVISIONAL.get(self.profile)
        self.withdrawn = f"Withdrawn: {self.record['withdrawn']}" if self.record.get("withdrawn") else None
        status = self.record.get("status") or "unknown"
        partial = f"This run did not finish (status: {status}): what follows is partial."
        told = (self.caution, self.withdrawn, status != "finished" and partial)
        self.banners = list(filter(None, told))  # what a reader must know before reading on


def read_record(folder: Path) -> Recorded:
    """Return a run folder with its record; ValueError if it holds no readable record of a notebook."""
    record = gates.record_of(folder)
    if record is None:
        raise ValueError(f"{folder} holds no run.json, so it is no run folder")
    if not record.get("notebook"):
        raise ValueError(f"{folder / 'run.json'} names no notebook")
    return folder, record


def position(item: Recorded) -> tuple[Any, ...]:
    """Order of pages: the notebooks' order, runs without a variant first, the latest first."""
    record = item[1]
    name, (_, variant) = str(record["notebook"]), answers.profile_of(record)
    place = [*NOTEBOOKS, name].index(name)
    age = [-ord(c) for c in str(record.get("started") or "")]
    return place, name, variant is not None, str(variant or ""), age


def _file_name(record: dict[str, Any], taken: Container[str]) -> str:
    """A name that every file system takes: of notebook and variant what 60 bytes hold, letters and digits."""
    named = record["notebook"], answers.profile_of(record)[1]
    parts = [part.encode()[:60].decode(errors="ignore") for part in named if part]
    stem = "--".join("".join(c if c.isalnum() or c in "-_" else "-" for c in part) for part in parts)
    name, n = f"{stem}.html", 2
    while name in taken:
        name, n = f"{stem}--run{n}.html", n + 1
    return name


def load(folder: Path, record: dict[str, Any], taken: Container[str]) -> Page:
    """Render one run; ``taken`` holds the file names already given.

    ValueError if its notebook, or a file that is to be copied beside the page, cannot be read.
    """
    file = _file_name(record, taken)
    notebook = gates.own_file(folder, "notebook.ipynb")
    missing = Rendered(flags=["the run has no executed notebook, so there is no prose and no figure"])
    files = [f"runs/{file.removesuffix('.html')}/{name}" for name in COPIED if gates.own_file(folder, name)]
    rendered = _rendered(notebook, notebook.stat().st_mtime_ns) if notebook else missing
    return Page(record, file, rendered, files)


@lru_cache(maxsize=16)  # a report writes its pages anew after every notebook
def _rendered(notebook: Path, changed: int) -> Rendered:
    return render_notebook(notebook)


def environment() -> jinja2.Environment:
    """Return the templates of all pages, with the filters and the glossary that they use."""
    templates = pages.templates()
    templates.globals["glossary"] = {term.name: term for term in glossary.terms()}
    templates.filters |= {
        "signed": partial(_number, form="+.3g"),
        "number": partial(_number, form=".4g"),
        "short_number": partial(_number, form=".3g"),
        "duration": duration,
        "moment": lambda text: str(text or "unknown")[:16].replace("T", " "),
        "brief": brief,
        "word": answers.word,
        "figure": figure_block,
        "label": lambda name: Markup(figures.style.label(name)),  # escaped there
        "css": lambda text: str(text or "none").lower().replace(" ", "-"),
    }
    return templates


def _number(value: Any, form: str) -> str:
    if isinstance(value, bool) or value is None:
        return "n/a" if value is None else ("yes" if value else "no")
    if isinstance(value, int | float):
        return format(value, form).replace("-", "−") if math.isfinite(value) else "n/a"
    return cut(str(value), 24)


def brief(value: Any, items: int = 12) -> str:
    """A value of a record as text: long lists and mappings cut, and saying so."""
    if isinstance(value, dict | list | tuple):
        entries, between = (value.items(), "; ") if isinstance(value, dict) else (value, ", ")
        texts = [f"{e[0]}: {brief(e[1], 6)}" if isinstance(value, dict) else brief(e, 6) for e in list(entries)[:items]]
        return between.join([*texts, *([f"… ({len(value)} entries)"] if len(value) > items else [])])
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None else str(value)
