"""Metrics with known values, intervals that know about entities, and verdicts on planted subspaces."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn.functional import one_hot

from rkcnn_lib.measure.causal import (
    NO_TOKEN,
    PromptPairs,
    captured_variance,
    clean_logits,
    donor_activations,
    patched_logits,
    random_basis,
    random_basis_of_variance,
    token_set_logits,
)
from rkcnn_lib.measure.effects import (
    CAUSAL,
    INCONCLUSIVE,
    PREDICTIVE_ONLY,
    effects,
    entity_interval,
    entity_proportion,
    fractional_decrease,
    interchange_shares,
    recovered_share,
    scrubbed_loss_recovered,
    subspace_verdict,
    tells_apart,
)
from tests.measure.planted_reader import HOOK, LABELS, D, PlantedReader

TOKENS = torch.arange(6)
PAIRS = PromptPairs(TOKENS[:, None], TOKENS.roll(1)[:, None], TOKENS, TOKENS.roll(1))


def test_interchange_is_counted_where_the_donor_answers():
    logits = one_hot(PAIRS.foil[:, 0], 6).float()
    found = effects(logits, logits, PAIRS)
    assert found["interchanged"].mean() == 1 and found["top1"].mean() == 0 and found["kl"].max() == 0
    assert (found["logit_difference"] == -1).all()


def test_loss_and_kl_equal_their_definitions():
    clean, patched = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0))
    found = effects(clean, patched, PAIRS)
    loss = torch.nn.functional.cross_entropy(patched, TOKENS, reduction="none")
    torch.testing.assert_close(found["loss"], loss)
    kl = torch.nn.functional.kl_div(patched.log_softmax(-1), clean.log_softmax(-1), log_target=True, reduction="none")
    torch.testing.assert_close(found["kl"], kl.sum(-1))


def test_an_answer_may_be_any_token_of_a_class():
    logits = torch.tensor([[1.0, 2.0, 3.0, 0.0]])
    tokens = torch.tensor([[1, 2, NO_TOKEN]])
    assert float(token_set_logits(logits, tokens)) == pytest.approx(math.log(math.exp(2) + math.exp(3)))
    pair = PromptPairs(torch.zeros(1, 1).long(), torch.zeros(1, 1).long(), tokens, torch.tensor([[0, 3, NO_TOKEN]]))
    found = effects(logits, logits, pair)
    assert found["top1"] == 1 and found["interchanged"] == 0


def test_recovered_share_runs_from_empty_to_whole():
    assert recovered_share(0.0, 0.0, 2.0) == 0 and recovered_share(2.0, 0.0, 2.0) == 1
    with pytest.raises(ValueError, match="nothing to share"):
        recovered_share(1.0, 3.0, 3.0)


def test_fractional_decrease_is_two_where_the_difference_is_turned_round():
    clean = torch.tensor([2.0, 4.0])
    assert fractional_decrease(clean, clean) == 0 and fractional_decrease(clean, -clean) == 2


def test_interchange_shares_average_to_one_for_the_whole_activation():
    clean, full = torch.tensor([3.0, 5.0]), torch.tensor([-3.0, -4.0])
    assert float(interchange_shares(clean, full, full).mean()) == pytest.approx(1)
    assert not interchange_shares(clean, clean, full).any()
    with pytest.raises(ValueError, match="nothing to share"):
        interchange_shares(clean, full, clean)


def test_scrubbing_that_keeps_every_loss_recovers_all_and_cancelling_errors_show():
    random, model = torch.tensor([4.0, 4.0]), torch.tensor([1.0, 1.0])
    assert scrubbed_loss_recovered(random, model, model) == {"mean": 1.0, "per_example": 1.0}
    assert scrubbed_loss_recovered(random, random, model) == {"mean": 0.0, "per_example": 0.0}
    cancelling = scrubbed_loss_recovered(random, torch.tensor([0.0, 2.0]), model)
    assert cancelling["mean"] == 1.0 and cancelling["per_example"] == pytest.approx(2 / 3)


def test_intervals_over_entities_are_wider_than_over_pairs_that_repeat_them():
    rng = np.random.default_rng(0)
    covered, n_entities = 0, 12
    for _ in range(200):
        effect = rng.normal(size=n_entities)
        base = rng.permutation(np.repeat(np.arange(n_entities), 6))
        donor = (base + rng.integers(1, n_entities, len(base))) % n_entities
        values = effect[base] + effect[donor] + 0.1 * rng.normal(size=len(base))
        _, low, high = entity_interval(values, base, donor)
        covered += low < 0 < high
    assert 0.88 <= covered / 200 <= 1
    _, low, high = entity_interval([1.0, 2.0], ["a", "a"], ["b", "b"])
    assert (low, high) == (-math.inf, math.inf)


@pytest.mark.parametrize(("a", "b"), [(9, 1), (0.9, 0.1), (3, 3)])
def test_proportions_stay_in_range_and_cover_the_truth(a, b):
    rng = np.random.default_rng(1)
    covered, n_entities = 0, 12
    for _ in range(200):
        chance_of = rng.beta(a, b, n_entities)  # each entity is right with a probability of its own
        base = rng.permutation(np.repeat(np.arange(n_entities), 6))
        donor = (base + rng.integers(1, n_entities, len(base))) % n_entities
        values = (rng.random(len(base)) < chance_of[base]).astype(float)
        mean, low, high = entity_proportion(values, base, donor)
        assert 0 <= low <= mean <= high <= 1 and low < high
        covered += low <= a / (a + b) <= high
    assert covered / 200 >= 0.94


def test_proportions_are_never_certain_and_one_wrong_pair_makes_none_surer():
    base, donor = zip(*((i, j) for i in range(20) for j in range(20) if i != j), strict=True)
    values, lows = np.ones(380), []
    for wrong in (0, 1, 5, 60):
        values[:wrong] = 0
        lows.append(entity_proportion(values, base, donor)[1])
    assert 0.7 < lows[0] < 0.9 and lows == sorted(lows, reverse=True)
    mirrored = entity_proportion(1 - values, base, donor)
    assert 1 - mirrored.high == pytest.approx(lows[-1])
    assert entity_proportion(np.ones(20), list("abcde") * 4, list("bcdea") * 4).low < 0.5  # five entities are no twenty
    assert entity_proportion([1.0, 1.0], ["a", "b"], ["b", "a"])[1:] == (0, 1)


def test_proportions_of_pairs_that_share_nothing_are_clopper_and_pearson_s_of_half_as_many():
    names = [f"e{i}" for i in range(400)]  # leaving out either of its two entities leaves out a pair: counted twice
    values = (np.arange(200) < 30).astype(float)
    _, low, high = entity_proportion(values, names[:200], names[200:])
    exact = stats.binomtest(15, 100).proportion_ci()
    assert low == pytest.approx(exact.low, abs=0.005) and high == pytest.approx(exact.high, abs=0.005)


def test_coordinates_that_hold_the_label_tell_apart_and_noise_does_at_chance():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c"], 30)
    signal = torch.as_tensor(np.eye(3)[np.repeat(range(3), 30)] * 4 + rng.normal(size=(90, 3)))
    foils = np.roll(labels, 30)
    assert tells_apart(signal, labels, signal, labels, foils).mean() > 0.95
    many = [
        tells_apart(torch.randn(90, 3), labels, torch.randn(90, 3), labels, foils).mean()
        for _ in range(20)
    ]  # fmt: skip
    assert abs(np.mean(many) - 0.5) < 0.06
    assert tells_apart(signal[:1], ["a"], signal, labels, ["new"]).tolist() == [0.5]


class Judge:
    """Judges subspaces of a planted reader as the study does: interchange shares beside ten random controls."""

    def __init__(self, seed):
        self.lm = PlantedReader(seed)
        self.pairs = self.lm.pairs(seed)
        self.donated = donor_activations(self.lm, self.pairs, HOOK)
        self.clean = clean_logits(self.lm, self.pairs)
        self.full = self.difference(None, "keep")
        self.X = self.lm.embed[: self.lm.n].detach()
        self.own = self.difference(None, "ablate")
        self.names = [t[:, 0].tolist() for t in (self.pairs.base, self.pairs.donor)]

    def difference(self, A, mode):
        logits = patched_logits(self.lm, self.pairs, HOOK, A, mode, self.donated)
        return effects(self.clean, logits, self.pairs)["logit_difference"]

    def shares(self, A):
        return interchange_shares(self.own, self.difference(A, "ablate"), self.full)

    def verdict(self, A, seed=0):
        rank, share = A.shape[1], captured_variance(A, self.X)
        generators = [torch.Generator().manual_seed(seed * 1000 + draw) for draw in range(5)]
        controls = [random_basis(D, rank, g) for g in generators]
        controls += [random_basis_of_variance(self.X, rank, share, g) for g in generators]
        labels = self.lm.labels.numpy()
        here = self.X @ A.float()
        base, donor = (t[:, 0] for t in (self.pairs.base, self.pairs.donor))
        predicted = tells_apart(here[base], labels[base], here, labels, labels[donor])
        return subspace_verdict(
            self.shares(A), [self.shares(C) for C in controls], predicted, *self.names, 0.1, 0.1
        ).verdict


def test_the_read_subspace_is_causal_and_the_decoy_predictive_only_in_nineteen_of_twenty_seeds():
    judges = [Judge(seed) for seed in range(20)]
    assert sum(judge.verdict(judge.lm.basis(0, 1)) == CAUSAL for judge in judges) >= 19
    assert sum(judge.verdict(judge.lm.basis(2, 3)) == PREDICTIVE_ONLY for judge in judges) >= 19


@pytest.mark.slow
def test_a_random_subspace_is_never_causal_in_a_hundred():
    judges = [Judge(seed) for seed in range(5)]
    found = [
        judges[i % 5].verdict(random_basis(D, 2, torch.Generator().manual_seed(7 + i)), seed=1 + i) for i in range(100)
    ]
    assert CAUSAL not in found


def test_a_large_effect_that_its_variance_explains_is_neither_causal_nor_predictive_only():
    share, names = torch.full((12,), 0.8), ([*"abcdefabcdef"], [*"bcdefacdefab"])
    noise = 0.01 * torch.randn(12, generator=torch.Generator().manual_seed(0))
    found = subspace_verdict(share + noise, [share], np.ones(12), *names, 0.1, 0.1)
    assert found.verdict == INCONCLUSIVE


def test_more_subspaces_judged_together_widen_the_interval():
    share = 0.5 + 0.1 * torch.randn(12, generator=torch.Generator().manual_seed(0))
    names = ([*"abcdefabcdef"], [*"bcdefacdefab"])
    one, ten = (subspace_verdict(share, [torch.zeros(12)], np.ones(12), *names, 0.1, 0.1, n_judged=n) for n in (1, 10))
    assert ten.advantage.high - ten.advantage.low > one.advantage.high - one.advantage.low


def test_the_planted_model_answers_its_labels():
    judge = Judge(0)
    assert effects(judge.clean, judge.clean, judge.pairs)["top1"].mean() == 1 and LABELS == 4
