"""SAEs that others trained, judged in 04 beside the arms on the same held-out tokens; no contrast rests on them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from rkcnn_lib.measure import quality
from rkcnn_lib.runs.published import CENTRED
from rkcnn_lib.runs.run import Run
from rkcnn_lib.runs.schemas import SaeCompare
from rkcnn_lib.runs.units import Unit, cached_unit
from rkcnn_lib.sae import SAE
from rkcnn_lib.sae.disk import CONFIG_FILE, WEIGHTS_FILE
from rkcnn_lib.studies.cells import splice
from rkcnn_lib.studies.comparison import tidy


@dataclass(frozen=True)
class Centred:
    """An SAE that reads activations less their mean over dimensions, as after TransformerLens's weight centring.

    A model whose layer norms subtract the mean, such as GPT-2, does not see it either, so a reconstruction without it
    may be spliced in as it is.
    """

    sae: SAE

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Codes (n, d_sae) of x (n, d_in)."""
        return self.sae.encode(x - x.mean(1, keepdim=True))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Reconstruction (n, d_in), without the mean."""
        return self.sae.decode(z)


def judge_published(opened: dict[str, tuple[Path, SAE]], store: Any, run: Run) -> pd.DataFrame:
    """Return arm, seed, metric, value: the quality of each on the rows and contexts that judge the arms."""
    p: SaeCompare = run.p
    qualities = {}
    for name, (folder, sae) in opened.items():
        files = [hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in (WEIGHTS_FILE, CONFIG_FILE)]
        inputs = {
            "files": files, "centred": name.endswith(CENTRED), "data": store.key, "heldout": p.heldout_rows,
            "splice": p.splice_contexts, "device": run.device,
        }  # fmt: skip

        def compute(scratch: Path, name: str = name, sae: SAE = sae) -> Unit:
            judged = sae.to(run.device)
            judged = Centred(judged) if name.endswith(CENTRED) else judged
            held_out = store.matrix("heldout", n_rows=p.heldout_rows).to(run.device)
            if isinstance(judged, Centred):
                held_out = held_out - held_out.mean(1, keepdim=True)
            measured = quality(judged, held_out, **splice(store, p, run.device))
            return Unit(scalars={name: value for name, value in measured.items() if isinstance(value, int | float)})

        qualities[p.layer, name, 0] = cached_unit("published", inputs, compute).scalars
    if not qualities:
        return pd.DataFrame({"arm": [], "seed": [], "metric": [], "value": []}).astype({"seed": int, "value": float})
    return tidy(qualities).drop(columns="layer")
