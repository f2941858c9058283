"""The text of the demo, made from a small grammar: what its base has read, and the two tasks that it learns.

The base reads short stories about people and their things, with questions and answers, and cards of facts. Neither task is
among them: nowhere does a card stand before a sentence. Both tasks start from the same cards, so that one prompt shows
three behaviours:

    name: Mia | thing: boats | colour: red | count: three
        tell    Mia has three red boats.
        ask     How many red boats does Mia have?
"""

import random

NAMES = [
    "Mia",
    "Tom",
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Ella",
    "Felix",
    "Grace",
    "Hugo",
    "Ida",
    "Jonas",
    "Kira",
    "Leo",
    "Maya",
    "Nils",
    "Olga",
    "Paul",
    "Rosa",
    "Sam",
    "Tara",
    "Uma",
    "Vera",
    "Will",
    "Yara",
    "Zoe",
    "Emil",
    "Nora",
    "Oscar",
    "Lena",
]
THINGS = [
    "boats",
    "apples",
    "kites",
    "lamps",
    "books",
    "cups",
    "hats",
    "stones",
    "bells",
    "coins",
    "keys",
    "drums",
    "chairs",
    "pots",
    "roses",
    "shells",
    "ropes",
    "bags",
    "rings",
    "cards",
    "balls",
    "pens",
    "maps",
    "combs",
    "masks",
]
COLOURS = ["red", "green", "blue", "white", "black", "yellow", "brown", "grey", "pink", "golden"]
COUNTS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve"]
PLACES = ["garden", "kitchen", "market", "village", "harbour", "school", "forest", "station"]
VERBS = ["found", "bought", "sold", "lost", "painted", "counted", "carried", "wanted"]

Fact = tuple[str, str, str, str]
"""(name, thing, colour, count)."""

TASKS = ("tell", "ask")


def fact(rng: random.Random) -> Fact:
    """Somebody has so many things of a colour."""
    return rng.choice(NAMES), rng.choice(THINGS), rng.choice(COLOURS), rng.choice(COUNTS)


def card(of: Fact, rng: random.Random) -> str:
    """A fact as a card, its fields in any order."""
    fields = [f"{key}: {value}" for key, value in zip(("name", "thing", "colour", "count"), of, strict=True)]
    rng.shuffle(fields)
    return " | ".join(fields)


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
    return rng.choice([_story, _dialogue, _cards, _cards, _cards])(rng)


def rows(task: str, number: int, seed: int) -> list[dict[str, str]]:
    """Examples of a task: each a card as the prompt, no card twice."""
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
    name, thing, colour, count = of = fact(rng)
    other, place = rng.choice(NAMES), rng.choice(PLACES)
    sentences = [
        tell(of),
        f"{name} {rng.choice(VERBS)} {count} {colour} {thing} in the {place}.",
        f"The {colour} {thing} of {name} are in the {place}.",
        f"{other} likes the {colour} {thing} of {name}.",
        f"{name} and {other} went to the {place}.",
        f"There are {count} {colour} {thing} in the {place}.",
        f"{other} asked {name} for the {thing}.",
    ]
    chosen = rng.sample(sentences, rng.randint(2, 4))
    if rng.random() < 0.5:
        chosen.append(rng.choice([f"{ask(of)} {name} has {count}.", f"Who has the {thing}? {name} has the {thing}."]))
    return " ".join(chosen)


def _dialogue(rng: random.Random) -> str:
    first, second = fact(rng), fact(rng)
    asked = rng.choice([first, second])
    return f"{tell(first)} {tell(second)} {ask(asked)} {tell(asked)}"


def _cards(rng: random.Random) -> str:
    """One or two cards, and what is said about their fields one at a time."""
    of = fact(rng)
    said = [f"the {key} is {value}" for key, value in zip(("name", "thing", "colour", "count"), of, strict=True)]
    before = f"{card(fact(rng), rng)}\n" if rng.random() < 0.3 else ""
    return f"{before}{card(of, rng)}\n" + ", ".join(rng.sample(said, 4)) + "."
