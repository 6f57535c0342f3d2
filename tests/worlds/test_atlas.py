"""Atlas: its grammar is exact, its labels are true, and its committed weights know what it claims."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.embedded import atlas as training
from benchmarks.embedded.scorer import Scorer, entropy, log_probabilities
from rkcnn_lib.worlds import atlas
from rkcnn_lib.worlds.atlas.grammar import BOS_ID, NUMBER, Grammar, expand, wrap
from rkcnn_lib.worlds.atlas.world import TABLES, make_world, third_person


def first_documents(n, seed, held_out=False):
    return list(islice(atlas.document_stream(seed, held_out), n))


def documents_text(*args, **options):
    return [document.text for document in first_documents(*args, **options)]


@pytest.fixture(scope="module")
def documents():
    return first_documents(400, seed=7)


@pytest.fixture(scope="module")
def small_grammar():
    return Grammar(make_world(n_countries=2, n_people=2, n_topics=2, n_words=1))


@pytest.fixture(scope="module")
def figures():
    return training.check(atlas.FOLDER)


def fillings(grammar, sentence, focus):
    """Every way to fill a sentence, slot by slot: (ids, probability). The slow twin of sampling and scoring."""
    partial = [((), (0, grammar.country[focus], 0, 0, focus), 1.0)]
    for slot in sentence.slots:
        longer = []
        for ids, environment, p in partial:
            for word, q in slot.options[environment[slot.reads]].probability.items():
                after = list(environment)
                if slot.sets:
                    after[slot.sets] = grammar.number[word] if slot.sets == NUMBER else word
                longer.append(((*ids, word), tuple(after), p * q))
        partial = longer
    return [(ids, p) for ids, _, p in partial]


def opening_sentences(grammar):
    """{first sentence: probability}, by enumeration over topics, patterns and words."""
    table: Counter = Counter()
    for topic in range(len(grammar.topics)):
        _, logs, sentences = grammar.tables[topic, "opening"]
        for log, sentence in zip(logs, sentences, strict=True):
            for ids, p in fillings(grammar, sentence, 0):
                table[ids] += math.exp(log) * p / len(grammar.topics)
    return table


# ---- the grammar is exact ---------------------------------------------------------------------------------------


def test_enumerated_first_sentences_sum_to_one_and_agree_with_the_scorer(small_grammar):
    table = opening_sentences(small_grammar)
    assert sum(table.values()) == pytest.approx(1, abs=1e-9)
    for ids in random.Random(0).sample(sorted(table), 300):
        scorer = Scorer(small_grammar)
        assert sum(scorer.advance(i) for i in ids) == pytest.approx(math.log(table[ids]), abs=1e-9)


def test_enumerated_next_words_agree_with_the_scorer(small_grammar):
    table = opening_sentences(small_grammar)
    prefix = tuple(small_grammar.ids[w] for w in ("The", "hotel"))
    mass: Counter = Counter()
    for ids, p in table.items():
        if ids[: len(prefix)] == prefix:
            mass[ids[len(prefix)]] += p
    scorer = Scorer(small_grammar)
    for i in prefix:
        scorer.advance(i)
    given = scorer.probabilities()
    assert given == pytest.approx({i: p / mass.total() for i, p in mass.items()})


def test_token_probabilities_sum_to_one_everywhere(documents):
    for document in documents[:25]:
        scorer = Scorer(atlas.grammar())
        for token in (*document.ids[1:], BOS_ID):
            distribution = scorer.probabilities()
            assert sum(distribution.values()) == pytest.approx(1, abs=1e-9)
            assert scorer.advance(token) == pytest.approx(math.log(distribution[token]))


def test_each_document_has_one_derivation(documents):
    # The scorer sums over all derivations, the sampler knows only its own: equal only when there is no other.
    for document in documents:
        total = sum(log_probabilities(document))
        assert total == pytest.approx(document.log_probability, abs=1e-9)


def test_sampled_words_come_as_often_as_the_scorer_says():
    first = Counter(d.ids[1] for d in islice(atlas.document_stream("frequency"), 20_000))
    for token, p in Scorer(atlas.grammar()).probabilities().items():
        assert abs(first[token] / 20_000 - p) < 5 * math.sqrt(p * (1 - p) / 20_000) + 1e-9


def test_entropy_is_the_mean_of_the_token_surprisals(documents):
    surprisals = [-v for d in documents for v in log_probabilities(d)]
    assert entropy(documents) == pytest.approx(np.mean(surprisals))
    assert 1.0 < entropy(documents) < 1.6


def test_scorer_refuses_what_the_grammar_cannot_write():
    scorer = Scorer(atlas.grammar())
    with pytest.raises(ValueError, match="cannot go on with 'Paris'"):
        for word in ("Every", "Paris"):
            scorer.advance(atlas.grammar().ids[word])


def test_optional_parts_and_wrappings_keep_the_whole_probability():
    assert sum(share for share, _ in expand("a [ b ] c [ d ] e")) == pytest.approx(1)
    assert [words for _, words in expand("a [ b ]")] == [["a", "b"], ["a"]]
    for plain in (["a", "."], ["a", "(", "b", ")", "."]):
        assert sum(share for share, _ in wrap(plain)) == pytest.approx(1)


def test_same_seed_same_documents_and_streams_differ():
    assert documents_text(5, seed=3) == documents_text(5, seed=3)
    assert documents_text(5, seed=3) != documents_text(5, seed=4)
    assert not set(documents_text(200, seed=3)) & set(documents_text(200, seed=3, held_out=True))


def test_documents_are_those_the_committed_weights_were_trained_on():
    # A changed grammar needs new weights: train again, then put the new digest here.
    digest = hashlib.sha256("\n".join(documents_text(50, seed=0)).encode()).hexdigest()
    assert digest[:16] == "2bf939c1998d765d"


# ---- words and labels -------------------------------------------------------------------------------------------


def test_words_of_different_topics_and_roles_never_coincide():
    world = make_world()
    nouns = [form for t in world.topics.values() for w in t.nouns for form in (w, third_person(w))]
    verbs = [f for t in world.topics.values() for w in (*t.verbs, *t.transitive_verbs) for f in (w, third_person(w))]
    adjectives = [w for t in world.topics.values() for w in t.adjectives]
    words = nouns + verbs + adjectives + [n for names in world.entities.values() for n in names]
    assert [w for w, n in Counter(words).items() if n > 1] == []
    assert third_person("ferry") == "ferries" and third_person("buy") == "buys" and third_person("pass") == "passes"


def test_facts_relate_the_entities_of_the_world():
    world = make_world()
    assert {k: len(v) for k, v in world.entities.items() if k in ("landmark", "city", "country", "person")} == {
        "landmark": 40,
        "city": 40,
        "country": 20,
        "person": 35,
    }
    for relation, table in world.facts.items():
        assert max(Counter(table.values()).values()) <= 0.25 * len(table), relation
    for landmark, country in world.facts["landmark_country"].items():
        assert country == world.facts["city_country"][world.facts["landmark_city"][landmark]]


def test_labels_agree_with_a_plain_reading_of_the_text(documents):
    names, number = atlas.label_names(), atlas.grammar().number
    for document in documents[:200]:
        labels, tokens = document.labels, document.tokens
        assert {len(values) for values in labels.values()} == {len(tokens)}
        quoted = bracketed = False
        for i, token in enumerate(tokens):
            quoted = not quoted if token == '"' else quoted
            bracketed = token == "(" or (bracketed and token != ")")
            assert (labels["in_quotes"][i], labels["in_brackets"][i]) == (quoted, bracketed)
            entity = names["entity"][labels["entity"][i]]
            assert entity == (token if labels["kind"][i] else "none")
            if labels["fact"][i]:
                relation = names["fact"][labels["fact"][i]]
                subject = names["fact_subject"][labels["fact_subject"][i]]
                assert atlas.facts(relation)[subject] == token
                assert subject in tokens[:i]
            if labels["owed"][i - 1] and not labels["owed"][i]:
                assert number[document.ids[i]] == labels["owed"][i - 1]


def test_topic_words_of_a_document_belong_to_its_topic(documents):
    world = make_world()
    owner = {form: t for t, v in world.topics.items() for w in v.nouns for form in (w, third_person(w))}
    for document in documents:
        topics = {owner[w] for w in document.tokens if w in owner}
        assert topics == {atlas.label_names()["topic"][document.topic]}


def test_contexts_are_whole_documents_one_after_the_other():
    contexts = atlas.labelled_contexts(20, context_size=64, seed=5)
    assert contexts.token_ids.shape == (20, 64) and contexts.token_ids.dtype == torch.int64
    assert bool((contexts.token_ids[:, 0] == BOS_ID).all())
    documents = first_documents(int(contexts.document_ids.max()) + 1, seed=5)
    for row, numbers in zip(contexts.token_ids.numpy(), contexts.document_ids, strict=True):
        for n in np.unique(numbers):
            mine = tuple(row[numbers == n])
            assert mine == documents[n].ids[: len(mine)]
    first = documents[0].labels
    for name, values in contexts.labels.items():
        assert values.shape == (20, 64)
        assert values[0, : len(first[name])].tolist() == first[name][:64]
        assert values.max() < len(contexts.names[name])


# ---- prompts and tokenizer --------------------------------------------------------------------------------------


def test_held_out_prompts_never_occur_and_the_others_do():
    corpus = "\n".join(documents_text(10_000, seed=11))
    for relation in atlas.RELATIONS:
        held_out = training.fact_prompts(relation)
        assert {p.entity for p in held_out} == set(atlas.facts(relation))
        assert not [p.text for p in held_out if p.text in corpus]
        written = training.fact_prompts(relation, held_out=False)
        assert len(written) == 3 * len(held_out)
        assert np.mean([p.text in corpus for p in written]) > 0.95


def test_prompts_of_a_template_have_one_length_and_one_subject_position():
    for relation in atlas.RELATIONS:
        shapes: dict[str, set] = {}
        for p in training.fact_prompts(relation) + training.fact_prompts(relation, held_out=False):
            shapes.setdefault(p.family, set()).add((len(p.ids), p.entity_position))
            assert atlas.grammar().vocabulary[p.ids[p.entity_position]] == p.entity
            assert p.family.format(p.entity) == p.text
            assert atlas.grammar().vocabulary[p.answer_ids[0]] == p.answer == atlas.facts(relation)[p.entity]
        assert len(shapes) == len(TABLES["facts"][relation])
        assert all(len(found) == 1 for found in shapes.values())


def test_tokenizer_gives_the_ids_of_the_grammar(documents):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(atlas.FOLDER)
    assert tokenizer.get_vocab() == atlas.grammar().ids
    assert (tokenizer.bos_token, tokenizer.unk_token, tokenizer.pad_token) == ("<bos>", "<unk>", "<pad>")
    for document in documents:
        assert tuple(tokenizer(document.text).input_ids) == document.ids
        assert tokenizer.decode(document.ids, skip_special_tokens=True) == document.text
    for names in make_world().entities.values():
        for name in names:
            assert tokenizer(name).input_ids == [BOS_ID, atlas.grammar().ids[name]]
    plain = tokenizer.convert_ids_to_tokens(tokenizer("In Mexico City, the Eiffel Tower.").input_ids)
    assert plain == ["<bos>", "In", "Mexico City", "<unk>", "the", "Eiffel Tower", "."]


# ---- the committed weights --------------------------------------------------------------------------------------


def test_held_out_loss_is_near_the_entropy_of_the_grammar(figures):
    assert 0 < figures["gap"] <= 0.2
    assert (atlas.FOLDER / "model.safetensors").stat().st_size <= 10_000_000


def test_model_knows_the_held_out_facts_and_a_bigram_model_does_not(figures):
    assert figures["held-out facts"] >= 0.95
    assert figures["bigram on held-out facts"] <= 0.30
    assert figures["guessing on held-out facts"] <= 0.30


def test_an_untrained_model_meets_no_bar():
    model = training.build_model(training.Settings()).eval()
    loss, exact = training.held_out_loss(model, 60)
    assert loss - exact > 4
    assert training.fact_accuracy(model, "landmark_city") < 0.2


def test_folder_loads_through_transformer_lens_and_answers_paris():
    from transformer_lens import TransformerBridge

    lm = TransformerBridge.boot_transformers(str(atlas.FOLDER))
    prompt = next(p for p in training.fact_prompts("landmark_city") if p.entity == "Eiffel Tower")
    assert prompt.text == "The Eiffel Tower is in the city of"
    ids = lm.to_tokens(prompt.text)
    assert tuple(ids[0].tolist()) == prompt.ids
    logits = lm(ids)
    assert lm.to_string(logits[0, -1].argmax()) == "Paris"
    expected = training.load(atlas.FOLDER)(ids).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


# ---- training ---------------------------------------------------------------------------------------------------

TINY = training.Settings(
    steps=6, d_model=16, n_layers=1, n_heads=2, context_size=32, batch_size=2, warmup=2, checkpoint_every=2
)


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path):
    whole = training.train(tmp_path / "whole", settings=TINY, progress=False)
    halted = training.train(tmp_path / "halted", settings=TINY, stop_at=3, progress=False)
    assert not (halted / "model.safetensors").exists()
    training.train(halted, settings=TINY, progress=False)
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, halted))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads((whole / "config.json").read_text(encoding="utf-8"))["tie_word_embeddings"]
    assert not list(whole.glob("checkpoint*"))


def test_a_half_written_checkpoint_is_ignored(tmp_path):
    training.train(tmp_path, settings=TINY, stop_at=2, progress=False)
    (tmp_path / "checkpoint.part").mkdir()
    (tmp_path / "checkpoint.part" / "weights.safetensors").write_bytes(b"half")
    training.train(tmp_path, settings=TINY, progress=False)
    assert (tmp_path / "model.safetensors").exists()


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    training.train(tmp_path, settings=TINY, stop_at=2, progress=False)
    with pytest.raises(ValueError, match="other settings"):
        training.train(tmp_path, settings=replace(TINY, seed=1), progress=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: atlas.labelled_contexts(0), "n_contexts=0"),
        (lambda: atlas.labelled_contexts(1, context_size=129), "context_size=129"),
        (lambda: entropy([]), "at least one document"),
        (lambda: training.train(atlas.FOLDER / "none", steps=0), "steps is 0"),
        (lambda: training.check(atlas.FOLDER / "none"), "no trained model"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_command_line_reports_what_is_wrong(tmp_path, capsys):
    assert training.main(["check", "--model", str(tmp_path)]) == 2
    assert "no trained model" in capsys.readouterr().err
