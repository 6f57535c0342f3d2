"""Facts for any language model: written tables, three sentences a relation, answers of one token.

The embedded model has facts of its own (:func:`rkcnn_lib.worlds.atlas.fact_prompts`); for other models the
tables below are turned into prompts, of which only those are kept whose answer is one token of the model's
tokenizer. What the model knows of them is for :func:`rkcnn_lib.worlds.prompts.base.screen` to find.
"""

from __future__ import annotations

from typing import Any

from rkcnn_lib.worlds.prompts.base import ROLES, Prompt, Sides, hold_out_entities, is_one_token, written_prompt

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo",
    "Russia": "Moscow", "China": "Beijing", "Egypt": "Cairo", "Greece": "Athens", "Austria": "Vienna",
    "Ireland": "Dublin", "Poland": "Warsaw", "Portugal": "Lisbon", "Sweden": "Stockholm", "Norway": "Oslo",
    "Cuba": "Havana", "Iran": "Tehran", "Iraq": "Baghdad", "Peru": "Lima", "Kenya": "Nairobi",
    "Thailand": "Bangkok", "Hungary": "Budapest", "Finland": "Helsinki", "Denmark": "Copenhagen",
    "England": "London", "Canada": "Ottawa", "Turkey": "Ankara", "Syria": "Damascus", "Lebanon": "Beirut",
    "Vietnam": "Hanoi", "Belgium": "Brussels", "Ukraine": "Kiev", "Libya": "Tripoli", "Chile": "Santiago",
}  # fmt: skip
LANDMARKS = {
    "The Eiffel Tower": "Paris", "The Colosseum": "Rome", "Big Ben": "London", "The Kremlin": "Moscow",
    "The Parthenon": "Athens", "The Brandenburg Gate": "Berlin", "The Forbidden City": "Beijing",
    "The Louvre": "Paris", "The Statue of Liberty": "New", "The Space Needle": "Seattle",
    "The Prado Museum": "Madrid", "The Hagia Sophia": "Istanbul", "Buckingham Palace": "London",
    "The Golden Gate Bridge": "San", "The White House": "Washington", "The Western Wall": "Jerusalem",
    "The Vatican": "Rome", "The Empire State Building": "New", "The Sydney Opera House": "Sydney",
}  # fmt: skip
LANGUAGES = {
    "Paris": "French", "Lyon": "French", "Marseille": "French", "Berlin": "German", "Munich": "German",
    "Hamburg": "German", "Rome": "Italian", "Milan": "Italian", "Naples": "Italian", "Madrid": "Spanish",
    "Barcelona": "Spanish", "Mexico": "Spanish", "Moscow": "Russian", "Petersburg": "Russian", "Tokyo": "Japanese",
    "Osaka": "Japanese", "Kyoto": "Japanese", "Beijing": "Chinese", "Shanghai": "Chinese", "Lisbon": "Portuguese",
    "Porto": "Portuguese", "Cairo": "Arabic", "Baghdad": "Arabic", "Warsaw": "Polish", "Stockholm": "Swedish",
    "Athens": "Greek", "Amsterdam": "Dutch", "Rotterdam": "Dutch", "Seoul": "Korean", "Istanbul": "Turkish",
}  # fmt: skip
# relation -> (table, sentences to screen, to choose A and to judge it on)
RELATIONS = {
    "capital": (
        CAPITALS,
        "{} is a country whose capital is the city of",
        "The government of {} sits in the city of",
        "The capital of {} is the city of",
    ),
    "landmark_city": (
        LANDMARKS,
        "{} is in the city of",
        "{} stands in the city of",
        "{} is located in the city of",
    ),
    "city_language": (
        LANGUAGES,
        "The inhabitants of {} speak fluent",
        "If you live in {}, you should learn to speak",
        "The official language of the city of {} is",
    ),
}


def prompts(model: str, tokenizer: Any, relation: str, sides: Sides | None = None) -> list[Prompt]:
    """Return a relation's prompts in all roles, before screening; see ``tasks.task_prompts``.

    Of atlas's four sentences a relation, each entity is left out of one in the training text: that one judges; of
    the other three one screens and two choose. Of the written tables' three sentences each has one role.
    """
    if model == "atlas":
        return _on_sides(_atlas_prompts(relation), sides)
    if relation not in RELATIONS:
        raise ValueError(f"relation = {relation!r}: known for {model} are {', '.join(RELATIONS)}, agreement, ioi")
    table, *templates = RELATIONS[relation]
    asked = [
        written_prompt(tokenizer, template, entity, answer, role)
        for role, template in zip(ROLES, templates, strict=True)
        for entity, answer in table.items()
        if is_one_token(tokenizer, answer)
    ]
    return _on_sides(asked, sides)


def _atlas_prompts(relation: str) -> list[Prompt]:
    from rkcnn_lib.worlds import atlas

    if relation not in atlas.relations():
        raise ValueError(f"relation = {relation!r}: atlas knows {', '.join(atlas.relations())}, agreement")
    asked, met = [], set()
    for f in [*atlas.fact_prompts(relation, held_out=False), *atlas.fact_prompts(relation, held_out=True)]:
        role = "evaluation" if f.held_out else "selection" if f.subject in met else "screening"
        met.add(f.subject)
        asked.append(Prompt(f.subject, f.prompt, f.ids, f.answer, (f.answer_id,), f.template, f.subject_position, role))
    return asked


def _on_sides(asked: list[Prompt], sides: Sides | None) -> list[Prompt]:
    """Leave out the prompts that would show an entity to both the choice of A and its judgement."""
    chosen, judged = sides or hold_out_entities(asked)
    allowed = {"screening": chosen | judged, "selection": chosen, "evaluation": judged}
    return [p for p in asked if p.entity in allowed[p.role]]
