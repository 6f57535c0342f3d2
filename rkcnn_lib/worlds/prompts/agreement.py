"""Subject-verb agreement across a noun of the other number: "The player near the coaches" -> a singular verb
(Linzen, Dupoux & Goldberg 2016, "Assessing the ability of LSTMs to learn syntax-sensitive dependencies", TACL 4).

The answer is a class of tokens, singular or plural verbs; base and donor differ in the number of one noun.
"""

from __future__ import annotations

from typing import Any

from rkcnn_lib.worlds.prompts.base import ROLES, Prompt, is_one_token, written_prompt

NOUNS = {
    "key": "keys", "dog": "dogs", "teacher": "teachers", "car": "cars", "book": "books", "picture": "pictures",
    "student": "students", "house": "houses", "bird": "birds", "doctor": "doctors", "letter": "letters",
    "report": "reports", "girl": "girls", "boy": "boys", "tree": "trees", "painter": "painters",
    "machine": "machines", "guard": "guards", "song": "songs", "door": "doors",
}  # fmt: skip
ATTRACTORS = ("cabinet", "cabinets"), ("window", "windows"), ("garden", "gardens"), ("table", "tables")
VERBS = {"singular": ("is", "was", "has"), "plural": ("are", "were", "have")}
PREPOSITIONS = {"screening": "near", "selection": "beside", "evaluation": "behind"}
FRAME, ATLAS_FRAME = "I know that the {{}} {} the", "The {{}} {} the"  # a bare start leaves small models too free


def prompts(model: str, tokenizer: Any) -> list[Prompt]:
    """Return the task's prompts, the nouns for choosing and judging disjoint; atlas's are made of its own words."""
    if model == "atlas":
        return _atlas_prompts()
    nouns = {one: many for one, many in NOUNS.items() if all(is_one_token(tokenizer, n) for n in (one, many))}
    found = []
    for role in ROLES:
        for i, (one, many) in enumerate(nouns.items()):
            if not _takes_part(role, i):
                continue
            attractors = ATTRACTORS[i % len(ATTRACTORS)]
            for noun, number, other in ((one, "singular", attractors[1]), (many, "plural", attractors[0])):
                sentence = FRAME.format(PREPOSITIONS[role])
                template = f"{sentence} {other}"
                prompt = written_prompt(tokenizer, template, noun, number, role, accepted=VERBS[number])
                found.append(_of_family(prompt, one, sentence))
    return found


def _takes_part(role: str, i: int) -> bool:
    """Screen on all nouns, choose on every other one, judge on the rest."""
    return role == "screening" or (i % 2 == 0) == (role == "selection")


def _of_family(prompt: Prompt, lemma: str, sentence: str) -> Prompt:
    """Let a noun be an entity in both its numbers, and all nouns of a sentence each other's donors."""
    return Prompt(
        lemma, prompt.text, prompt.ids, prompt.answer, prompt.answer_ids, sentence, prompt.entity_position, prompt.role
    )


def _atlas_prompts() -> list[Prompt]:
    from rkcnn_lib.worlds.atlas.documents import grammar
    from rkcnn_lib.worlds.atlas.grammar import BOS
    from rkcnn_lib.worlds.atlas.world import third_person

    known = grammar()
    verbs = {verb for t in known.world.topics.values() for verb in (*t.verbs, *t.transitive_verbs)}
    accepted = {
        "singular": tuple(known.ids[third_person(verb)] for verb in sorted(verbs)),
        "plural": tuple(known.ids[verb] for verb in sorted(verbs)),
    }
    found = []
    for topic in known.world.topics.values():
        for i, noun in enumerate(topic.nouns):
            other = topic.nouns[(i + 1) % len(topic.nouns)]  # of the same topic, as the grammar has it
            forms = ((noun, "singular", third_person(other)), (third_person(noun), "plural", other))
            for role in ROLES:
                for word, number, attractor in forms if _takes_part(role, i) else ():
                    sentence = ATLAS_FRAME.format(PREPOSITIONS[role])
                    words = (*sentence.format(word).split(), attractor)
                    ids = tuple(known.ids[w] for w in (BOS, *words))
                    found.append(Prompt(noun, " ".join(words), ids, number, accepted[number], sentence, 2, role))
    return found
