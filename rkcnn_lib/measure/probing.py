"""What latents say of labels that are known: sparse probes, splitting and absorption, detection by one latent.

Codes Z (n, d_sae) are an SAE's on n tokens, at least 0; labels (n, n_labels) are boolean, one column a label. A latent
*fires* where its code is above 0. Everything is chosen and fitted on one set of tokens and judged on another, from
other documents, beside the same search on shuffled training labels. ValueError for rows, widths or labels that do not
fit, and a label that all or no training tokens have.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from rkcnn_lib.measure.recovery import Chance
from rkcnn_lib.tensors import as_matrix, bool_mask, check_widths, unit_rows, whole

MOST_LATENTS = 10  # among which a parent's main latents are looked for
LEAST_GAIN = 0.03  # in F1, for a further main latent
LEAST_COSINE = 0.1  # of a decoder row with the probe, for a latent that absorbs
LEAST_SHARE = 0.4  # of the projection on the probe that it carries


class SparseProbes(NamedTuple):
    """Held-out F1 of probes that read k latents."""

    f1: np.ndarray  # (n_ks, n_labels)
    chance: tuple[Chance, ...]  # (n_ks,) of mean F1 over labels, training labels shuffled before latents are chosen


def k_sparse_probing(
    Z_train: Any, y_train: Any, Z_test: Any, y_test: Any, ks: Sequence[int] = (1, 5), *, n_permutations: int = 10
) -> SparseProbes:
    """Tell each label from all others by k latents (Gurnee et al. 2023, arXiv:2305.01610); scores are held-out F1.

    For each label the k latents with the largest absolute difference of means between tokens with and without it, on
    the training tokens, feed a logistic regression, both classes weighing the same. A label that no test token has
    scores 0.
    """
    Z_train, y_train, Z_test, y_test = _told(Z_train, y_train, Z_test, y_test)
    ks, rng = tuple(whole("ks", k, 1, Z_train.shape[1]) for k in ks), np.random.default_rng(0)

    def scores(labels: np.ndarray) -> np.ndarray:
        latents = enumerate(_by_mean_difference(Z_train, labels).T)
        return np.array([
            [_probe_f1(Z_train, labels[:, j], Z_test, y_test[:, j], own[:k]) for k in ks] for j, own in latents
        ]).T  # fmt: skip

    f1 = scores(y_train)
    draws = np.stack([scores(rng.permutation(y_train)).mean(1) for _ in range(n_permutations)], axis=1)
    return SparseProbes(f1, tuple(Chance.of(of_k) for of_k in draws))


class Hierarchy(NamedTuple):
    """How latents share out a parent label among themselves."""

    main: np.ndarray  # (n_main,) the parent's main latents, best first; their number is the splitting
    missed: float  # share of the parent's tokens that the dense probe tells right on which no main latent fires
    absorbed: float  # share of the same tokens that are missed and whose projection another latent carries
    chance: Chance  # of ``absorbed`` when decoder rows are shuffled: main latents keep theirs, others get anyone's


def splitting_and_absorption(
    train: tuple[Any, Any, Any], test: tuple[Any, Any, Any], W_dec: Any, *, n_permutations: int = 20
) -> Hierarchy:
    """Does one latent stand for a parent label, or do its children's latents speak for it?

    After Chanin et al. 2024 (arXiv:2409.14507), for labels that are known. *Splitting*: latents join the parent's main
    ones, in the order of `k_sparse_probing`, for as long as each raises the probe's F1 on the test tokens by 0.03 or
    more; the first always belongs. *Absorption*: u is the unit direction of a dense logistic probe for the parent. Of
    the parent's test tokens that this probe tells right, those count as absorbed on which no main latent fires and one
    other latent j both points along u (cosine of its decoder row with u at least 0.1) and carries the projection:
    ``z_j (w_j . u)`` is at least 0.4 of the sum of all latents' positive ``z_i (w_i . u)``.

    `train`, `test` are codes, activations (n, d) and which tokens are the parent's (n,) bool; `W_dec` (d_sae, d).
    ValueError also where the probe tells the parent on no test token.
    """
    (Z_train, X_train, parent_train), (Z_test, X_test, parent_test) = train, test
    X_train, label, X_test, truth = _told(X_train, parent_train, X_test, parent_test, "X")
    Z_train, _, Z_test, _ = _told(Z_train, parent_train, Z_test, parent_test)
    W_dec = as_matrix(W_dec, "W_dec").cpu().double().numpy()
    main = _main_latents(Z_train, label, Z_test, truth[:, 0])

    scaler = StandardScaler().fit(X_train)
    probe = LogisticRegression(class_weight="balanced", tol=1e-3, solver="newton-cg")
    probe.fit(scaler.transform(X_train), label[:, 0])
    u = unit_rows(probe.coef_ / scaler.scale_, "the probe").numpy()[0]
    right = np.flatnonzero(truth[:, 0] & probe.predict(scaler.transform(X_test)))
    if not len(right):
        raise ValueError("the dense probe tells the parent on no test token: there is nothing to absorb")
    missed = right[~(Z_test[right][:, main] > 0).any(1)]
    along, cosines = W_dec @ u, unit_rows(W_dec, "W_dec").numpy() @ u
    own, rng, draws = np.arange(len(W_dec)), np.random.default_rng(0), []
    others = np.setdiff1d(own, main)

    def absorbed(order: np.ndarray) -> float:
        carried = np.maximum(Z_test[missed] * along[order], 0)
        eligible = carried * (cosines[order] >= LEAST_COSINE)
        eligible[:, main] = 0
        largest = eligible.max(1)
        return float(((largest > 0) & (largest >= LEAST_SHARE * carried.sum(1))).sum() / len(right))

    for _ in range(n_permutations):
        order = own.copy()
        order[others] = rng.permutation(others)
        draws.append(absorbed(order))
    return Hierarchy(main, len(missed) / len(right), absorbed(own), Chance.of(draws))


class Detection(NamedTuple):
    """Which label each latent detects, and how well on tokens that did not choose it."""

    label: np.ndarray  # (d_sae,) that suits a latent best in training; -1 for latents that never fire there
    f1: np.ndarray  # (d_sae,) held-out, of the rule "the latent fires where the label holds"; NaN without a label
    mean: float  # F1 over latents with a label
    chance: Chance  # of that mean when rows of labels are shuffled in both sets


def detection(Z_train: Any, y_train: Any, Z_test: Any, y_test: Any, *, n_permutations: int = 20) -> Detection:
    """Give each live latent its best label rule and judge it on held-out tokens: detection without a language model."""
    Z_train, y_train, Z_test, y_test = _told(Z_train, y_train, Z_test, y_test)
    fires_train, fires_test = ((Z > 0).astype(np.float32) for Z in (Z_train, Z_test))
    live = fires_train.any(0)
    if not live.any():
        raise ValueError("no latent fires on the training tokens")

    def rules(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        label = _f1_table(fires_train, train).argmax(1)
        return label, _f1_table(fires_test, test)[np.arange(len(label)), label]

    label, f1 = rules(y_train, y_test)
    rng = np.random.default_rng(0)
    shuffled = (rules(rng.permutation(y_train), rng.permutation(y_test))[1] for _ in range(n_permutations))
    chance = Chance.of([float(drawn[live].mean()) for drawn in shuffled])
    return Detection(np.where(live, label, -1), np.where(live, f1, np.nan), float(f1[live].mean()), chance)


def _told(
    Z_train: Any, y_train: Any, Z_test: Any, y_test: Any, name: str = "Z"
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Codes (n, d_sae) float32 and labels (n, n_labels) bool of both sets."""
    train, test = as_matrix(Z_train, f"{name}_train").cpu().float(), as_matrix(Z_test, f"{name}_test").cpu().float()
    check_widths(train, test, (f"{name}_train", f"{name}_test"))
    y_train, y_test = (y[:, None] if y.ndim == 1 else y for y in (y_train, y_test))
    labels = bool_mask("y_train", y_train, (len(train), y_train.shape[1])).cpu().numpy()
    constant = np.flatnonzero(labels.all(0) | ~labels.any(0))
    if len(constant):
        raise ValueError(f"label {constant[0]} holds on all or on no training tokens: nothing tells it from others")
    return train.numpy(), labels, test.numpy(), bool_mask("y_test", y_test, (len(test), labels.shape[1])).cpu().numpy()


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
    predicted = probe.predict(Z_test / scale)
    return float(_f1_table(predicted[:, None].astype(np.float32), truth[:, None])[0, 0])


def _f1_table(fires: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(d_sae, n_labels) F1 of each latent's firing (n, d_sae) as a rule for each label; 0 where both never are."""
    both = fires.T @ labels.astype(np.float32)
    return 2 * both / np.maximum(fires.sum(0)[:, None] + labels.sum(0), 1)


def _main_latents(Z: np.ndarray, labels: np.ndarray, Z_test: np.ndarray, truth: np.ndarray) -> np.ndarray:
    order, best = _by_mean_difference(Z, labels)[:MOST_LATENTS, 0], -np.inf
    for k in range(1, len(order) + 1):
        f1 = _probe_f1(Z, labels[:, 0], Z_test, truth, order[:k])
        if f1 - best < LEAST_GAIN:
            return order[: k - 1]
        best = f1
    return order
