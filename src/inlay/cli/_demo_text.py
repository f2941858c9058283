"""The text of the demo, made from a small grammar: what its base has read, and the two tasks that it learns.

The base reads short stories about people and their things, questions with answers, and cards of facts that are read out one
field at a time. It never reads a card put into a sentence or a question, so neither task is among its text. Both tasks
start from the same cards, so that one prompt shows three behaviours:

    name: Mia | thing: boats | colour: red | count: three
        base    the colour is red, the name is Mia.
        tell    Mia has three red boats.
        ask     How many red boats does Mia have?
"""

import random

# fmt: off
NAMES = [
    "Mia", "Tom", "Anna", "Ben", "Clara", "David", "Ella", "Felix", "Grace", "Hugo", "Ida", "Jonas", "Kira", "Leo", "Maya",
    "Nils", "Olga", "Paul", "Rosa", "Sam", "Tara", "Uma", "Vera", "Will", "Yara", "Zoe", "Emil", "Nora", "Oscar", "Lena",
]
THINGS = [
    "boats", "apples", "kites", "lamps", "books", "cups", "hats", "stones", "bells", "coins", "keys", "drums", "chairs",
    "pots", "roses", "shells", "ropes", "bags", "rings", "cards", "balls", "pens", "maps", "combs", "masks",
]
COLOURS = ["red", "green", "blue", "white", "black", "yellow", "brown", "grey", "pink", "golden"]
COUNTS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve"]
PLACES = ["garden", "kitchen", "market", "village", "harbour", "school", "forest", "station"]
VERBS = ["found", "bought", "sold", "lost", "painted", "counted", "carried", "wanted"]
# fmt: on

KEYS = ("name", "thing", "colour", "count")

Fact = tuple[str, str, str, str]
"""(name, thing, colour, count)."""

TASKS = ("tell", "ask")


def fact(rng: random.Random) -> Fact:
    """Somebody has so many things of a colour."""
    return rng.choice(NAMES), rng.choice(THINGS), rng.choice(COLOURS), rng.choice(COUNTS)


def card(of: Fact, rng: random.Random) -> str:
    """A fact as a card, its fields in any order."""
    return _joined(dict(zip(KEYS, of, strict=True)), rng)


def tell(of: Fact) -> str:
    """A fact as a sentence."""
    name, thing, colour, count = of
    return f"{name} has {count} {colour} {thing}."


def ask(of: Fact) -> str:
    """A fact as a question about it."""
    name, thing, colour, _ = of
    return f"How many {colour} {thing} does {name} have?"


def document(rng: random.Random) -> str:
    """One text of the kind that the base has read."""
    return rng.choice([_story, _dialogue, _cards, _cards])(rng)


def rows(task: str, number: int, seed: int) -> list[dict[str, str]]:
    """Examples of a task: each a card as the prompt, no fact twice."""
    rng = random.Random(seed)
    answer = {"tell": tell, "ask": ask}[task]
    facts: dict[Fact, None] = {}
    while len(facts) < number:
        facts[fact(rng)] = None
    return [{"prompt": card(of, rng), "completion": answer(of)} for of in facts]


def split(task: str, number: int, held_out: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(rows to learn from, held-out rows); no fact is in both."""
    every = rows(task, number + held_out, seed=7)
    return every[held_out:], every[:held_out]


def _story(rng: random.Random) -> str:
    """Two to five sentences about one fact, on one line or a line each."""
    name, thing, colour, count = of = fact(rng)
    other = rng.choice([someone for someone in NAMES if someone != name])
    place, age = rng.choice(PLACES), rng.randint(3, 99)
    sentences = [
        tell(of),
        f"{name} {rng.choice(VERBS)} {count} {colour} {thing} in the {place}.",
        f"The {count} {colour} {thing} of {name} are in the {place}.",
        f"There are {count} {colour} {thing} in the {place}.",
        f"{other} likes the {count} {colour} {thing} of {name}.",
        f"{name} and {other} went to the {place}.",
        f"{other} asked {name} for the {count} {colour} {thing}.",
        f"{name} is {age} years old.",
    ]
    chosen = rng.sample(sentences, rng.randint(2, 5))
    if rng.random() < 0.4:
        chosen.append(f"Who has the {count} {colour} {thing}? {name} has the {count} {colour} {thing}.")
    return rng.choice([" ", "\n", "\n"]).join(chosen)


def _dialogue(rng: random.Random) -> str:
    """What one or two people have, then a question about it and the answer."""
    facts = [fact(rng) for _ in range(rng.randint(1, 2))]
    asked = rng.choice(facts)
    return rng.choice([" ", "\n", "\n"]).join([*map(tell, facts), ask(asked), tell(asked)])


def _cards(rng: random.Random) -> str:
    """A card of some fields, and those fields said one at a time."""
    fields = dict(zip(KEYS, fact(rng), strict=True)) | {"place": rng.choice(PLACES), "age": str(rng.randint(3, 99))}
    fields = {key: fields[key] for key in rng.sample(list(fields), rng.randint(3, 5))}
    said = rng.sample([f"the {key} is {value}" for key, value in fields.items()], len(fields))
    return f"{_joined(fields, rng)}\n{', '.join(said)}."


def _joined(fields: dict[str, str], rng: random.Random) -> str:
    return " | ".join(f"{key}: {fields[key]}" for key in rng.sample(list(fields), len(fields)))
