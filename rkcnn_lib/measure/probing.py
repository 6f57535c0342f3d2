"""What latents say of labels that are known: sparse probes, splitting and absorption, detection by one latent.

Codes Z (n, d_sae) are an SAE's on n tokens, at least 0; labels (n, n_labels) are boolean, one column a label, or (n,)
whole numbers, one class a token (each class is then a label). A latent *fires* where its code is above 0. Everything is
chosen and fitted on one set of tokens and judged on another, from other documents. Every score stands beside
the same search on shuffled training labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from rkcnn_lib.measure.recovery import Chance
from rkcnn_lib.tensors import as_matrix, as_numbers, bool_mask, check_widths, number, unit_rows, whole


class SparseProbes(NamedTuple):
    """Held-out F1 of probes that read k latents."""

    ks: tuple[int, ...]
    f1: np.ndarray
    """(n_ks, n_labels)."""
    chance: tuple[Chance, ...]
    """(n_ks,) mean F1 over labels when the training labels are shuffled before latents are chosen."""
    latents: np.ndarray
    """(largest k, n_labels): the latents of each label, best first; a probe of k reads the first k."""
    dense_f1: np.ndarray | None
    """(n_labels,) of the probe on the activations; None without them."""

    def gap(self) -> np.ndarray:
        """(n_ks,) mean over labels of the dense probe's F1 minus the sparse one's; ValueError without a dense one."""
        if self.dense_f1 is None:
            raise ValueError("no dense probe was fitted: give X_train and X_test")
        return self.dense_f1.mean() - self.f1.mean(1)


def k_sparse_probing(
    Z_train: Any,
    y_train: Any,
    Z_test: Any,
    y_test: Any,
    ks: Sequence[int] = (1, 5),
    *,
    X_train: Any = None,
    X_test: Any = None,
    n_permutations: int = 10,
    random_state: int = 0,
) -> SparseProbes:
    """Tell each label from all others by k latents (Gurnee et al. 2023, arXiv:2305.01610); scores are held-out F1.

    For each label the k latents with the largest absolute difference of means between tokens with and without it, on
    the training tokens, feed a logistic regression, both classes weighing the same. With ``X_train``, ``X_test`` (n, d)
    a dense probe on the activations shows what there was to find. A label that no test token has scores 0.

    ValueError for rows, widths or labels that do not fit, or a label that all or no training tokens have.
    """
    (Z_train, Z_test), (y_train, y_test) = _codes(Z_train, Z_test), _both_labels(y_train, y_test)
    _check_rows(Z_train, y_train, Z_test, y_test)
    ks = tuple(whole("ks", k, 1, Z_train.shape[1]) for k in ks)
    rng, n_permutations = _generator(random_state), whole("n_permutations", n_permutations)

    def scores(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        latents = _by_mean_difference(Z_train, labels)[: max(ks)]
        columns = enumerate(latents.T)
        f1 = [[_probe_f1(Z_train, labels[:, j], Z_test, y_test[:, j], own[:k]) for k in ks] for j, own in columns]
        return np.array(f1).T, latents

    f1, latents = scores(y_train)
    draws = np.stack([scores(rng.permutation(y_train))[0].mean(1) for _ in range(n_permutations)], axis=1)
    dense = None
    if X_train is not None:
        X_train, X_test = _codes(X_train, X_test, "X")
        _check_rows(X_train, y_train, X_test, y_test)
        scaler = StandardScaler().fit(X_train)
        X_train, X_test = scaler.transform(X_train), scaler.transform(X_test)
        probes = (_dense_probe(X_train, labels) for labels in y_train.T)
        dense = np.array([_f1(p.predict(X_test), labels) for p, labels in zip(probes, y_test.T, strict=True)])
    return SparseProbes(ks, f1, tuple(Chance.of(of_k) for of_k in draws), latents, dense)


class Hierarchy(NamedTuple):
    """How latents share out a parent label among themselves."""

    main: np.ndarray
    """(n_main,) the parent's main latents, best first; their number is the splitting."""
    missed: float
    """Share of the parent's tokens, among those that the dense probe tells right, on which no main latent fires."""
    absorbed: float
    """Share of the same tokens that are missed and whose projection another latent carries."""
    absorbed_by_child: np.ndarray | None
    """(n_children,) that share within each child's tokens, NaN where it has none; None without children."""
    absorbing: np.ndarray
    """Latents that carry it anywhere, the most frequent first."""
    chance: Chance
    """Of ``absorbed`` when the latents of the decoder are shuffled: main latents keep theirs, others get anyone's."""

    @property
    def splitting(self) -> int:
        """Number of latents that the parent needs: 1 where one latent says it all."""
        return len(self.main)


def splitting_and_absorption(
    Z_train: Any,
    X_train: Any,
    parent_train: Any,
    Z_test: Any,
    X_test: Any,
    parent_test: Any,
    W_dec: Any,
    children_test: Any = None,
    *,
    least_gain: float = 0.03,
    most_latents: int = 10,
    least_cosine: float = 0.1,
    least_share: float = 0.4,
    n_permutations: int = 20,
    random_state: int = 0,
) -> Hierarchy:
    """Does one latent stand for a parent label, or do its children's latents speak for it?

    After Chanin et al. 2024 (arXiv:2409.14507), for labels that are known. *Splitting*: latents join the parent's main
    ones, in the order of `k_sparse_probing`, for as long as each raises the probe's F1 on the test tokens by
    ``least_gain`` or more; the first always belongs. *Absorption*: u is the unit direction of a dense logistic probe
    for the parent. Of the parent's test tokens that this probe tells right, those count as absorbed on which no main
    latent fires and one other latent j both points along u (cosine of its decoder row with u at least ``least_cosine``)
    and carries the projection: ``z_j (w_j . u)`` is at least ``least_share`` of the sum of all latents' positive
    ``z_i (w_i . u)``.

    `Z_train`, `Z_test` are codes, `X_train`, `X_test` (n, d) the activations, `parent_train`, `parent_test` (n,) bool,
    `W_dec` (d_sae, d), `children_test` (n, n_children) bool. ValueError for inputs that do not fit, a parent that all
    or no training tokens have, or no test token on which the probe tells the parent right.
    """
    Z_train, Z_test = _codes(Z_train, Z_test)
    X_train, X_test = _codes(X_train, X_test, "X")
    parent_train, parent_test = _both_labels(parent_train, parent_test)
    if parent_train.shape[1] != 1:
        raise ValueError("parent_train and parent_test must be one boolean label, (n,)")
    _check_rows(Z_train, parent_train, Z_test, parent_test)
    _check_rows(X_train, parent_train, X_test, parent_test)
    W_dec = as_matrix(W_dec, "W_dec").cpu().double().numpy()
    most_latents, n_permutations = whole("most_latents", most_latents), whole("n_permutations", n_permutations)
    order = _by_mean_difference(Z_train, parent_train)[:most_latents, 0]
    own_train, own_test = parent_train[:, 0], parent_test[:, 0]
    main = _main_latents(Z_train, own_train, Z_test, own_test, order, number("least_gain", least_gain, "(0, 1)"))

    scaler = StandardScaler().fit(X_train)
    probe = _dense_probe(np.asarray(scaler.transform(X_train)), own_train)
    u = unit_rows(probe.coef_ / scaler.scale_, "the probe").numpy()[0]
    right = np.flatnonzero(own_test & probe.predict(scaler.transform(X_test)))
    if not len(right):
        raise ValueError("the dense probe tells the parent on no test token: there is nothing to absorb")
    missed = right[~(Z_test[right][:, main] > 0).any(1)]
    along, cosines = W_dec @ u, unit_rows(W_dec, "W_dec").numpy() @ u
    options = {
        "least_cosine": number("least_cosine", least_cosine, "[-1, 1]"),
        "least_share": number("least_share", least_share, "[0, 1]"),
    }
    carriers = _carriers(Z_test[missed], along, cosines, main, **options)
    others = np.setdiff1d(np.arange(len(W_dec)), main)
    rng, draws = _generator(random_state), []
    for _ in range(n_permutations):
        order = np.arange(len(W_dec))
        order[others] = rng.permutation(others)
        drawn = _carriers(Z_test[missed], along[order], cosines[order], main, **options)
        draws.append((drawn >= 0).sum() / len(right))
    absorbed = missed[carriers >= 0]
    names, counts = np.unique(carriers[carriers >= 0], return_counts=True)
    return Hierarchy(
        main=main,
        missed=len(missed) / len(right),
        absorbed=len(absorbed) / len(right),
        absorbed_by_child=None if children_test is None else _shares(children_test, absorbed, right, len(Z_test)),
        absorbing=names[np.argsort(-counts, kind="stable")],
        chance=Chance.of(draws),
    )


class Detection(NamedTuple):
    """Which label each latent detects, and how well on tokens that did not choose it."""

    label: np.ndarray
    """(d_sae,) the label that suits a latent best in training; -1 for latents that never fire there."""
    f1: np.ndarray
    """(d_sae,) held-out F1 of the rule "the latent fires where the label holds"; NaN for latents without a label."""
    mean: float
    """Mean F1 over latents with a label."""
    chance: Chance
    """Of that mean when rows of labels are shuffled in both sets."""


def detection(
    Z_train: Any, y_train: Any, Z_test: Any, y_test: Any, *, n_permutations: int = 20, random_state: int = 0
) -> Detection:
    """Give each live latent its best label rule and judge it on held-out tokens: detection without a language model.

    ValueError for rows, widths or labels that do not fit, a label that all or no training tokens have, or no live
    latent.
    """
    (Z_train, Z_test), (y_train, y_test) = _codes(Z_train, Z_test), _both_labels(y_train, y_test)
    _check_rows(Z_train, y_train, Z_test, y_test)
    fires_train, fires_test = ((Z > 0).astype(np.float32) for Z in (Z_train, Z_test))
    live = np.flatnonzero(fires_train.any(0))
    if not len(live):
        raise ValueError("no latent fires on the training tokens")

    def rules(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        label = _f1_table(fires_train, train).argmax(1)
        return label, _f1_table(fires_test, test)[np.arange(len(label)), label]

    label, f1 = rules(y_train, y_test)
    rng, n_permutations = _generator(random_state), whole("n_permutations", n_permutations)
    shuffled = (rules(rng.permutation(y_train), rng.permutation(y_test))[1] for _ in range(n_permutations))
    chance = Chance.of([float(drawn[live].mean()) for drawn in shuffled])
    dead = np.ones(len(label), dtype=bool)
    dead[live] = False
    label[dead], f1[dead] = -1, np.nan
    return Detection(label, f1, float(f1[live].mean()), chance)


def _generator(random_state: int) -> np.random.Generator:
    return np.random.default_rng(whole("random_state", random_state, 0))


def _codes(train: Any, test: Any, name: str = "Z") -> tuple[np.ndarray, np.ndarray]:
    first, second = as_matrix(train, f"{name}_train").cpu().float(), as_matrix(test, f"{name}_test").cpu().float()
    check_widths(first, second, (f"{name}_train", f"{name}_test"))
    return first.numpy(), second.numpy()


def _both_labels(train: Any, test: Any) -> tuple[np.ndarray, np.ndarray]:
    """Boolean columns (n, n_labels) of training and test labels; of classes, those that training knows."""
    train, test = (y.cpu().numpy() if hasattr(y, "cpu") else np.asarray(y) for y in (train, test))
    if train.ndim == 1 and train.dtype != bool:
        classes = np.unique(as_numbers(train, "y_train").numpy())
        train, test = (y[:, None] == classes for y in (train, test))
    if train.ndim == 1:
        train, test = train[:, None], test[:, None]
    train, test = (bool_mask(n, y, (len(y), train.shape[1])).numpy() for n, y in (("y_train", train), ("y_test", test)))
    constant = np.flatnonzero(train.all(0) | ~train.any(0))
    if len(constant):
        raise ValueError(f"label {constant[0]} holds on all or on no training tokens: nothing tells it from others")
    return train, test


def _check_rows(train: np.ndarray, y_train: np.ndarray, test: np.ndarray, y_test: np.ndarray) -> None:
    if len(train) != len(y_train) or len(test) != len(y_test):
        raise ValueError(
            f"{len(train)} training and {len(test)} test rows, {len(y_train)} and {len(y_test)} labels: one a row"
        )


def _by_mean_difference(Z: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(d_sae, n_labels): latents by their absolute difference of means with and without each label, largest first."""
    with_label, n_with = Z.T @ labels.astype(np.float32), labels.sum(0)
    without = Z.sum(0)[:, None] - with_label
    return np.argsort(-np.abs(with_label / n_with - without / (len(Z) - n_with)), axis=0, kind="stable")


def _probe_f1(Z: np.ndarray, label: np.ndarray, Z_test: np.ndarray, truth: np.ndarray, latents: np.ndarray) -> float:
    """Held-out F1 of a logistic regression on a few latents, both classes weighing the same."""
    Z, Z_test = Z[:, latents].astype(np.float64), Z_test[:, latents].astype(np.float64)
    scale = np.maximum(Z.std(0), 1e-12)
    # Most tokens are alike, for none of the latents fires: one row a class stands for them, as heavy as all.
    fires, weight = Z.any(1), len(Z) / (2 * np.bincount(label, minlength=2))
    rows = np.vstack([Z[fires], np.zeros((2, len(latents)))]) / scale
    classes = np.append(label[fires], [False, True])
    heavy = np.append(weight[label[fires].astype(int)], weight * np.bincount(label[~fires], minlength=2))
    probe = LogisticRegression(solver="newton-cholesky").fit(rows, classes, heavy)  # the quickest for few columns
    return _f1(probe.predict(Z_test / scale), truth)


def _dense_probe(X: np.ndarray, label: np.ndarray) -> LogisticRegression:
    return LogisticRegression(class_weight="balanced", max_iter=1000, tol=1e-3).fit(X, label)


def _f1(predicted: Any, truth: np.ndarray) -> float:
    return float(_f1_table(predicted[:, None].astype(np.float32), truth[:, None])[0, 0])


def _f1_table(fires: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(d_sae, n_labels) F1 of each latent's firing (n, d_sae) as a rule for each label; 0 where both never are."""
    both = fires.T @ labels.astype(np.float32)
    return 2 * both / np.maximum(fires.sum(0)[:, None] + labels.sum(0), 1)


def _main_latents(
    Z: np.ndarray, label: np.ndarray, Z_test: np.ndarray, truth: np.ndarray, order: np.ndarray, least_gain: float
) -> np.ndarray:
    best = _probe_f1(Z, label, Z_test, truth, order[:1])
    for k in range(2, len(order) + 1):
        f1 = _probe_f1(Z, label, Z_test, truth, order[:k])
        if f1 - best < least_gain:
            return order[: k - 1]
        best = f1
    return order


def _carriers(
    Z: np.ndarray, along: np.ndarray, cosines: np.ndarray, main: np.ndarray, *, least_cosine: float, least_share: float
) -> np.ndarray:
    """(n,) the latent that carries each row's projection on the probe, -1 where none does; main latents are silent."""
    carried = np.maximum(Z * along, 0)
    eligible = carried * (cosines >= least_cosine)
    eligible[:, main] = 0
    best, total = eligible.argmax(1), carried.sum(1)
    largest = eligible[np.arange(len(Z)), best]
    return np.where((largest > 0) & (largest >= least_share * total), best, -1)


def _shares(children: Any, absorbed: np.ndarray, right: np.ndarray, n: int) -> np.ndarray:
    children = bool_mask("children_test", children, (n, np.shape(children)[-1])).cpu().numpy()
    n_right = children[right].sum(0)
    return np.where(n_right > 0, children[absorbed].sum(0) / np.maximum(n_right, 1), np.nan)
