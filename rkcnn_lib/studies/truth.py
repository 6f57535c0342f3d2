"""Trained dictionaries against the true directions, where activations were made here: 04's last panel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from rkcnn_lib.measure import chance, matched_cosine, precision, recovery_rate
from rkcnn_lib.measure.recovery import match
from rkcnn_lib.studies.comparison import Compared

RECOVERED = 0.9  # cosine from which a true direction counts as recovered
RARE = 3  # tenths of the true directions, by firing rate, that are called rare


def recovery(compared: Compared, store: Any) -> pd.DataFrame | None:
    """Compare decoders with the true directions, beside chance; None where none are known.

    Returns
    -------
    DataFrame
        arm, seed, metric, value, chance_mean, chance_upper (with as many directions as there are latents). Of live
        latents after training: recovery_rate, precision, matched_cosine and, where rates are known,
        rare_recovery_rate, that of the three tenths that fire least; of all latents before: untrained_recovery_rate.
    """
    truth = getattr(store, "truth", None)
    if truth is None:
        return None
    rare = rarest_first(store)[: RARE * len(truth) // 10]
    measures = {measure.__name__: measure for measure in (recovery_rate, precision, matched_cosine)}
    if len(rare):
        measures["rare_recovery_rate"] = lambda D, T: float(recovered(D, T)[rare].mean())
    found = _dictionaries(compared)
    n_latents = len(found[0][-1])
    level = {
        name: chance(measure, n_latents, len(truth), store.d_in, n_draws=20, truth=truth)
        for name, measure in measures.items()
    }
    rows = []
    for arm, seed, decoder, start in found:
        values = [(name, name, measure(decoder, truth)) for name, measure in measures.items()]
        values.append(("untrained_recovery_rate", "recovery_rate", recovery_rate(start, truth)))
        rows += [
            {"arm": arm, "seed": seed, "metric": metric, "value": value,
             "chance_mean": level[name].mean, "chance_upper": level[name].upper}
            for metric, name, value in values
        ]  # fmt: skip
    return pd.DataFrame(rows)


def recovery_by_rate(compared: Compared, store: Any) -> pd.DataFrame:
    """Return a row an arm: the share of true directions recovered at 0.9, in each tenth of them by firing rate.

    Columns 1 (rarest) to 10; means over seeds. Empty where the rates are not known.
    """
    order = rarest_first(store)
    if not len(order):
        return pd.DataFrame()
    rows = [
        {"arm": arm} | dict(enumerate(tenths(recovered(decoder, store.truth), order), start=1))
        for arm, _, decoder, _ in _dictionaries(compared)
    ]
    return pd.DataFrame(rows).groupby("arm", sort=False).mean().round(3)


def rarest_first(store: Any) -> np.ndarray:
    """Return the order of a store's true directions by firing rate, (n_true,); empty where rates are not known."""
    return np.argsort(getattr(store, "rates", ()), kind="stable")


def recovered(D: torch.Tensor, truth: torch.Tensor) -> np.ndarray:
    """Return which of the true directions (n_true, d) have their partner in D (r, d) at cosine 0.9, (n_true,) bool."""
    pairs = match(D, truth)
    hit = np.zeros(len(truth), dtype=bool)
    hit[pairs.columns[np.asarray(pairs.cosines) >= RECOVERED]] = True
    return hit


def tenths(hit: np.ndarray, order: np.ndarray) -> list[float]:
    """Return the share that was hit in each tenth of an order."""
    return [float(hit[part].mean()) for part in np.array_split(order, 10)]


def _dictionaries(compared: Compared) -> list[tuple[str, int, torch.Tensor, torch.Tensor]]:
    """Return arm, seed, the trained rows of live latents, and the rows of all latents before training."""
    return [
        (arm, seed, decoder[live], compared.units[arm, seed].arrays["W_dec_start"])
        for arm in dict.fromkeys(arm for arm, _ in compared.units)
        for seed, (decoder, live) in enumerate(zip(compared.decoders(arm), compared.live(arm), strict=True))
    ]
