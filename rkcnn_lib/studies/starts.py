"""``rkcnn mine``: starting weights for somebody's own SAE training, mined from the activations they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rkcnn_lib.files import outputs_root, whole_folder, write_json
from rkcnn_lib.runs.limits import check
from rkcnn_lib.runs.params import ParameterError, resolve
from rkcnn_lib.runs.run import provenance
from rkcnn_lib.sae import save_saelens
from rkcnn_lib.studies.activations import invented_store
from rkcnn_lib.studies.cells import about, initial_sae, mined_unit
from rkcnn_lib.vocabulary import MINED
from rkcnn_lib.worlds import open_or_capture, pick_device
from rkcnn_lib.worlds.toy.planted import INVENTED_MODELS

NOTEBOOK = "04_sae_compare"  # whose parameters are taken, and whose arm `rkcnn` the start is


def write_start(given: dict[str, Any], out: Path) -> Path:
    """Mine directions and write the SAE that starts from them, as the arm ``rkcnn`` of 04 does for seed 0.

    Parameters
    ----------
    given : dict
        Parameters of 04: the model, layer, hook, text, expansion, k and so on.
    out : Path
        A new folder: SAELens's ``cfg.json`` and ``sae_weights.safetensors``, plain tensors in units of the raw
        activations (W_enc (d_in, d_sae), W_dec (d_sae, d_in) of unit rows, b_enc, b_dec); and ``start.json``, how they
        were made, with the search's funnel.

    Raises
    ------
    ParameterError
        For parameters that cannot work, a folder that holds something, or a search that has nothing to select from.
    """
    p = resolve(NOTEBOOK, given)
    check(p)
    if out.exists():
        raise ParameterError(f"{out} exists: give another --out")
    device = str(pick_device(p.device))
    if p.model in INVENTED_MODELS:
        store = invented_store(p.model, p.n_tokens)
    else:
        store = open_or_capture(
            p.model, p.layer, p.hook, p.n_tokens, text=p.text, root=outputs_root() / "cache",
            context_size=p.context_size, device=device, revision=p.revision,
        )  # fmt: skip
    mined, sae = mined_unit(store, p, MINED, 0, device), initial_sae(store, p, MINED, 0, device)
    record = {
        "parameters": p.model_dump(), "data": store.manifest, "provenance": provenance(device),
        "mined": int(mined.scalars["supply"]), "fill": sae.config.d_sae - int(mined.scalars["supply"]),
        "funnel": mined.tables["funnel"].to_dict("records"),
    }  # fmt: skip
    with whole_folder(out) as work:
        save_saelens(sae, work, about(store, MINED, 0))
        write_json(work / "start.json", record)
    return out
