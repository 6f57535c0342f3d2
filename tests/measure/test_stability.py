from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from rkcnn_lib.measure.recovery import chance
from rkcnn_lib.measure.stability import (
    pw_max_cosine,
    pw_mcc,
    shared_latents,
    subspace_overlap,
    whitening_of,
)
from rkcnn_lib.sae import SAE, SAEConfig


def dictionary(n: int, d: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=1)


def shuffled(rows: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]


def test_random_dictionaries_agree_at_the_known_chance_level():
    a, b = dictionary(1024, 128, 0), dictionary(1024, 128, 1)
    assert pw_mcc([a, b]) == pytest.approx(0.272, abs=0.003)
    assert pw_max_cosine([a, b]) == pytest.approx(0.298, abs=0.003)


def test_the_same_dictionary_in_another_order_agrees_wholly():
    a = dictionary(40, 16, 0)
    for metric in (pw_mcc, pw_max_cosine):
        assert metric([a, shuffled(a), 3.0 * shuffled(a, 1)]) == pytest.approx(1, abs=1e-5)


def test_sign_counts_except_in_the_older_measure():
    a = torch.eye(16)
    assert pw_mcc([a, -a]) == pytest.approx(0, abs=1e-6)
    assert pw_max_cosine([a, -a]) == pytest.approx(1)


def stretched(n: int, spread: torch.Tensor, seed: int) -> torch.Tensor:
    """Unit directions drawn as activations with these standard deviations lie."""
    drawn = torch.randn(n, len(spread), generator=torch.Generator().manual_seed(seed)) * spread
    return torch.nn.functional.normalize(drawn, dim=1)


def whitened(dictionaries, covariance):
    whitening = whitening_of(covariance, len(covariance))
    return [rows.double() @ whitening for rows in dictionaries]


def test_dictionaries_that_only_share_where_the_data_vary_agree_at_chance_once_whitened():
    spread = torch.linspace(1, 30, 12).square()
    pair = [stretched(60, spread, seed) for seed in (0, 1)]
    white = chance("matched_cosine", 60, 60, 12, n_draws=20)
    assert pw_mcc(pair) > white.upper + 0.1, "else nothing to see through"
    assert pw_mcc(whitened(pair, torch.diag(spread.square()))) == pytest.approx(white.mean, abs=0.03)


def test_the_same_latents_agree_whitened_and_dead_ones_do_not_count():
    a = dictionary(40, 12, 0)
    b = a.clone()
    b[30:] = dictionary(10, 12, 1)
    mixing = torch.randn(12, 12, generator=torch.Generator().manual_seed(2))
    live = [torch.arange(40) < 30] * 2
    white = whitened([a, b], mixing @ mixing.T)
    assert pw_mcc(white, live) == pytest.approx(1, abs=1e-5)
    assert chance("matched_cosine", 30, 30, 12, n_draws=20).upper < 0.7
    raw = whitened([a, b], torch.eye(12))
    assert pw_mcc(raw, live) == pytest.approx(pw_mcc([a, b], live), abs=1e-6)


def test_dimensions_that_do_not_vary_are_left_out_of_the_whitening():
    a, b = dictionary(20, 6, 0), dictionary(20, 6, 1)
    b[:, :4] = a[:, :4]
    variances = torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0, 1e-9])
    assert pw_mcc(whitened([a, b], torch.diag(variances))) == pytest.approx(1, abs=1e-5)
    for covariance, message in [
        (torch.zeros(6, 6), "no positive variance"),
        (torch.eye(5), "symmetric"),
        (torch.ones(6, 6).triu(), "symmetric"),
    ]:
        with pytest.raises(ValueError, match=message):
            whitening_of(covariance, 6)


def test_partners_are_not_shared():
    """All of b near one row of a: one match is good, the others are not; best-of-all would be near 1."""
    a = torch.eye(4)
    b = torch.nn.functional.normalize(a[:1] + 0.01 * dictionary(4, 4, 0), dim=1)
    assert pw_mcc([a, b]) < 0.3


def test_matching_equals_trying_all_assignments():
    a, b = dictionary(5, 4, 0), dictionary(5, 4, 1)
    cosines = (a @ b.T).numpy()
    best = max(np.mean([cosines[i, j] for i, j in enumerate(order)]) for order in permutations(range(5)))
    assert pw_mcc([a, b]) == pytest.approx(best, abs=1e-6)


def test_pairs_of_seeds_are_averaged():
    a, b, c = (dictionary(20, 8, seed) for seed in range(3))
    expected = np.mean([pw_mcc([a, b]), pw_mcc([a, c]), pw_mcc([b, c])])
    assert pw_mcc([a, b, c]) == pytest.approx(expected)


def test_killing_latents_raises_the_mean():
    common = dictionary(10, 32, 0)
    a, b = (torch.cat([common, dictionary(30, 32, seed)]) for seed in (1, 2))
    only_common = torch.arange(40) < 10
    assert pw_mcc([a, b], live=[only_common, only_common]) == pytest.approx(1, abs=1e-5)
    assert pw_mcc([a, b]) < 0.6
    nothing = torch.zeros(40, dtype=torch.bool)
    for metric in (pw_mcc, pw_max_cosine):
        assert metric([a, b], live=[only_common, nothing]) == 0.0


def sae_with(decoder: torch.Tensor, encoder: torch.Tensor | None = None) -> SAE:
    sae = SAE(SAEConfig(decoder.shape[1], len(decoder), k=1))
    with torch.no_grad():
        sae.W_dec.copy_(decoder)
        sae.W_enc.copy_((decoder if encoder is None else encoder).T)
    return sae


def test_shared_latents_need_encoder_and_decoder_to_agree():
    a = dictionary(40, 64, 0)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    b = a[order].clone()
    assert shared_latents([sae_with(a), sae_with(b)]) == 1.0
    b[:10] = dictionary(10, 64, 3)  # ten of forty are other directions
    assert shared_latents([sae_with(a), sae_with(b)]) == 0.75
    swapped = a[order].clone()
    swapped[[0, 1]] = swapped[[1, 0]]  # decoders match, two encoders name another partner
    assert shared_latents([sae_with(a), sae_with(a[order], swapped)]) == 0.95
    live = torch.arange(40) < 20
    assert shared_latents([sae_with(a), sae_with(a)], live=[live, live]) == 0.5


def test_random_saes_share_nothing_and_chance_says_so():
    assert shared_latents([sae_with(dictionary(64, 32, 0)), sae_with(dictionary(64, 32, 1))]) < 0.1
    level = chance("recovery_rate", 64, 64, 32, n_draws=20, threshold=0.7)
    assert 0 <= level.mean <= level.upper < 0.1
    # in few dimensions agreement comes by itself
    assert chance("recovery_rate", 64, 64, 3, n_draws=20, threshold=0.7).mean > 0.8


@pytest.mark.parametrize("metric", [pw_mcc, pw_max_cosine])
def test_bad_input_is_refused(metric):
    a = dictionary(6, 4, 0)
    for arguments, named in [
        (([a],), "at least two seeds"),
        (([],), "at least two seeds"),
        (([a, dictionary(5, 4, 1)],), "differ in shape"),
        (([a, torch.full((6, 4), torch.nan)],), "NaN"),
        (([a, a], [torch.ones(6), torch.ones(5)]), "live"),
    ]:
        with pytest.raises(ValueError, match=named):
            metric(*arguments)
    with pytest.raises(ValueError, match="threshold=0"):
        shared_latents([sae_with(a), sae_with(a)], threshold=0)


def test_spans_overlap_wholly_whatever_the_basis_and_by_chance_as_ranks_over_width():
    rng = torch.Generator().manual_seed(0)
    rows, mix = torch.randn(6, 40, generator=rng), torch.randn(6, 6, generator=rng)
    assert subspace_overlap(rows, mix @ rows) == pytest.approx(1.0, abs=1e-5)
    assert subspace_overlap(rows[:2], rows) == pytest.approx(1.0, abs=1e-5)
    assert subspace_overlap(torch.eye(40)[:6], torch.eye(40)[6:12]) == pytest.approx(0.0, abs=1e-6)
    by_chance = chance(subspace_overlap, 10, 10, 40, n_draws=50)
    assert by_chance.mean == pytest.approx(10 / 40, abs=0.02)


def test_copies_of_a_direction_add_nothing_to_a_span():
    row = torch.randn(1, 20, generator=torch.Generator().manual_seed(1))
    other = torch.randn(1, 20, generator=torch.Generator().manual_seed(2))
    once = subspace_overlap(row, other)
    assert subspace_overlap(row.repeat(5, 1), other) == pytest.approx(once, abs=1e-6)
