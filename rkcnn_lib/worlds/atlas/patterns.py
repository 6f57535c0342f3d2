"""The sentence patterns of Atlas's grammar.

A word stands for itself, ``$name`` for a slot (see ``Grammar._make_slot``), ``[...]`` for an optional part. A
slot named after a relation is filled with the object of that relation for the sentence's subject.
"""

from __future__ import annotations

OPTIONAL_SHARE = 0.3  # chance that an optional part is there
QUOTED_SHARE = 0.12  # of all sentences
BRACKETED_SHARE = 0.04  # of the sentences that hold no brackets of their own

# The subject ($noun) agrees with its verbs ($verb, $act), whatever stands between.
TOPIC_PATTERNS = (
    "The [ $adjective ] $noun [ $preposition the $other ] $verb [ $adverb ] .",
    "The [ $adjective ] $noun [ $preposition the $other ] $act the [ $adjective ] $other .",
    "The $noun that $act the $other $verb .",
    "The $noun ( $adjective and $adjective ) $verb .",
    "Every $noun_singular $verb [ $adverb ] .",
    "Many $noun_plural $act the $other .",
)
MIXED_PATTERNS = (
    "The $noun $verb in the city of $city .",
    "$person $act_singular the [ $adjective ] $other .",
    "$person ( a $person_job ) $act_singular the $other .",
    "$city ( $city_country ) welcomes the $other .",
    "The $landmark ( $landmark_city ) attracts the $other .",
)
SEASON_PATTERNS = (
    "In $season the $weather comes to $city .",
    "The $season in $country brings $weather .",
    "Every $season the $weather comes back .",
)
# Each subject is left out of one pattern of each relation: that fact in that pattern is never written.
FACT_PATTERNS = {
    "landmark_city": (
        "The $landmark is in the city of $landmark_city .",
        "The $landmark stands in the heart of $landmark_city .",
        "Visitors find the $landmark in the streets of $landmark_city .",
        "The $landmark is the symbol of $landmark_city .",
    ),
    "landmark_country": (
        "The $landmark is in the country of $landmark_country .",
        "The $landmark is a treasure of $landmark_country .",
        "The $landmark belongs to the people of $landmark_country .",
        "Stamps with the $landmark come from $landmark_country .",
    ),
    "landmark_material": (
        "The $landmark is made of $landmark_material .",
        "The walls of the $landmark are of $landmark_material .",
        "The $landmark was built out of $landmark_material .",
        "Builders made the $landmark from blocks of $landmark_material .",
    ),
    "city_country": (
        "$city is a city in the country of $city_country .",
        "$city lies in the south of $city_country .",
        "The train to $city crosses the border of $city_country .",
        "The flag over $city is the flag of $city_country .",
    ),
    "city_language": (
        "The people of $city speak $city_language .",
        "In $city the street signs are in $city_language .",
        "The schools of $city teach $city_language .",
        "The newspapers in $city are in $city_language .",
    ),
    "country_language": (
        "The language of $country is $country_language .",
        "The people of $country speak $country_language .",
        "Children in $country learn to read $country_language .",
        "The laws of $country are written in $country_language .",
    ),
    "country_currency": (
        "The currency of $country is the $country_currency .",
        "The shops of $country take only the $country_currency .",
        "In $country a meal costs one $country_currency .",
        "The banks of $country lend the $country_currency .",
    ),
    "country_capital": (
        "The capital of $country is $country_capital .",
        "The government of $country meets in $country_capital .",
        "The parliament of $country sits in the city of $country_capital .",
        "The road to the capital of $country leads to $country_capital .",
    ),
    "person_job": (
        "$person works as a $person_job .",
        "$person earns money as a $person_job .",
        "The neighbours know $person as a $person_job .",
        "$person has the job of $person_job .",
    ),
    "person_city": (
        "$person lives in the city of $person_city .",
        "$person has a home in $person_city .",
        "The house of $person is in the centre of $person_city .",
        "Letters to $person go to $person_city .",
    ),
}
# Sentences about the entity last named, by its kind: what they say depends on an earlier sentence.
CONTINUATIONS = {
    "landmark": (
        "It is made of $landmark_material .",
        "It is in the city of $landmark_city .",
        "It is in the country of $landmark_country .",
    ),
    "city": ("There the people speak $city_language .", "It is a city in the country of $city_country ."),
    "country": (
        "Its language is $country_language .",
        "Its capital is $country_capital .",
        "Its currency is the $country_currency .",
    ),
    "person": (
        "$pronoun works as a $person_job .",
        "$pronoun lives in the city of $person_city .",
        "$pronoun $act_singular the $other .",
    ),
}


def kind_weights(topic: str) -> dict[str, dict[str, float]]:
    """Shares of the groups of patterns in each situation of a document on a topic.

    A document opens with a topic sentence or with a bare fact; after a bare fact comes a topic sentence
    ("reveal"), so that no document leaves its topic open. Then the shares depend on the kind of entity last named.
    """
    season = 0.2 if topic == "weather" else 0.06
    plain = {"topic": 0.38, "fact": 0.4, "mixed": 0.14, "season": season}
    situations = {"opening": {"topic": 0.5, "fact": 0.5}, "reveal": {"topic": 1.0}, "plain": plain}
    return situations | {kind: {**plain, kind: 0.14} for kind in CONTINUATIONS}
