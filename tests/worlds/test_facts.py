"""Fact prompts: single-token answers, equal lengths, no repeats, and only what the model knows."""

import pytest

from rkcnn_lib.worlds import load_model
from rkcnn_lib.worlds.facts import RELATIONS, Fact, fact_prompts, pair_up, screen


@pytest.fixture(scope="module")
def lm():
    return load_model("atlas", device="cpu")


def test_atlas_asks_held_out_wordings_it_was_not_chosen_on(lm):
    chosen, judged = (fact_prompts("atlas", lm.tokenizer, "landmark_city", held_out=h) for h in (False, True))
    assert chosen and judged and not {f.prompt for f in chosen} & {f.prompt for f in judged}


def test_screening_keeps_what_the_model_answers_and_drops_what_it_does_not(lm):
    facts = fact_prompts("atlas", lm.tokenizer, "landmark_city", held_out=True)[:5]
    wrong = Fact(facts[0].subject, facts[0].prompt, facts[0].ids, "x", facts[1].answer_id)
    assert screen(lm, facts) == facts and wrong not in screen(lm, [*facts, wrong])


def test_pairs_are_equally_long_differ_in_answer_and_do_not_repeat(lm):
    pairs = pair_up(fact_prompts("atlas", lm.tokenizer, "landmark_city", held_out=True), 40, seed=0)
    assert len(pairs) == len(set(pairs)) == 40
    assert all(len(a.ids) == len(b.ids) and a.answer_id != b.answer_id for a, b in pairs)


def test_an_unknown_relation_is_refused_with_the_known_ones(lm):
    with pytest.raises(ValueError, match="landmark_city"):
        fact_prompts("atlas", lm.tokenizer, "colour", held_out=True)
    with pytest.raises(ValueError, match="capital"):
        fact_prompts("other", lm.tokenizer, "colour", held_out=True)


def test_facts_that_make_no_pair_are_refused(lm):
    with pytest.raises(ValueError, match="no pair"):
        pair_up(fact_prompts("atlas", lm.tokenizer, "landmark_city", held_out=True)[:1], 4, seed=0)


def test_selection_and_judging_templates_differ():
    assert all(chosen != judged for _, chosen, judged in RELATIONS.values())
