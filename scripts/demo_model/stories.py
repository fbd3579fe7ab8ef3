"""Generated stories in simple words, each with questions that only its own text answers.

A model this small does not learn to write from two million words of documentation. Stories whose sentences vary in
a few thousand ways are within its reach: what it says about them can be read, and who did what, where, must be
looked up in the context.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from .words import ANIMALS, COLORS, FOODS, MEN, SITES, THINGS, WOMEN

WEATHER = (
    "The sun was warm.",
    "It was raining.",
    "Snow lay on the ground.",
    "The wind was cold.",
    "There was not a cloud in the sky.",
    "The morning was quiet.",
)
TIMES = (
    "One morning",
    "One evening",
    "One day",
    "Late in the autumn",
    "On a cold winter day",
    "In the spring",
)
FEELINGS = ("happy", "tired", "glad", "curious", "hungry", "afraid", "proud")
HIDDEN = ("a tree", "a stone", "the stairs", "the snow")
FRIENDS = ("friend", "companion")
OFTEN = ("morning", "evening", "week")
TITLES = ("Tell me a story.", "Please tell me a story.", "Can you tell me a story?", "Write a short story.")


@dataclass(frozen=True)
class Asked:
    """A question about a story, and its answer: the words before the value to look up, the value, the rest."""

    question: str
    before: str
    value: str
    after: str = "."


@dataclass(frozen=True)
class Person:
    """A name and the pronouns that go with it."""

    name: str
    he: str
    his: str
    him: str

    @property
    def kind(self) -> str:
        """The noun for a child."""
        return "a girl" if self.he == "she" else "a boy"

    @property
    def He(self) -> str:
        """The pronoun at a sentence's start."""
        return self.he.capitalize()


def person(name: str) -> Person:
    """Somebody of this name."""
    return Person(name, "she", "her", "her") if name in WOMEN else Person(name, "he", "his", "him")


def a(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def article(noun: str) -> str:
    """The indefinite article that goes with the noun."""
    return a(noun).split()[0]


Part = tuple[list[str], list[Asked]]


def found(rng: random.Random, one: Person, helper: str) -> Part:
    """The rest of a story: something is found."""
    color, thing = rng.choice(COLORS), rng.choice(THINGS)
    text = [
        f"There {one.he} found {a(color)} {thing} under {rng.choice(HIDDEN)}.",
        rng.choice(
            (
                f'"Whose {thing} is this?" {one.he} asked, but nobody knew.',
                f"{one.He} had never seen such {a(thing)} before.",
                f"{one.He} took the {thing} home and showed it to {helper}.",
            )
        ),
        rng.choice(
            (
                f"{one.He} kept the {thing} for the rest of {one.his} life.",
                f"In the end {one.he} gave the {thing} to {helper}.",
                f"From that day on, {one.he} was never without the {color} {thing}.",
            )
        ),
    ]
    asked = [
        Asked(f"What did {one.name} find?", f"{one.name} found {a(color)}", thing),
        Asked(f"What color was the {thing}?", f"The {thing} was", color),
    ]
    return text, asked


def lost(rng: random.Random, one: Person, helper: str) -> Part:
    """The rest of a story: something is lost and found again."""
    color, thing, animal = rng.choice(COLORS), rng.choice(THINGS), rng.choice(ANIMALS)
    text = [
        f"On the way {one.he} lost {one.his} {color} {thing}.",
        f"{one.He} looked everywhere, but the {thing} was gone.",
        rng.choice(
            (
                f"Then {a(animal)} came and said that the {thing} was in the river.",
                f"At last {helper} found it behind a door.",
                f"Only in the evening {helper} found it in the grass.",
            )
        ),
        rng.choice(
            (
                f"{one.name} was {rng.choice(FEELINGS)} and laughed.",
                f'"Thank you," said {one.name}, and they went home together.',
                f"After that, {one.he} took better care of {one.his} things.",
            )
        ),
    ]
    asked = [
        Asked(f"What did {one.name} lose?", f"{one.name} lost {a(color)}", thing),
        Asked(f"What color was the {thing}?", f"The {thing} was", color),
    ]
    return text, asked


def met(rng: random.Random, one: Person, goal: str, animal: str) -> Part:
    """The rest of a story: an animal is met and fed."""
    food = rng.choice(FOODS)
    text = [
        f"At the {goal} {one.he} met {a(animal)}, and the {animal} was very hungry.",
        f"{one.name} had some {food} with {one.him} and shared it with the {animal}.",
        rng.choice(
            (
                f"From that day on, the {animal} came to see {one.him} every {rng.choice(OFTEN)}.",
                f"The {animal} ate everything and fell asleep.",
                f"Since then, {one.name} and the {animal} have been friends.",
            )
        ),
    ]
    asked = [
        Asked(f"Whom did {one.name} meet?", f"{one.name} met {article(animal)}", animal),
        Asked(f"What did {one.name} give to the {animal}?", f"{one.name} gave the {animal} some", food),
    ]
    return text, asked


def story(rng: random.Random, hero: str | None = None) -> tuple[str, list[Asked]]:
    """A story of about 60 to 140 tokens, and what can be asked about it; `hero` names its first person."""
    one = person(hero or rng.choice((*WOMEN, *MEN)))
    home, goal = rng.sample(SITES, 2)
    pet, animal = rng.sample(ANIMALS, 2)
    asked = [
        Asked(f"Where did {one.name} live?", f"{one.name} lived near the", home),
        Asked(f"Where did {one.name} go?", f"{one.name} went to the", goal),
    ]
    text = [
        rng.choice(
            (
                f"Once there was {one.kind} named {one.name}, who lived near the {home}.",
                f"{one.name} lived in a small house near the {home}.",
                f"A long time ago, {one.name} lived near the {home}.",
            )
        )
    ]
    if rng.random() < 0.5:
        helper = f"the {pet}"
        text.append(f"{one.He} had {a(pet)}, and {helper} was {one.his} best {rng.choice(FRIENDS)}.")
        asked.append(Asked(f"What animal did {one.name} have?", f"{one.name} had {article(pet)}", pet))
    else:
        helper = rng.choice([name for name in (*WOMEN, *MEN) if name != one.name])
        text.append(f"{helper} was {one.his} best friend.")
        asked.append(
            Asked(f"Who was the best friend of {one.name}?", f"The best friend of {one.name} was", helper)
        )
    text.append(
        rng.choice(
            (
                f"{rng.choice(TIMES)} {one.he} went to the {goal}.",
                f"{rng.choice(TIMES)} {one.name} walked to the {goal}.",
                f"{rng.choice(TIMES)} {one.name} and {helper} went to the {goal} together.",
            )
        )
    )
    if rng.random() < 0.6:
        text.append(rng.choice(WEATHER))
    course = rng.randrange(3)
    rest, more = (
        found(rng, one, helper)
        if course == 0
        else lost(rng, one, helper)
        if course == 1
        else met(rng, one, goal, animal)
    )
    return " ".join(text + rest), asked + more
