"""The study behind 06: prompts disjoint, subspaces judged by what can matter, tables as the figures take them."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from rkcnn_lib.measure.causal import captured_variance, orthonormal_basis, random_basis
from rkcnn_lib.measure.effects import CAUSAL
from rkcnn_lib.runs.params import ParameterError, resolve
from rkcnn_lib.studies import causal, causal_subspaces, causal_views
from rkcnn_lib.worlds import load_model
from rkcnn_lib.worlds.prompts import Prompt

HOOK = "blocks.2.hook_resid_post"
SMALL = {
    "model": "atlas", "layer": 2, "relation": "landmark_country", "isolated": "landmark_material", "n_pairs": 20,
    "ranks": [2, 8, 16], "n_seeds": 2, "das_steps": 10, "n_subsets": 60, "n_directions": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def p():
    return resolve("06_causal_checks", SMALL)


@pytest.fixture(scope="module")
def lm():
    return load_model("atlas", device="cpu")


@pytest.fixture(scope="module")
def prompts(lm, p):
    return causal_subspaces.known_prompts(lm, p)


def test_selection_and_judgement_share_neither_prompt_nor_entity(prompts):
    assert prompts.entities_held_out and prompts.known >= 30
    assert not {x.text for x in prompts.selection} & {x.text for x in prompts.evaluation}
    chosen_on, judged_on = (set().union(*pairing.entities) for pairing in (prompts.training, prompts.judged))
    assert not chosen_on & judged_on


def test_the_gate_fails_where_prompts_are_shared(lm, p, prompts, here, rows):
    measured = causal.Measured(pd.DataFrame(), {}, {}, here, rows, None)
    assert all(check.passed for check in causal.checks(prompts, measured, p))
    leaky = dataclasses.replace(prompts, selection=[*prompts.selection, prompts.evaluation[0]])
    failed = [check.name for check in causal.checks(leaky, measured, p) if not check.passed]
    assert failed == ["prompts shared by screening, selection and evaluation"]


def test_a_second_relation_keeps_the_sides_of_the_first(lm, p, prompts):
    other = causal_subspaces.known_prompts(lm, p, like=prompts)
    assert {x.entity for x in other.evaluation} <= {x.entity for x in prompts.evaluation}
    assert {x.entity for x in other.selection} <= {x.entity for x in prompts.selection}


def test_a_relation_the_model_does_not_know_is_refused(lm, p, monkeypatch):
    monkeypatch.setattr(causal_subspaces, "screen", lambda lm, prompts: [])
    with pytest.raises(ValueError, match="knows 0 of 40"):
        causal_subspaces.known_prompts(lm, p)


def test_a_rank_above_what_the_known_prompts_span_is_refused_before_anything_is_captured(lm, p):
    with pytest.raises(ValueError, match=r"ranks = \[2, 128\]: the 40 selection prompts span at most 78 dimensions"):
        causal_subspaces.known_prompts(lm, p.model_copy(update={"ranks": [2, 128]}))


def test_answers_of_several_tokens_and_prompts_of_several_lengths_become_one_tensor():
    def prompt(length, answers):
        return Prompt("e", f"p{length}", tuple(range(1, length + 1)), "a", answers, "f", 1, "selection")

    long, short = prompt(5, (7, 8)), prompt(3, (9,))
    found = causal_subspaces.as_tensors([(long, long), (short, short)], "both")
    assert found.base.tolist() == [[1, 2, 3, 4, 5], [1, 2, 3, 0, 0]] and found.answer.tolist() == [[7, 8], [9, -1]]
    assert found.positions.tolist() == [[1, 4], [1, 2]] and found.lengths.tolist() == [5, 3]
    assert causal_subspaces.as_tensors([(long, long)], "last").positions.tolist() == [[4]]


@pytest.fixture(scope="module")
def rows(lm, p, prompts):
    return causal_subspaces.selection_rows(lm, prompts, p, HOOK)


@pytest.fixture(scope="module")
def here(lm, prompts):
    return causal.ground(lm, prompts.judged, HOOK)


def test_the_supervised_ceiling_turns_nine_of_ten_held_out_answers(lm, p, prompts, here):
    learnt = causal_subspaces.aligned_subspace(lm, p, prompts, HOOK)
    found = here.interval(here.run(learnt.part(8), "ablate"), "interchanged")
    assert found["value"] >= 0.9
    assert learnt.part(8) is learnt.part(8)  # learnt once


def test_the_ceiling_is_judged_causal_and_a_random_subspace_is_not(lm, p, prompts, here, rows):
    ceiling = causal_subspaces.aligned_subspace(lm, p, prompts, HOOK)
    random = [
        causal_subspaces.Subspace("random", s, 1, lambda rank, s=s: random_basis(128, rank, gen(s))) for s in range(2)
    ]
    subspaces = {(one.name, one.seed): one for one in [ceiling, *random]}
    per_pair = {(*key, "ablate"): here.run(one.part(8), "ablate") for key, one in subspaces.items()}
    measured = causal.Measured(pd.DataFrame(), per_pair, subspaces, here, rows, None)
    judged = causal.verdict_table(measured, p, prompts).set_index("subspace")
    assert judged["verdict"]["das"] == CAUSAL and judged["verdict"]["random"] != CAUSAL
    assert judged["share"]["das"] > 0.7 and judged["share"]["random"] < 0.1
    title = causal.verdicts_title(judged.reset_index())
    assert "causal: das" in title


def test_only_a_donor_puts_its_answer_in_the_place_of_what_is_taken_away(lm, p, prompts, here, rows):
    ceiling = causal_subspaces.aligned_subspace(lm, p, prompts, HOOK)
    principal = causal_subspaces.fixed_subspaces(*rows)[1]
    subspaces = {(name, 0): ceiling for name in ("das", "mined", "random", "random_variance")} | {("pca", 0): principal}
    measured = causal.Measured(pd.DataFrame(), {}, subspaces, here, rows, None)
    found = causal_views.by_replacement(lm, p, measured, prompts).set_index(["subspace", "replacement", "metric"])
    value = found["value"]["das"]
    assert value["donor", "interchanged"] > 0.9 and value["zero", "interchanged"] < 0.3
    assert value["mean", "interchanged"] < 0.3 and value["mean", "kl"] > 0.5


def gen(seed):
    return torch.Generator().manual_seed(seed)


def test_verdicts_rest_on_the_rowspace_part_where_one_weight_reads_the_hook(lm, here, rows):
    weight = lm.blocks[2].mlp.W_out.detach()
    null = torch.linalg.svd(weight)[0][:, -1]  # of the 512 hidden dimensions 128 are read
    read = torch.linalg.svd(weight)[0][:, 0]
    mixed = orthonormal_basis((null + read)[None])
    one = causal_subspaces.Subspace("mined", 0, 1, lambda rank: mixed)
    measured = causal.Measured(pd.DataFrame(), {}, {("mined", 0): one}, here, rows, weight)
    judged = measured.judged_part("mined", 0, 1)
    torch.testing.assert_close(judged.abs(), read[:, None].abs().double(), atol=1e-3, rtol=0)
    everywhere = causal.Measured(pd.DataFrame(), {}, {("mined", 0): one}, here, rows, None)
    assert everywhere.judged_part("mined", 0, 1) is mixed


def test_labels_are_shuffled_between_prompts_and_kept_together_over_positions(prompts):
    own = [x.answer for x in prompts.selection]
    shuffled = causal_subspaces.shuffled_answers(prompts.selection, 2, seed=0)
    assert sorted(shuffled[::2]) == sorted(own) and (shuffled[::2] == shuffled[1::2]).all()
    assert np.mean(shuffled[::2] == np.array(own)) < 0.3


def test_shuffling_moves_the_classes_where_each_prompt_has_an_answer_of_its_own():
    prompts = [Prompt(f"e{i}", "", (1, i), f"a{i}", (i,), "f", 1, "selection") for i in range(8)]
    y = np.repeat([prompt.answer for prompt in prompts], 2)
    X = torch.randn(16, 12, generator=gen(0)) + torch.randn(8, 12, generator=gen(1)).repeat_interleave(2, 0)
    directions = torch.eye(12)
    shuffled = causal_subspaces.shuffled_answers(prompts, 2, seed=0)
    assert sorted(shuffled) == sorted(y)
    chosen, twin = (causal_subspaces.ranked_by_separation(directions, X, labels) for labels in (y, shuffled))
    assert not torch.equal(chosen, twin)


def test_random_subspaces_match_the_variance_of_what_they_control_for(rows):
    X, y = rows
    means = causal_subspaces.fixed_subspaces(X, y)[0].part(8)
    like = causal_subspaces.random_like(means, X, seed=0)
    assert captured_variance(like, X) == pytest.approx(captured_variance(means, X), abs=1e-3)


def test_exchanging_tokens_before_the_entity_does_nothing(lm, p, prompts):
    places = causal_views.effect_by_place(lm, p, prompts)
    means = places[places["metric"] == "fractional_decrease"].groupby(["place", "layer"])["value"].mean().unstack()
    entity = int(places.loc[places["arm"].str.contains("entity"), "place"].iloc[0])
    assert means.loc[: entity - 1].abs().max(axis=None) < 1e-4 and means.max(axis=None) > 1
    assert "{entity}" in causal_views.place_title(places, p) or "of 2" in causal_views.place_title(places, p)


def effect_table(mined=1.0, pca=0.5, random=0.0):
    seeds = {"mined": range(5), "random": range(5), "random_variance": range(5), "pca": range(1)}
    means = {"mined": mined, "random": random, "random_variance": random, "pca": pca}
    noise = np.random.default_rng(0)
    return pd.DataFrame([
        {"subspace": name, "rank": 8, "seed": s, "metric": "recovered_share", "value": noise.normal(means[name], 0.01)}
        for name, these in seeds.items()
        for s in these
    ])  # fmt: skip


def test_each_declared_contrast_of_the_mined_subspace_has_a_word_of_its_own():
    def words(**means):
        return {row["contrast"]: row["verdict"] for row in causal.judge_causal(effect_table(**means), 8, 0.1)}

    assert words() == {f"mined - {rival}": "better" for rival in causal.BASELINES}
    assert words(pca=1.5) == words() | {"mined - pca": "worse"}


def test_shares_run_from_the_empty_subspace_to_the_whole():
    values = {("whole", "keep"): 10.0, ("empty", "keep"): -10.0, ("a", "keep"): 0.0, ("a", "ablate"): -10.0}
    table = pd.DataFrame([
        {"subspace": s, "rank": 8, "seed": 0, "intervention": i, "metric": "logit_difference", "value": v}
        for (s, i), v in values.items()
    ])  # fmt: skip
    found = causal.shares(table).set_index("metric")["value"]
    assert found["recovered_share"] == 0.5 and found["fractional_decrease"] == 2.0


def test_the_isolated_relation_must_be_another_one():
    with pytest.raises(ParameterError, match="another relation"):
        resolve("06_causal_checks", SMALL | {"isolated": "landmark_country"})


def test_an_interval_over_seeds_of_a_share_stays_within_0_and_1():
    rows = [
        {"subspace": "mined", "metric": metric, "value": value, "low": np.nan, "high": np.nan}
        for metric in ("interchanged", "kl") for value in (0.7, 1.0, 1.0)
    ]  # fmt: skip
    share, kl = causal.over_seeds(pd.DataFrame(rows), ["subspace", "metric"]).to_dict("records")
    assert share["high"] == 1 < kl["high"] and share["low"] == kl["low"] < share["value"] == kl["value"]


def test_a_prompt_s_card_shows_every_token_of_its_text_and_marks_those_that_matter():
    lm = load_model("modadd", device="cpu")
    base = Prompt("4 + 19", "19 4 =", (19, 4, 113), "23", (23,), "", 1, "evaluation")
    shown = causal_views.as_html(lm, base, base, {1: 0.0, 2: 1.9}, [("as it is", "23", 8.0)])
    assert shown.startswith('<p>19 <span title="0.00 of 2">4</span> <mark title="1.90 of 2">=</mark>')


def test_the_known_circuit_of_modular_addition_carries_the_sum_and_random_dimensions_do_not():
    asked = SMALL | {"model": "modadd", "layer": 0, "hook": "mlp_out", "relation": "sum", "isolated": None,
                     "positions": "last", "context_size": 3}  # fmt: skip
    p, lm = resolve("06_causal_checks", asked), load_model("modadd", device="cpu")
    sums = causal_subspaces.known_prompts(lm, p)
    here = causal.ground(lm, sums.judged, "blocks.0.hook_mlp_out")
    X, y = causal_subspaces.selection_rows(lm, sums, p, here.hook_name)
    circuit = causal_subspaces.circuit_subspace(lm, X, y)
    planes = circuit.part(8)
    assert circuit.part(16).shape == planes.shape == (128, 8)
    kept, taken = here.run(planes, "keep"), here.run(planes, "ablate")
    assert taken["interchanged"].mean() == 1 and kept["top1"].mean() == 1
    assert kept["loss"].mean() < 0.01 < 10 < taken["loss"].mean()  # restricted and excluded, in nats
    plain = here.run(random_basis(128, 8, torch.Generator().manual_seed(0)), "ablate")
    assert plain["interchanged"].mean() == 0 and plain["loss"].mean() < 0.01
    wrong = causal_subspaces.circuit_subspace(lm, X, np.random.default_rng(0).permutation(y)).part(8)
    # Planes fitted to shuffled sums lie where the variance is, which is where the circuit is: near, but not it.
    assert here.run(wrong, "ablate")["interchanged"].mean() < 0.9 and here.run(wrong, "keep")["loss"].mean() > 0.5
