"""Prompts for causal checks: answers of one token, donors that fit, three roles that share nothing, what is known."""

import re
from types import SimpleNamespace

import pytest
import torch

from rkcnn_lib.worlds import load_model
from rkcnn_lib.worlds.prompts import (
    RELATIONS,
    ROLES,
    Prompt,
    hold_out_entities,
    is_one_token,
    pair_up,
    screen,
    task_prompts,
    written_prompt,
)


class Words:
    """A tokenizer of whole words and marks; words in ``split`` are two tokens."""

    def __init__(self, split=()):
        self.ids, self.split = {}, split

    def encode(self, text):
        found = [1]
        for word in re.findall(r"\w+|[^\w\s]", text):
            pieces = (word[:1], word[1:]) if word in self.split else (word,)
            found += [self.ids.setdefault(piece, len(self.ids) + 2) for piece in pieces]
        return found


@pytest.fixture(scope="module")
def lm():
    return load_model("atlas", device="cpu")


def of_role(prompts, role):
    return [p for p in prompts if p.role == role]


@pytest.mark.parametrize("task", ["landmark_country", "landmark_city", "person_job", "agreement"])
def test_atlas_answers_what_it_is_asked_in_every_role(lm, task):
    prompts = task_prompts("atlas", lm.tokenizer, task)
    for role in ROLES:
        asked = of_role(prompts, role)[:12]
        assert len(asked) >= 8 and len(screen(lm, asked)) >= 0.9 * len(asked)


@pytest.mark.parametrize("task", ["landmark_country", "agreement"])
def test_entities_are_held_out_where_answers_are_shared(lm, task):
    prompts = task_prompts("atlas", lm.tokenizer, task)
    chosen, judged = ({p.entity for p in of_role(prompts, role)} for role in ("selection", "evaluation"))
    assert not chosen & judged and len(judged) >= 8
    assert {p.answer for p in of_role(prompts, "evaluation")} <= {p.answer for p in of_role(prompts, "selection")}


def test_no_sentence_and_entity_meet_in_two_roles(lm):
    for task in ("landmark_city", "agreement"):
        prompts = task_prompts("atlas", lm.tokenizer, task)
        assert len({(p.family, p.entity, p.answer) for p in prompts}) == len({p.text for p in prompts})


@pytest.mark.parametrize("task", [*RELATIONS, "agreement", "ioi"])
def test_written_tasks_give_every_role_pairs_of_equal_length(task):
    prompts = task_prompts("other", Words(), task)
    assert len({p.text for p in prompts}) == len(prompts)
    for role in ROLES:
        pairs = pair_up(of_role(prompts, role), 20, seed=0)
        assert len(pairs) == len(set(pairs)) == 20
        for base, donor in pairs:
            assert len(base.ids) == len(donor.ids) and base.answer != donor.answer
            assert base.family == donor.family and base.entity_position == donor.entity_position


def test_ioi_pairs_differ_in_the_repeated_name_alone():
    prompts = of_role(task_prompts("other", Words(), "ioi"), "evaluation")
    for base, donor in pair_up(prompts, 30, seed=0):
        differing = [i for i, (a, b) in enumerate(zip(base.ids, donor.ids, strict=True)) if a != b]
        assert differing == [base.entity_position] and base.entity == donor.entity
        assert {base.answer, donor.answer} == set(base.entity.split(" and "))
        giver = base.text.split()[[i for i, w in enumerate(base.text.split()) if w == donor.answer][-1]]
        assert giver != base.answer and base.text.count(base.answer) == 1


def test_ioi_has_both_orders_of_the_names_and_names_of_its_own_to_judge_on():
    prompts = task_prompts("other", Words(), "ioi")
    first = {p.answer == p.text.split()[1] for p in prompts}
    assert first == {True, False}
    names = [{name for p in of_role(prompts, role) for name in p.entity.split(" and ")} for role in ROLES]
    assert not names[1] & names[2] and names[1] | names[2] == names[0]


def test_agreement_crosses_a_noun_of_the_other_number():
    prompts = task_prompts("other", Words(), "agreement")
    for p in prompts:
        assert (p.text.split()[-1].endswith("s")) == (p.answer == "singular")
        assert len(p.answer_ids) == 3


def test_words_of_several_tokens_are_left_out_of_tables_and_refused_when_asked_for():
    tokenizer = Words(split={"Mary", "Paris", "keys"})
    assert not is_one_token(tokenizer, "Mary") and is_one_token(tokenizer, "John")
    assert not any("Mary" in p.text for p in task_prompts("other", tokenizer, "ioi"))
    assert not any(p.answer == "Paris" for p in task_prompts("other", tokenizer, "capital"))
    assert not any("key" in p.text for p in task_prompts("other", tokenizer, "agreement"))
    with pytest.raises(ValueError, match="'Paris' is not one token behind"):
        written_prompt(tokenizer, "The capital of {} is", "France", "Paris", "selection")


def test_an_entity_whose_tokens_merge_with_what_follows_is_refused():
    words = Words()
    merging = SimpleNamespace(encode=lambda text: words.encode(text.replace("a b", "a_b")))
    with pytest.raises(ValueError, match="merge"):
        written_prompt(merging, "x {} b", "a", "y", "selection")


def fact(entity, answer, length=4, family="s {}"):
    return Prompt(entity, f"s {entity}", tuple(range(length)), answer, (1,), family, 1, "evaluation")


def test_names_of_different_token_lengths_make_no_pair_and_the_error_says_so():
    with pytest.raises(ValueError, match="equal token length"):
        pair_up([fact("a", "x", 4), fact("b", "y", 5)], 4, seed=0)
    with pytest.raises(ValueError, match="no pair"):
        pair_up([fact("a", "x"), fact("b", "x")], 4, seed=0)


def test_every_prompt_is_a_base_about_as_often(lm):
    prompts = of_role(task_prompts("atlas", lm.tokenizer, "landmark_country"), "evaluation")
    bases = [base for base, _ in pair_up(prompts, 40, seed=0)]
    counts = [bases.count(p) for p in prompts]
    assert max(counts) - min(counts) <= 1 and sum(counts) == 40


def test_entities_take_turns_within_an_answer_or_stay_together():
    shared = [fact(f"{answer}{i}", answer) for answer in "abcdefgh" for i in range(2)]
    chosen, judged = hold_out_entities(shared)
    assert {p[0] for p in chosen} == {p[0] for p in judged} == set("abcdefgh") and not chosen & judged
    chosen, judged = hold_out_entities([fact(str(i), str(i)) for i in range(30)])
    assert chosen == judged and len(chosen) == 30


def test_screening_drops_what_the_model_does_not_answer(lm):
    known = of_role(task_prompts("atlas", lm.tokenizer, "landmark_country"), "screening")[:5]
    wrong = Prompt("x", "x", known[0].ids, "x", known[1].answer_ids, "x", 1, "screening")
    assert screen(lm, [*known, wrong]) == screen(lm, known) and len(screen(lm, known)) >= 4


def test_the_prompts_fit_the_models_vocabulary(lm):
    for p in task_prompts("atlas", lm.tokenizer, "agreement"):
        assert torch.tensor(p.ids).max() < lm.cfg.d_vocab and lm.tokenizer.decode(p.ids[1:]) == p.text
