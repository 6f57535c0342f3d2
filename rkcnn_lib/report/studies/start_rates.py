"""How often each latent of an SAE fired before training: what tells one that died from one that never lived."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from rkcnn_lib.report.schemas import SaeCompare
from rkcnn_lib.report.studies.cells import initial_sae
from rkcnn_lib.report.units import Unit, cached_unit

BATCH = 4096  # rows encoded at once


def start_rates(store: Any, p: SaeCompare, arm: str, seed: int, unit: Unit, device: str) -> np.ndarray:
    """Return the share of the comparison's held-out rows on which each latent fired at its start, (d_sae,).

    ``unit`` is the trained SAE's. Computed once, then read.
    """

    def compute(scratch: Path) -> Unit:
        start = initial_sae(store, p, arm, seed, int(unit.scalars["n_mined"]), device)
        held_out = store.matrix("heldout", n_rows=p.heldout_rows)
        with torch.no_grad():
            fired = sum((start.encode(part.to(device)) > 0).sum(0).cpu() for part in held_out.split(BATCH))
        return Unit(arrays={"rates": fired.float() / len(held_out)})

    inputs = {"unit": unit.folder.name, "rows": p.heldout_rows}
    return cached_unit("start_rates", inputs, compute).arrays["rates"].numpy()
