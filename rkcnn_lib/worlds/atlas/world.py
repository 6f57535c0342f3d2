"""The fixed world that Atlas's documents are about: places, people, facts and the words of each topic.

Seventeen countries are real and three (Valdoria, Norvane, Kestria) are invented, and so are the people. Facts
about the real places are roughly true; what matters is that they are fixed, so that a model can know them.
"""

from __future__ import annotations

from dataclasses import dataclass

# relation -> (kind of its subject, kind of its object)
RELATIONS: dict[str, tuple[str, str]] = {
    "landmark_city": ("landmark", "city"),
    "landmark_country": ("landmark", "country"),
    "landmark_material": ("landmark", "material"),
    "city_country": ("city", "country"),
    "city_language": ("city", "language"),
    "country_language": ("country", "language"),
    "country_currency": ("country", "currency"),
    "country_capital": ("country", "city"),
    "person_job": ("person", "job"),
    "person_city": ("person", "city"),
}
KINDS = ("landmark", "city", "country", "person", "language", "currency", "material", "job")

# country: language, currency, then its two cities (the first is the capital)
_COUNTRIES = """
France: French, euro, Paris, Lyon
Germany: German, euro, Berlin, Munich
Italy: Italian, euro, Rome, Venice
Spain: Spanish, euro, Madrid, Barcelona
Portugal: Portuguese, euro, Lisbon, Porto
Brazil: Portuguese, real, Brasilia, Rio de Janeiro
Mexico: Spanish, peso, Mexico City, Guadalajara
Japan: Japanese, yen, Tokyo, Kyoto
China: Mandarin, yuan, Beijing, Shanghai
Egypt: Arabic, pound, Cairo, Luxor
Russia: Russian, rouble, Moscow, Saint Petersburg
Turkey: Turkish, lira, Ankara, Istanbul
Poland: Polish, zloty, Warsaw, Krakow
Sweden: Swedish, krona, Stockholm, Gothenburg
Norway: Norwegian, krone, Oslo, Bergen
England: English, pound, London, York
Australia: English, dollar, Canberra, Sydney
Valdoria: Valdorian, crown, Aldermoor, Tessary
Norvane: Norvish, mark, Skarholm, Vintra
Kestria: Kestrian, florin, Keshan, Lorvay
"""

# landmark: city, material
_LANDMARKS = """
Eiffel Tower: Paris, iron
Notre Dame: Paris, limestone
Brandenburg Gate: Berlin, sandstone
Frauenkirche: Munich, brick
Colosseum: Rome, stone
Rialto Bridge: Venice, marble
Prado Museum: Madrid, brick
Sagrada Familia: Barcelona, concrete
Belem Tower: Lisbon, limestone
Clerigos Church: Porto, granite
Alvorada Palace: Brasilia, glass
Christ the Redeemer: Rio de Janeiro, concrete
Angel Column: Mexico City, bronze
Cabanas Museum: Guadalajara, stone
Tokyo Tower: Tokyo, steel
Golden Pavilion: Kyoto, wood
Forbidden City: Beijing, wood
Pearl Tower: Shanghai, steel
Cairo Tower: Cairo, concrete
Karnak Temple: Luxor, sandstone
Kremlin: Moscow, brick
Bronze Horseman: Saint Petersburg, bronze
Ataturk Mausoleum: Ankara, marble
Galata Tower: Istanbul, stone
Sigismund Column: Warsaw, granite
Wawel Castle: Krakow, limestone
Vasa Museum: Stockholm, wood
Poseidon Fountain: Gothenburg, bronze
Opera House: Oslo, marble
Bryggen Wharf: Bergen, wood
Tower Bridge: London, steel
York Minster: York, limestone
Parliament House: Canberra, granite
Harbour Bridge: Sydney, steel
Lantern Spire: Aldermoor, glass
Tide Gate: Tessary, iron
Raven Hall: Skarholm, granite
Whale Arch: Vintra, iron
Moon Mill: Keshan, copper
Silk Bridge: Lorvay, copper
"""

_WOMEN = "Alice Clara Elena Greta Irene Karin Maria Olga Rosa Tessa Wanda Yuki Amina Carmen Emma Fatima Hana Julia"
_MEN = "Bruno David Felix Hugo Jonas Lucas Nils Pedro Stefan Viktor Xavier Zoltan Boris Dimitri George Ivan Kenji"
_JOBS = "baker doctor teacher lawyer pilot nurse painter plumber sailor tailor judge dentist librarian butcher miner"


@dataclass(frozen=True)
class Topic:
    """One subject matter: base forms of its words, and the relations its documents favour."""

    nouns: tuple[str, ...]
    verbs: tuple[str, ...]
    transitive_verbs: tuple[str, ...]
    adjectives: tuple[str, ...]
    favoured: tuple[str, ...]


def _topic(nouns: str, verbs: str, transitive: str, adjectives: str, favoured: str) -> Topic:
    return Topic(*(tuple(words.split()) for words in (nouns, verbs, transitive, adjectives, favoured)))


TOPICS: dict[str, Topic] = {
    "travel": _topic(
        "hotel traveller ticket suitcase map passport ferry guide",
        "arrive depart wander rest return",
        "book board photograph visit",
        "distant cheap crowded scenic foreign",
        "landmark_city landmark_country",
    ),
    "weather": _topic(
        "cloud storm forecast rainbow breeze thermometer umbrella hurricane",
        "rise fade drift darken pass",
        "soak cover threaten chill",
        "cold grey mild humid dark",
        "city_country city_language",
    ),
    "sport": _topic(
        "player coach goalkeeper referee stadium runner team trophy",
        "win lose sprint jump sweat",
        "beat cheer tackle chase",
        "fast injured proud tired strong",
        "person_city city_country",
    ),
    "market": _topic(
        "merchant stall coin price customer basket bargain auction",
        "haggle profit queue gather shout",
        "sell buy weigh trade",
        "costly rich busy honest local",
        "country_currency country_capital",
    ),
    "science": _topic(
        "scientist telescope microscope laboratory planet experiment molecule theory",
        "spin collide react glow fail",
        "measure observe predict explain",
        "precise curious tiny radioactive modern",
        "landmark_material person_job",
    ),
    "music": _topic(
        "singer violin orchestra drummer melody concert composer trumpet",
        "echo improvise rehearse hum end",
        "accompany compose conduct record",
        "loud quiet gentle famous classical",
        "person_city country_language",
    ),
    "kitchen": _topic(
        "cook oven soup recipe spoon pan dessert spice",
        "boil simmer burn cool bubble",
        "stir taste serve flavour",
        "salty sweet fresh hot delicious",
        "person_job country_currency",
    ),
    "garden": _topic(
        "gardener flower tree hedge bee seed fountain spade",
        "bloom grow wither buzz sprout",
        "irrigate plant prune shade",
        "green fragrant wild tall thorny",
        "landmark_material country_language",
    ),
}

# season -> weather words with their probabilities
SEASONS: dict[str, dict[str, float]] = {
    "winter": {"snow": 0.5, "frost": 0.3, "ice": 0.1, "wind": 0.1},
    "spring": {"rain": 0.5, "drizzle": 0.2, "wind": 0.2, "sunshine": 0.1},
    "summer": {"heat": 0.5, "sunshine": 0.3, "thunder": 0.1, "drought": 0.1},
    "autumn": {"fog": 0.4, "wind": 0.3, "rain": 0.2, "frost": 0.1},
}
ADVERBS = ("today", "again", "slowly", "often", "together", "now")
PREPOSITIONS = ("near", "behind", "beside")
SPEECH_VERBS = {"says": 0.6, "writes": 0.25, "whispers": 0.15}

# Grammatical number of the fixed words of the sentence patterns (topic words carry their own).
_SINGULAR = (
    "is was has lies stands belongs works earns lives crosses meets sits leads costs welcomes attracts comes "
    "brings city country heart symbol treasure language currency capital government parliament train border flag "
    "road house centre home job meal says writes whispers south street money"
)
_PLURAL = (
    "are come find speak teach learn take lend know go people Visitors Stamps walls Builders blocks streets "
    "signs schools newspapers Children laws shops banks neighbours Letters"
)
SINGULAR_WORDS = frozenset(_SINGULAR.split()).union(SEASONS, *SEASONS.values())
PLURAL_WORDS = frozenset(_PLURAL.split())


@dataclass(frozen=True)
class World:
    """Entities, the facts that relate them, and the topics.

    Attributes
    ----------
    entities : {kind: tuple of names}
    facts : {relation: {subject: object}}
    pronouns : {person: "She" | "He"}
    topics : {name: Topic}
    """

    entities: dict[str, tuple[str, ...]]
    facts: dict[str, dict[str, str]]
    pronouns: dict[str, str]
    topics: dict[str, Topic]

    def country_of(self, name: str) -> str | None:
        """The country an entity belongs to (None for languages, jobs, ...)."""
        for relation in ("person_city", "landmark_city"):
            name = self.facts[relation].get(name, name)
        name = self.facts["city_country"].get(name, name)
        return name if name in self.entities["country"] else None


def _rows(table: str) -> list[tuple[str, list[str]]]:
    rows = (line.split(": ") for line in table.strip().splitlines())
    return [(name, values.split(", ")) for name, values in rows]


def make_world(n_countries: int = 20, n_people: int = 35, n_topics: int = 8, n_words: int = 8) -> World:
    """The world of Atlas, or a smaller part of it (for tests that enumerate every sentence), in the tables' order.

    ``n_words`` is how many nouns, verbs, transitive verbs and adjectives a topic has at most.
    """
    facts: dict[str, dict[str, str]] = {relation: {} for relation in RELATIONS}
    for country, (language, currency, *cities) in _rows(_COUNTRIES)[:n_countries]:
        facts["country_language"][country] = language
        facts["country_currency"][country] = currency
        facts["country_capital"][country] = cities[0]
        for city in cities:
            facts["city_country"][city] = country
            facts["city_language"][city] = language
    cities = tuple(facts["city_country"])
    for landmark, (city, material) in _rows(_LANDMARKS):
        if city in cities:
            facts["landmark_city"][landmark] = city
            facts["landmark_country"][landmark] = facts["city_country"][city]
            facts["landmark_material"][landmark] = material
    # The strides are prime to the counts: job and city of a person tell nothing about each other.
    pronouns = {name: "She" for name in _WOMEN.split()} | {name: "He" for name in _MEN.split()}
    jobs = _JOBS.split()
    pronouns = dict(list(pronouns.items())[:n_people])
    for i, person in enumerate(pronouns):
        facts["person_job"][person] = jobs[(i * 4 + i // 15) % len(jobs)]
        facts["person_city"][person] = cities[(i * 11 + 3) % len(cities)]
    entities = {kind: () for kind in KINDS}
    for relation, (subject_kind, object_kind) in RELATIONS.items():
        entities[subject_kind] = tuple(dict.fromkeys((*entities[subject_kind], *facts[relation])))
        entities[object_kind] = tuple(dict.fromkeys((*entities[object_kind], *facts[relation].values())))
    topics = {
        name: Topic(*(words[:n_words] for words in vars(topic).values()))
        for name, topic in list(TOPICS.items())[:n_topics]
    }
    return World(entities, facts, pronouns, topics)


def third_person(word: str) -> str:
    """A verb's singular, or (by the same spelling rules) a noun's plural: ferry -> ferries, pass -> passes."""
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "z", "ch", "sh", "o")) else "s")
