"""Run folders as pages: what was recorded, what was rendered, and the order in which readers meet them."""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rkcnn_lib.pages import answers
from rkcnn_lib.pages.render import Rendered, render_notebook
from rkcnn_lib.runs import gates
from rkcnn_lib.runs.params import NOTEBOOKS

TITLES = {
    "01_toy_superposition": "Toy models whose features are known",
    "02_probe_validation": "Does the score choose?",
    "03_gpt2_cache": "The activations",
    "04_sae_compare": "Sparse autoencoders, arm by arm",
    "05_multilayer": "Across layers",
    "06_causal_checks": "Causal checks",
}
SHORT_TITLES = {
    "01_toy_superposition": "Toy models",
    "02_probe_validation": "Probe",
    "03_gpt2_cache": "Activations",
    "04_sae_compare": "SAE arms",
    "05_multilayer": "Layers",
    "06_causal_checks": "Causal checks",
}
COPIED = ("run.json", "metrics.parquet")


@dataclass
class Page:
    """One run and the page made of it."""

    notebook: str
    variant: str | None
    file: str
    record: dict[str, Any]
    rendered: Rendered
    files: list[str]  # copied beside the page, as relative links

    @property
    def number(self) -> str:
        """The notebook's number in the argument, "01" to "06"."""
        return self.notebook[:2]

    @property
    def title(self) -> str:
        """The run's own title, else the notebook's first heading (its number aside), else its name."""
        heading = re.sub(r"^\d\d · ", "", self.rendered.title or "")
        return self.record.get("title") or heading or TITLES.get(self.notebook, self.notebook.replace("_", " "))

    @property
    def gate(self) -> str:
        """PASS, FAIL, or NOT RUN where the run has judged no gate."""
        return gates.judged(self.record)

    @property
    def profile(self) -> str:
        """The profile without its variant."""
        return answers.profile(self.record)

    @property
    def caution(self) -> str | None:
        """What a run of this profile may not be read as, where it is one of small sizes."""
        return answers.PROVISIONAL.get(self.profile)

    @property
    def withdrawn(self) -> str | None:
        """Why what the run says cannot be kept, where its record was given such a note (``withdrawn``)."""
        return f"Withdrawn: {self.record['withdrawn']}" if self.record.get("withdrawn") else None

    @property
    def banners(self) -> list[str]:
        """What a reader must know before reading on."""
        said = [line for line in (self.caution, self.withdrawn) if line]
        status = self.record.get("status") or "unknown"
        if status != "finished":
            said.append(f"This run did not finish (status: {status}): what follows is partial.")
        return said

    @property
    def place(self) -> str:
        """On what the run worked."""
        return answers.place(self.record)

    @property
    def answers(self) -> list[answers.Answer]:
        """The run's hypotheses with their verdicts."""
        return answers.answers(self.record)

    @property
    def verdicts(self) -> list[dict[str, Any]]:
        """The contrasts behind each hypothesis, as recorded."""
        return self.record.get("verdicts") or []


def read_record(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return a run folder with its record.

    Raises
    ------
    ValueError
        If it holds no readable record of a notebook.
    """
    record = gates.record_of(folder)
    if record is None:
        raise ValueError(f"{folder} holds no run.json, so it is no run folder")
    if not record.get("notebook"):
        raise ValueError(f"{folder / 'run.json'} names no notebook")
    return folder, record


def _variant(record: dict[str, Any]) -> str | None:
    profile = str(record.get("profile") or "")
    return record.get("variant") or (profile.split("--", 1)[1] if "--" in profile else None)


def position(item: tuple[Path, dict[str, Any]]) -> tuple[Any, ...]:
    """Order of pages: the notebooks' order, runs without a variant first, the latest first."""
    record = item[1]
    name = str(record["notebook"])
    place = list(NOTEBOOKS).index(name) if name in NOTEBOOKS else len(NOTEBOOKS)
    age = "".join(chr(0x10FFFF - ord(c)) for c in str(record.get("started") or ""))
    return place, name, _variant(record) is not None, str(_variant(record) or ""), age


def _file_name(record: dict[str, Any], taken: Container[str]) -> str:
    """A name that every file system takes: of notebook and variant what 60 bytes hold, letters and digits."""
    parts = [part.encode()[:60].decode(errors="ignore") for part in (record["notebook"], _variant(record)) if part]
    stem = "--".join("".join(c if c.isalnum() or c in "-_" else "-" for c in part) for part in parts)
    name, n = f"{stem}.html", 2
    while name in taken:
        name, n = f"{stem}--run{n}.html", n + 1
    return name


def load(folder: Path, record: dict[str, Any], taken: Container[str]) -> Page:
    """Render one run; ``taken`` holds the file names already given.

    Raises
    ------
    ValueError
        If its notebook, or a file that is to be copied beside the page, cannot be read.
    """
    file = _file_name(record, taken)
    notebook = gates.own_file(folder, "notebook.ipynb")
    if notebook:
        rendered = render_notebook(notebook)
    else:
        rendered = Rendered(flags=["the run has no executed notebook, so there is no prose and no figure"])
    files = [f"runs/{file.removesuffix('.html')}/{name}" for name in COPIED if gates.own_file(folder, name)]
    return Page(record["notebook"], _variant(record), file, record, rendered, files)
