"""Generated text: small dialogues, and recall tasks (facts stated early, asked for later) in ChatML.

Everything is a list of pieces, (text, weight): the weight is the factor on the training loss of the piece's
tokens. Pieces are cut only where the pre-tokenizer cuts too (before a space, at punctuation after a word, at
a newline), so encoding them one by one gives the same tokens as encoding the whole text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import stories
from .knowledge import DEFINITIONS, SUMMARIES, TOPICS
from .words import ADJECTIVES, NAMES, PLACES, VALUES, words

Piece = tuple[str, float]

END_OF_TEXT, TURN_START, TURN_END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"

# the answer's word carries the whole signal of a recall task; it is one token in twenty, hence the factor
ANSWER_WEIGHT = 4.0


ATTRIBUTES: tuple[str, ...] = ("password", "code word", "color", "symbol", "signal", "key")

SYSTEMS: tuple[str, ...] = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "You remember what you are told and answer from it.",
    "Answer the questions from the text above them.",
)


@dataclass(frozen=True)
class Fact:
    """A statement, the question that asks for it, and its answer split around the value."""

    statement: str
    question: str
    before: str
    value: str
    after: str = "."

    @property
    def answer(self) -> str:
        """The whole answer sentence."""
        return f"{self.before} {self.value}{self.after}"


def turn(role: str, body: Sequence[Piece] | str) -> list[Piece]:
    """One ChatML turn, with the newline after it."""
    pieces = [(body, 1.0)] if isinstance(body, str) else list(body)
    return [(f"{TURN_START}{role}\n", 1.0), *pieces, (f"{TURN_END}\n", 1.0)]


def make_facts(rng: random.Random, n: int) -> list[Fact]:
    """n facts of one kind with different keys and values, so that only the right key finds the value."""
    values = rng.sample(VALUES, n)
    kind = rng.random()
    if kind < 0.6:
        attribute = rng.choice(ATTRIBUTES)
        keys = [f"the {attribute} of the {place}" for place in rng.sample(PLACES, n)]
    elif kind < 0.75:
        # Adjective and noun together are the key: either alone may occur twice.
        attribute = rng.choice(ATTRIBUTES)
        nouns = rng.sample(PLACES, max(1, (n + 1) // 2))
        pairs = rng.sample([(a, p) for a in ADJECTIVES for p in nouns], n)
        keys = [f"the {attribute} of the {a} {p}" for a, p in pairs]
    elif kind < 0.85:
        places = rng.sample(PLACES, max(1, (n + 1) // 2))
        pairs = rng.sample([(a, p) for a in ATTRIBUTES for p in places], n)
        keys = [f"the {a} of the {p}" for a, p in pairs]
    else:
        keys = [f"the favorite word of {name}" for name in rng.sample(NAMES, n)]
    facts = []
    for key, value in zip(keys, values, strict=True):
        start = key[0].upper() + key[1:]
        facts.append(Fact(f"{start} is {value}.", f"What is {key}?", f"{start} is", value))
    return facts


def answer_pieces(fact: Fact) -> list[Piece]:
    """The answer, a full sentence, its value weighted."""
    return [(fact.before, 1.0), (f" {fact.value}", ANSWER_WEIGHT), (fact.after, 1.0)]


Filler = Callable[[random.Random, int], str]
Count = Callable[[str], int]
Paragraph = Callable[[random.Random], tuple[str, str]]


def _total(pieces: Sequence[Piece], count: Count) -> int:
    return sum(count(text) for text, _ in pieces)


# a recall task's style is a number drawn from [0, 1): from these on, it has no turns around facts, and none at all
PLAIN_STYLE, QUESTION_STYLE = 0.6, 0.85


def recall_task(rng: random.Random, budget: int, filler: Filler, count: Count) -> list[Piece]:
    """A conversation of about `budget` tokens at most: facts, then prose, then questions in another order.

    `filler(rng, n)` returns prose of at most n tokens; `count` counts the tokens of a text.
    """
    n = rng.randint(2, 8) if budget < 700 else rng.randint(3, 12)
    n = max(1, min(n, budget // 45))
    facts = make_facts(rng, n)
    asked = rng.sample(facts, n)
    if budget > 150 * n and rng.random() < 0.5:
        asked += rng.sample(facts, n)
    head = turn("system", rng.choice(SYSTEMS)) if rng.random() < 0.3 else []
    style = rng.random()
    told = _told_facts(rng, facts, style)
    ask = [_question(fact, style) for fact in asked]
    used = _total(head, count) + sum(_total(p, count) for p in told) + sum(_total(p, count) for p in ask)
    while used > budget - 12 and len(ask) > 1:
        used -= _total(ask.pop(), count)
    texts = _prose_between(rng, filler, budget - used - 24, len(told), len(ask))
    plain = style >= PLAIN_STYLE
    out: list[Piece] = []
    for index, event in enumerate([*told, *ask]):
        for text in texts.get(index, ()):
            if plain:
                out.append((text + "\n", 1.0))
            else:
                out += turn("user", "Read this. " + text) + turn(
                    "assistant", rng.choice(("I have read it.", "Done."))
                )
        out += event
    if plain and style < QUESTION_STYLE:
        # The facts and the prose are the first user turn's text, with the first question at its end.
        split = next(i for i, (t, _) in enumerate(out) if t.startswith(TURN_START))
        return head + [(f"{TURN_START}user\n", 1.0)] + out[:split] + out[split + 1 :]
    return ([] if plain else head) + out


def _told_facts(rng: random.Random, facts: Sequence[Fact], style: float) -> list[list[Piece]]:
    """The facts: all in one turn, a turn for each, or lines of text."""
    if style < 0.35:
        reply = rng.choice(("I will remember that.", "Noted.", "Thank you, I have noted it."))
        return [turn("user", " ".join(f.statement for f in facts)) + turn("assistant", reply)]
    if style < PLAIN_STYLE:
        return [
            turn("user", rng.choice(("", "Please remember this. ", "Remember: ")) + f.statement)
            + turn("assistant", "Noted.")
            for f in facts
        ]
    return [[(f.statement + "\n", 1.0)] for f in facts]


def _question(fact: Fact, style: float) -> list[Piece]:
    """The question for a fact and its answer."""
    if style < QUESTION_STYLE:
        return turn("user", fact.question) + turn("assistant", answer_pieces(fact))
    (first, weight), *rest = answer_pieces(fact)
    return [(f"Question: {fact.question}\nAnswer:", 1.0), (" " + first, weight), *rest, ("\n", 1.0)]


def _prose_between(
    rng: random.Random, filler: Filler, room: int, n_told: int, n_ask: int
) -> dict[int, list[str]]:
    """Prose of `room` tokens, by the number of the fact or question that it comes before.

    Mostly it is one long stretch before the questions, else some of it is among facts or questions.
    """
    gaps: list[tuple[int, float]] = [(n_told, 1.0)]
    where = rng.random()
    if where < 0.3:
        gaps = [(rng.randint(0, n_told), rng.random() + 0.2) for _ in range(2)] + [(n_told, 1.0)]
    elif where < 0.5:
        gaps = [(n_told + rng.randint(0, n_ask - 1), rng.random() + 0.2) for _ in range(2)]
    scale = sum(w for _, w in gaps)
    texts: dict[int, list[str]] = {}
    for index, weight in gaps:
        text = filler(rng, int(room * weight / scale) - 14) if room * weight / scale > 40 else ""
        if text:
            texts.setdefault(index, []).append(text)
    return texts


def copy_task(rng: random.Random, filler: Filler) -> list[Piece]:
    """Repeat a list of words or a sentence: the plainest use of what stands earlier in the context."""
    if rng.random() < 0.6:
        words = [rng.choice(rng.choice((VALUES, PLACES, NAMES))) for _ in range(rng.randint(4, 24))]
        text = " ".join(words)
    else:
        text = filler(rng, 40) or "The lantern is in the harbor."
    ask = rng.choice(("Repeat this: ", "Please repeat: ", "Say this again: "))
    return turn("user", ask + text) + turn("assistant", [(text, 2.0)])


_GREETINGS = (
    ("Hello!", "Hello! How can I help you?"),
    ("Hi.", "Hi! What can I do for you?"),
    ("Good morning.", "Good morning! How can I help you today?"),
    ("Good evening!", "Good evening! What would you like to know?"),
    ("How are you?", "I am fine, thank you. How can I help you?"),
    ("Thank you.", "You are welcome."),
    ("Thanks, that helps!", "You are welcome. Is there anything else?"),
    ("Goodbye.", "Goodbye! Have a nice day."),
    ("What are you?", "I am a very small language model. I can tell stories, and recall what you tell me."),
    ("Who are you?", "I am a small demo model. I answer from what stands in our conversation."),
    (
        "What can you do?",
        "I can remember what you tell me in this conversation, and answer questions about it.",
    ),
    ("Are you a person?", "No, I am a small language model."),
)
_INVENTED = words(
    "blick dax wug fep zorp tolva mirk gront pell vimble sark lund trell omp quill brack nib velt"
)


def _named_turn(rng: random.Random) -> tuple[list[Piece], str]:
    name = rng.choice(NAMES)
    said = rng.choice((f"Hello, my name is {name}.", f"Hi, I am {name}.", f"My name is {name}."))
    return turn("user", said) + turn(
        "assistant", [("Nice to meet you,", 1.0), (f" {name}", 2.0), (".", 1.0)]
    ), name


def told(rng: random.Random) -> list[Piece]:
    """A story on demand, often about a given person, and mostly some questions about it."""
    hero = rng.choice(NAMES) if rng.random() < 0.4 else None
    text, asked = stories.story(rng, hero)
    ask = rng.choice(stories.TITLES) if hero is None else f"Tell me a story about {hero}."
    if rng.random() < 0.35:
        # The user tells it.
        out = turn("user", text) + turn(
            "assistant", rng.choice(("That is a nice story.", "Thank you for the story."))
        )
    else:
        out = turn("user", ask) + turn("assistant", text)
    for question in rng.sample(asked, min(len(asked), rng.randint(0, 3))):
        out += turn("user", question.question)
        out += turn(
            "assistant",
            [(question.before, 1.0), (f" {question.value}", ANSWER_WEIGHT), (question.after, 1.0)],
        )
    return out


def explained(rng: random.Random, paragraph: Paragraph) -> list[Piece]:
    """What a word means or a package is about: a sentence or more from `knowledge`, or a paragraph of the corpus."""
    kind = rng.random()
    if kind < 0.5:
        word, text = rng.choice(tuple(DEFINITIONS.items()))
        name = text.split(" is ")[0].lower() if " is " in text else word
        return turn("user", f"What is {name}?") + turn("assistant", text)
    ask = rng.choice(("Tell me something about {}.", "What do you know about {}?", "Tell me about {}."))
    if kind < 0.75:
        package = rng.choice(tuple(SUMMARIES))
        text = " ".join(SUMMARIES[package][: rng.randint(2, 4)])
    else:
        package, text = paragraph(rng)
        ask = rng.choice(("Quote something about {}.", "Write a paragraph about {}."))
    return turn("user", ask.format(TOPICS[package])) + turn("assistant", text)


def small_talk(rng: random.Random, filler: Filler, paragraph: Paragraph) -> list[Piece]:
    """A short dialogue: greetings, a name kept in mind, stories, definitions, lists, copying, prose on a topic."""
    out: list[Piece] = turn("system", rng.choice(SYSTEMS)) if rng.random() < 0.3 else []
    name = ""
    if rng.random() < 0.4:
        pieces, name = _named_turn(rng)
        out += pieces
    for _ in range(rng.randint(1, 4)):
        kind = rng.random()
        if kind < 0.13:
            said, reply = rng.choice(_GREETINGS)
            out += turn("user", said) + turn("assistant", reply)
        elif kind < 0.19:
            noun, value = rng.choice(_INVENTED), rng.choice(PLACES)
            size = rng.choice(("small", "large", "quiet", "new", "hidden", "wooden"))
            text = f"a {size} {value} with the {rng.choice(VALUES)} {rng.choice(PLACES)}"
            out += turn("user", f"The word {noun} means {text}.") + turn("assistant", "I see.")
            out += turn("user", f"What does {noun} mean?") + turn(
                "assistant", [(f"The word {noun} means", 1.0), (f" {text}", 2.0), (".", 1.0)]
            )
        elif kind < 0.27:
            items = rng.sample(rng.choice((VALUES, PLACES)), rng.randint(3, 6))
            listed = ", ".join(items[:-1]) + " and " + items[-1]
            who = rng.choice(NAMES)
            out += turn("user", f"{who} has these words: {listed}.") + turn("assistant", "Noted.")
            out += turn("user", f"Which words does {who} have?")
            out += turn("assistant", [(f"{who} has these words:", 1.0), (f" {listed}", 2.0), (".", 1.0)])
        elif kind < 0.5:
            out += told(rng)
        elif kind < 0.72:
            out += explained(rng, paragraph)
        elif kind < 0.77:
            _, text = paragraph(rng)
            parts = re.split(r"(?<=[.!?]) ", text)
            if len(parts) > 1:
                out += turn("user", "Continue this text: " + parts[0]) + turn(
                    "assistant", " ".join(parts[1:])
                )
        elif kind < 0.92:
            out += copy_task(rng, filler)
        else:
            a = make_facts(rng, rng.randint(1, 3))
            out += turn("user", " ".join(f.statement for f in a)) + turn("assistant", "Noted.")
            f = rng.choice(a)
            out += turn("user", f.question) + turn("assistant", answer_pieces(f))
    if name and rng.random() < 0.8:
        out += turn("user", "What is my name?") + turn(
            "assistant", [("Your name is", 1.0), (f" {name}", ANSWER_WEIGHT), (".", 1.0)]
        )
    return out or copy_task(rng, filler)
