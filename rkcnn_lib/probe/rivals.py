"""The other miners, and RkCNN's controls, behind one door: `mine(method, X, ...)`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import FastICA
from sklearn.exceptions import ConvergenceWarning
from torch.nn.functional import normalize

from rkcnn_lib.probe.inputs import all_centred, check_parameters, check_random_state, result_dtype
from rkcnn_lib.probe.lift import refine
from rkcnn_lib.probe.miner import RkCNNMiner
from rkcnn_lib.probe.nulls import surrogate
from rkcnn_lib.probe.scores import covariance, projection_contrast
from rkcnn_lib.tensors import as_matrix, one_of, with_covariance

ACTIVE_SHARE = 0.99  # of the variance: the principal directions that hold it are the active subspace


def _random(X: torch.Tensor, n: int, rng: np.random.RandomState) -> torch.Tensor:
    return torch.as_tensor(rng.standard_normal((n, X.shape[1])), device=X.device)


def _covariance(X: torch.Tensor, n: int, rng: np.random.RandomState) -> torch.Tensor:
    return with_covariance(_random(X, n, rng), covariance(X)[1])


def _active_subspace(X: torch.Tensor, n: int, rng: np.random.RandomState) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(covariance(X)[1])
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    rank = int((values.cumsum(0) < ACTIVE_SHARE * values.sum()).sum()) + 1
    return torch.as_tensor(rng.standard_normal((n, rank)), device=X.device) @ vectors[:, :rank].T


def _datapoint(X: torch.Tensor, n: int, rng: np.random.RandomState) -> torch.Tensor:
    rows = np.flatnonzero((X.norm(dim=1) > 0).cpu().numpy())
    return X[torch.as_tensor(rng.permutation(rows)[:n], device=X.device)]


def _with_both_signs(D: torch.Tensor, n: int) -> torch.Tensor:
    return torch.stack([D, -D], dim=1).reshape(-1, D.shape[1])[:n]


def _pca(X: torch.Tensor, n: int, rng: np.random.RandomState) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(covariance(X)[1])
    kept = values > values[-1] * 1e-10
    return _with_both_signs(vectors[:, kept].T.flip(0), n)


def _ica(X: torch.Tensor, n: int, rng: np.random.RandomState) -> torch.Tensor:
    values = torch.linalg.eigvalsh(covariance(X)[1])
    rank = int((values > values[-1] * 1e-7).sum())
    size = min(rank, len(X) - 1, -(-n // 2))
    model = FastICA(size, whiten="unit-variance", whiten_solver="eigh", random_state=rng)
    model.fit(X.double().cpu().numpy())
    patterns = torch.as_tensor(np.asarray(model.mixing_).T, device=X.device)  # (components, d)
    filters = torch.as_tensor(model.components_, device=X.device, dtype=X.dtype)
    best = projection_contrast(X, filters).argsort(descending=True)
    return _with_both_signs(patterns[best], n)


def _kmeans(X: torch.Tensor, n: int, rng: np.random.RandomState) -> torch.Tensor:
    size: Any = min(n, len(X))
    once: Any = 1  # start; scikit-learn's default is a word
    model = MiniBatchKMeans(n_clusters=size, batch_size=max(4096, size), n_init=once, random_state=rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters
        model.fit(normalize(X, dim=1, eps=1e-9).cpu().numpy())
    return torch.as_tensor(model.cluster_centers_, device=X.device)


def _refined(miner: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def mined(X: torch.Tensor, n: int, rng: np.random.RandomState) -> torch.Tensor:
        D = miner(X, n, rng).to(X.dtype)
        return refine(X, normalize(D[D.norm(dim=1) > 0], dim=1))

    return mined


def _rkcnn(
    X: torch.Tensor, n: int, rng: np.random.RandomState, funnel: list[dict[str, int]] | None = None, **options: Any
) -> torch.Tensor:
    options = {"n_subsets": 6 * n, "null": None, "random_state": rng, **options}
    miner = RkCNNMiner(n_directions=n, **options).fit(X)
    if funnel is not None:
        funnel += miner.funnel_
    return miner.directions_


_MINERS: dict[str, Callable[..., torch.Tensor]] = {
    "random": _random,
    "covariance": _covariance,
    "active_subspace": _active_subspace,
    "datapoint": _datapoint,
    "pca": _pca,
    "ica": _ica,
    "kmeans": _kmeans,
    "datapoint_refined": _refined(_datapoint),
    "kmeans_refined": _refined(_kmeans),
    "rkcnn_coordinate": partial(_rkcnn, lift=False, score="kurtosis", merge_cosine=1.0),
    "rkcnn": _rkcnn,
    "rkcnn_unscored": lambda *data, **options: _rkcnn(*data, **(options | {"select": "random"})),
    "rkcnn_worst": lambda *data, **options: _rkcnn(*data, **(options | {"select": "worst"})),
    "rkcnn_null": lambda X, n, rng, **options: _rkcnn(
        surrogate(X, random_state=int(rng.randint(2**31 - 1))), n, rng, **options
    ),
}
METHODS = tuple(_MINERS)


def mine(
    method: str, X: Any, n_directions: int, random_state: int | np.random.RandomState | None = 0, **options: Any
) -> Any:
    """Up to `n_directions` unit directions (r, d) by one method, best or first drawn first; a function of the seed.

    - "random": uniform on the sphere. "covariance": Gaussian with the rows' covariance. Nothing is mined.
    - "active_subspace": uniform on the sphere of the leading principal subspace that holds 99 % of the variance (Wang
      et al. 2025, arXiv:2508.16929, who start SAEs so).
    - "datapoint": random rows minus the mean. "pca": principal directions, each with both signs.
    - "ica": scikit-learn's FastICA, patterns with both signs, most kurtotic first.
    - "kmeans": MiniBatchKMeans centres of the centred rows, scaled to norm 1 (spherical clusters).
    - "datapoint_refined", "kmeans_refined": the same, sharpened by three passes of `rkcnn_lib.probe.lift.refine`, which
      end an RkCNN search.
    - "rkcnn_coordinate": as RkCNN for SAEs was first implemented: each subset's principal direction padded with zeros,
      subsets chosen by kurtosis, no lift and no merging.
    - "rkcnn": `RkCNNMiner`, from 6 n_directions subsets unless n_subsets says otherwise.
    - "rkcnn_unscored", "rkcnn_worst": the same, but random candidates or those that score worst are kept.
    - "rkcnn_null": the same search on an elliptical surrogate of the data.

    The RkCNN methods take every option of `RkCNNMiner`, and ``funnel``, a list to which the miner's `funnel_` is added.
    Their `null` is None by default: all distinct directions ranked by score, not a claim that each is a feature. Fewer
    than asked for are returned where the data hold fewer.

    X, an array, DataFrame or tensor (n, d), is centred in float64 and scaled first; directions come in its kind,
    float32 (float64 for float64 arrays). ValueError for an unknown method, an option it does not take or out of its
    range, or X that is not a finite real matrix of two rows or more, or does not vary.
    """
    one_of("method", method, METHODS)
    check_parameters({"n_directions": n_directions} | options)
    rng = check_random_state(random_state)
    given = as_matrix(X, least=2)
    data = all_centred(given)
    if not bool(data.any()):
        raise ValueError("X does not vary: its rows are all the same, and point nowhere")
    try:
        D = _MINERS[method](data, n_directions, rng, **options)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise ValueError(f"method {method!r} does not take these options: {sorted(options)}") from error
    D = D.to(torch.float64)
    D = normalize(D[D.norm(dim=1) > 0], dim=1).to(result_dtype(X, given))
    return D if isinstance(X, torch.Tensor) else D.cpu().numpy()
