"""Probing: the truth's latents rank above random ones, shuffled labels give chance, planted absorption is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from rkcnn_lib.measure import probing
from rkcnn_lib.measure.probing import detection, k_sparse_probing, splitting_and_absorption
from rkcnn_lib.sae import SAE, SAEConfig

D, N_LABELS, N_CHILDREN, PARENT = 24, 8, 4, 4  # labels 0 to 3 are the children of label 4, 5 to 7 stand alone
DIRECTIONS = np.linalg.qr(np.random.default_rng(7).normal(size=(D, D)))[0][:N_LABELS]


def world(n: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Activations (n, D), the sum of the directions of a token's labels, and labels (n, N_LABELS)."""
    rng = np.random.default_rng(seed)
    y = rng.random((n, N_LABELS)) < 0.1
    kind = rng.integers(0, 10, n)  # 0 to 3: the parent with that child; 4: with none; else no parent
    y[:, : PARENT + 1] = False
    y[np.arange(n)[kind < N_CHILDREN], kind[kind < N_CHILDREN]] = True
    y[:, PARENT] = kind <= N_CHILDREN
    return y @ DIRECTIONS + 0.05 * rng.normal(size=(n, D)), y


def codes(X: np.ndarray, directions: np.ndarray = DIRECTIONS) -> np.ndarray:
    """Codes of an SAE with these decoder rows, tied."""
    sae = SAE(SAEConfig(D, len(directions), "relu", l1=0.0))
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor(directions))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_enc.fill_(-0.4)
        return sae.encode(torch.tensor(X, dtype=torch.float32)).numpy()


def random_directions(seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(N_LABELS, D))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def sets():
    return *world(seed=0), *world(seed=1)


def probed(sets, directions=DIRECTIONS, **options):
    X, y, X_test, y_test = sets
    return k_sparse_probing(codes(X, directions), y, codes(X_test, directions), y_test, ks=(1, 3), **options)


def test_one_latent_of_the_truth_tells_its_label_and_a_random_one_does_not(sets):
    truth, random = probed(sets), probed(sets, random_directions())
    assert truth.f1.shape == (2, N_LABELS) and (truth.f1 > 0.97).all()
    assert random.f1[0].mean() < 0.7 and (random.f1.mean(1) < 0.78).all()
    assert random.f1[1].mean() > random.f1[0].mean(), "three latents tell more than one"


def test_labels_that_were_shuffled_are_told_at_chance(sets):
    X, y, X_test, y_test = sets
    chance = probed(sets, n_permutations=20).chance
    orders = [np.random.default_rng(seed).permutation(y) for seed in range(100, 106)]
    shuffled = np.mean([probed((X, order, X_test, y_test), n_permutations=1).f1.mean(1) for order in orders], axis=0)
    for of_k, level in zip(shuffled, chance, strict=True):
        assert of_k == pytest.approx(level.mean, abs=0.08) and level.upper < 0.6


def test_tokens_on_which_no_latent_fires_weigh_what_they_are(sets):
    """Collapsing them into one row a class is the same probe as keeping them."""
    X, y, X_test, y_test = sets
    Z, Z_test = codes(X), codes(X_test)
    latents, label = np.array([2, 5, 6]), y[:, 2]
    scale = Z[:, latents].std(0)
    probe = LogisticRegression(class_weight="balanced", tol=1e-8).fit(Z[:, latents] / scale, label)
    whole = f1_score(y_test[:, 2], probe.predict(Z_test[:, latents] / scale))
    assert probing._probe_f1(Z, label, Z_test, y_test[:, 2], latents) == pytest.approx(whole, abs=1e-6)


def test_the_truths_latents_detect_labels_and_shuffled_labels_are_detected_at_chance(sets):
    X, y, X_test, y_test = sets
    padded = [np.pad(codes(x), ((0, 0), (0, 2))) for x in (X, X_test)]  # two dead latents
    truth = detection(padded[0], y, padded[1], y_test)
    assert truth.label.tolist() == [*range(N_LABELS), -1, -1] and np.isnan(truth.f1[-2:]).all()
    assert truth.mean > 0.97 and truth.mean == pytest.approx(np.nanmean(truth.f1))
    random = detection(codes(X, random_directions()), y, codes(X_test, random_directions()), y_test)
    assert truth.chance.upper < random.mean < 0.8
    rng = np.random.default_rng(0)
    shuffled = detection(padded[0], rng.permutation(y), padded[1], rng.permutation(y_test))
    assert abs(shuffled.mean - shuffled.chance.mean) < 0.03


def test_a_latents_rule_is_the_f1_of_its_firing(sets):
    X, y, X_test, y_test = sets
    found = detection(codes(X), y[:, 1:2], codes(X_test), y_test[:, 1:2])
    fires, truth = codes(X_test)[:, PARENT] > 0, y_test[:, 1]
    both = (fires & truth).sum()
    precision, recall = both / fires.sum(), both / truth.sum()
    assert found.f1[PARENT] == pytest.approx(2 * precision * recall / (precision + recall))


def absorbed(sets, Z, Z_test, W_dec):
    X, y, X_test, y_test = sets
    return splitting_and_absorption((Z, X, y[:, PARENT]), (Z_test, X_test, y_test[:, PARENT]), W_dec)


def test_a_parent_with_a_latent_of_its_own_is_neither_split_nor_absorbed(sets):
    found = absorbed(sets, codes(sets[0]), codes(sets[2]), DIRECTIONS)
    assert found.main.tolist() == [PARENT]
    assert found.missed < 0.01 and found.absorbed < 0.01


def test_planted_absorption_is_found_in_the_child_that_absorbs(sets):
    """Child 0's latent writes the parent too, and the parent's latent keeps silent there."""
    X, _, X_test, _ = sets
    W_dec = DIRECTIONS.copy()
    W_dec[0] = (DIRECTIONS[0] + DIRECTIONS[PARENT]) / 2**0.5
    Z = [codes(x) for x in (X, X_test)]
    for of_set in Z:
        of_set[of_set[:, 0] > 0, PARENT] = 0
    found = absorbed(sets, *Z, W_dec)
    y_test = sets[3]
    assert found.main.tolist() == [PARENT]
    assert found.absorbed == pytest.approx(y_test[y_test[:, PARENT], 0].mean(), abs=0.01)
    assert found.chance.mean < 0.6 * found.absorbed
    silent = [of_set.copy() for of_set in Z]
    for of_set in silent:
        of_set[:, 0] = 0  # missed all the same, but nobody carries the parent there
    lost = absorbed(sets, *silent, W_dec)
    assert lost.missed == pytest.approx(found.missed) and lost.absorbed < 0.01


def test_a_parent_that_only_its_children_tell_is_split_into_them(sets):
    X, y, X_test, y_test = sets
    with_child = [y_of[:, :N_CHILDREN].any(1) | ~y_of[:, PARENT] for y_of in (y, y_test)]
    only = X[with_child[0]], y[with_child[0]], X_test[with_child[1]], y_test[with_child[1]]
    Z = [np.delete(codes(x), PARENT, axis=1) for x in only[::2]]
    found = absorbed(only, *Z, np.delete(DIRECTIONS, PARENT, axis=0))
    assert sorted(found.main) == list(range(N_CHILDREN))


def test_tensors_and_arrays_are_the_same(sets):
    X, y, X_test, y_test = sets
    arrays = detection(codes(X), y, codes(X_test), y_test, n_permutations=3)
    tensors = detection(*map(torch.as_tensor, (codes(X), y, codes(X_test), y_test)), n_permutations=3)
    assert tensors.mean == arrays.mean and tensors.chance == arrays.chance


def test_misuse_is_refused_with_a_reason(sets):
    X, y, X_test, y_test = sets
    Z, Z_test = codes(X), codes(X_test)
    for call, message in [
        (lambda: k_sparse_probing(Z[:-1], y, Z_test, y_test), "boolean mask of shape"),
        (lambda: k_sparse_probing(Z, y, Z_test[:, :3], y_test), "share no dimension"),
        (lambda: k_sparse_probing(Z, y, Z_test, y_test[:, :3]), "boolean mask of shape"),
        (lambda: k_sparse_probing(Z, y | True, Z_test, y_test), "label 0 holds on all"),
        (lambda: k_sparse_probing(Z, y, Z_test, y_test, ks=(9,)), "ks=9"),
        (lambda: detection(0 * Z, y, Z_test, y_test), "no latent fires"),
        (lambda: splitting_and_absorption((Z, X, y[:, 0] + 0), (Z_test, X_test, y_test[:, 0]), DIRECTIONS), "boolean"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
