"""Write docs/architectures.md: what our hooks hold in every causal architecture that TransformerBridge lists.

python -m tests.worlds.architecture_page    # tries them all: some minutes
"""

from __future__ import annotations

import re
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

from rkcnn_lib.files import write_text
from rkcnn_lib.worlds import HOOKS
from tests.worlds.architectures import Row, class_of, judge, listed

PAGE = Path(__file__).parents[2] / "docs/architectures.md"


def _cell(found: dict[int, str]) -> tuple[str, str | None]:
    """Return what the table says of a hook, and the reason where some block refuses it."""
    held = {block: words for block, words in found.items() if not words.startswith("refused")}
    reasons = [words.partition(": ")[2] for words in found.values() if words.startswith("refused")]
    if not held:
        return "refused", reasons[0]
    words = " or ".join(dict.fromkeys(held.values()))
    if len(held) == len(found):
        return words, None
    return f"blocks {', '.join(map(str, held))}: {words}", reasons[0]


def page(rows: list[Row]) -> str:
    """Return the table in Markdown."""
    used = ", ".join(f"{name} {version(name)}" for name in ("transformer-lens", "transformers", "torch"))
    unbuilt = [row.kind for row in rows if class_of(row.kind) is None]
    runs = sum(row.refused is None for row in rows)
    whole = sum(not row.refused and all(_cell(row.hooks[hook])[1] is None for hook in HOOKS) for row in rows)
    lines = [
        "# Architectures",
        "",
        "Written by `python -m tests.worlds.architecture_page`; do not edit by hand.",
        "",
        f"Every causal language model that TransformerBridge lists, and some wired otherwise, tried with a tiny random "
        f"model ({used}): {runs} of {len(rows)} load, in {whole} of them all five hooks hold in every block.",
        "",
        "A cell names the module of the Hugging Face model's block of which a plain PyTorch forward hook sees the same "
        "numbers (to 1e-5 of their norm), in each of four blocks, with the bridge's layers and with the model's own. "
        "What is refused is refused before anything is captured, with the reason. Where a setting decides (parallel "
        "attention, ALiBi, which blocks attend), a model of that name may differ from the one tried: the same check "
        "runs on every model that is read.",
        "",
        "The plain model computes its attention eagerly, as the bridge does. For Falcon with ALiBi the default kernel "
        "(sdpa) of transformers gives other numbers; what is captured is what eager attention gives.",
        "",
        f"For {len(unbuilt)} names transformers has no class ({', '.join(unbuilt)}). No model of them could be built: "
        "a folder with an invented configuration that asks for code of its own stands for each.",
        "",
        f"| architecture | {' | '.join(f'`{hook}`' for hook in HOOKS)} |",
        f"|---|{'---|' * len(HOOKS)}",
    ]
    notes: dict[str, int] = {}
    for row in rows:
        if row.refused:
            continue
        cells = []
        for hook in HOOKS:
            words, reason = _cell(row.hooks[hook])
            number = "" if reason is None else f" [{notes.setdefault(_general(reason), len(notes) + 1)}]"
            cells.append(words + number)
        lines.append(f"| {row.kind} | {' | '.join(cells)} |")
    lines += ["", *(f"[{number}] {reason}  " for reason, number in notes.items()), "", "## Refused as a whole", ""]
    lines += ["| architecture | reason |", "|---|---|"]
    lines += [f"| {row.kind} | {_general(row.refused)} |" for row in rows if row.refused]
    return "\n".join(lines) + "\n"


def _general(reason: str) -> str:
    """Return a reason without the block and the model that it was said of."""
    return re.sub(r"^(blocks\S+ cannot be had from this model|folder) \(\w+\):? ", "", reason).replace("folder", "it")


def main() -> None:
    warnings.simplefilter("ignore")
    rows = []
    for kind in listed():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(judge(kind, Path(folder)))
        print(kind, rows[-1].refused or "", file=sys.stderr)
    wrong = [f"{row.kind}: {hook}" for row in rows for hook, found in row.hooks.items() if "WRONG" in found.values()]
    if wrong:
        raise SystemExit("let through, and no module of the plain model sees the same: " + "; ".join(wrong))
    write_text(PAGE, page(rows))


if __name__ == "__main__":
    main()
