"""Training sequences: prose, recall tasks and dialogues, a pure function of (seed, step)."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from . import dialogues
from .corpus import documents
from .recipes import Mix
from .tokenizer import SPECIALS
from .words import PLACES, VALUES

REPEAT_WEIGHT = 1.5


def token_stream(tokenizer: Tokenizer, rows: list[dict[str, str]]) -> np.ndarray:
    """All documents one after the other, each closed by the end-of-text token; uint16 [n_tokens]."""
    end = tokenizer.token_to_id(dialogues.END_OF_TEXT)
    out: list[int] = []
    for encoded in tokenizer.encode_batch([row["text"] for row in rows]):
        out += encoded.ids
        out.append(end)
    return np.array(out, dtype=np.uint16)


class Chooser:
    """Draws indices into a list that is ordered by package, each package as often as its weight says."""

    def __init__(self, sizes: Mapping[str, int], weights: dict[str, float] | None) -> None:
        self.sizes = list(sizes.values())
        self.starts = [0, *accumulate(self.sizes)][:-1]
        shares = (size * (weights or {}).get(key, 1.0) for key, size in sizes.items())
        self.cumulated = list(accumulate(shares))

    def draw(self, rng: random.Random) -> int:
        """One index."""
        part = rng.choices(range(len(self.sizes)), cum_weights=self.cumulated)[0]
        return self.starts[part] + rng.randrange(self.sizes[part])


class Prose:
    """Documentation text as filler: consecutive paragraphs, cut at a sentence's end to fit a token budget."""

    def __init__(
        self, tokenizer: Tokenizer, rows: list[dict[str, str]], weights: dict[str, float] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.paragraphs = [(row["package"], p) for row in rows for p in row["text"].split("\n")]
        self.paragraphs.sort(key=lambda pair: pair[0])
        self.start = Chooser(Counter(k for k, _ in self.paragraphs), weights)
        self.short = [
            (k, p) for k, p in self.paragraphs if 120 <= len(p) <= 420 and p[0].isupper() and p[-1] == "."
        ]
        self.start_short = Chooser(Counter(k for k, _ in self.short), weights)

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.tokenizer.encode(text).ids)

    def filler(self, rng: random.Random, budget: int) -> str:
        """At most `budget` tokens of prose from a random place; may be empty."""
        at = self.start.draw(rng)
        parts: list[str] = []
        while budget > 8:
            text = self.paragraphs[at % len(self.paragraphs)][1]
            size = self.count(" " + text)
            if size > budget:
                for sentence in re.split(r"(?<=[.!?]) ", text):
                    size = self.count(" " + sentence)
                    if size > budget:
                        break
                    parts.append(sentence)
                    budget -= size
                break
            parts.append(text)
            budget -= size
            at += 1
        return " ".join(parts)

    def paragraph(self, rng: random.Random) -> tuple[str, str]:
        """(package, a short paragraph)."""
        return self.short[self.start_short.draw(rng)]


class Batches:
    """Makes the batch of any step, so that a resumed run sees what an uninterrupted one would have seen."""

    def __init__(
        self, work: Path, tokenizer: Tokenizer, seed: int, weights: dict[str, float] | None = None
    ) -> None:
        rows = documents(work, "train")
        random.Random(f"{seed}/order").shuffle(rows)
        streams = {
            key: token_stream(tokenizer, [row for row in rows if row["package"] == key])
            for key in sorted({row["package"] for row in rows})
        }
        self.stream = np.concatenate(list(streams.values()))
        self.place = Chooser({key: len(stream) for key, stream in streams.items()}, weights)
        self.prose = Prose(tokenizer, rows, weights)
        self.tokenizer = tokenizer
        self.end = tokenizer.token_to_id(dialogues.END_OF_TEXT)
        self.vocabulary = tokenizer.get_vocab_size()
        words = (*VALUES, *PLACES)
        self.words = [i for w in words for i in tokenizer.encode(f" {w}").ids]
        self.seed = seed

    def _pack(self, rng: random.Random, length: int, kind: str) -> tuple[list[int], list[float]]:
        """Generated conversations until `length` tokens are full; token ids and loss weights."""
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < length:
            room = length - len(ids)
            if kind == "recall" and room > 100:
                budget = room if rng.random() < 0.6 else rng.randint(100, room)
                pieces = dialogues.recall_task(rng, budget, self.prose.filler, self.prose.count)
            else:
                pieces = dialogues.small_talk(rng, self.prose.filler, self.prose.paragraph)
            for encoded, (_, weight) in zip(
                self.tokenizer.encode_batch([t for t, _ in pieces]), pieces, strict=True
            ):
                ids += encoded.ids
                weights += [weight] * len(encoded.ids)
            ids.append(self.end)
            weights.append(1.0)
        return ids[:length], weights[:length]

    def sequence(self, rng: random.Random, length: int, kind: str) -> tuple[list[int], list[float]]:
        """One training sequence of `length` tokens."""
        if kind == "prose":
            at = min(self.place.draw(rng), len(self.stream) - length)
            return self.stream[at : at + length].tolist(), [1.0] * length
        if kind == "repeats":
            return self._repeats(rng, length)
        return self._pack(rng, length, kind)

    def _repeats(self, rng: random.Random, length: int) -> tuple[list[int], list[float]]:
        """Lists of random words, or of tokens of the whole vocabulary, each repeated two to four times.

        Short sequences have only the words of the recall tasks: few tokens, each seen often. Only looking back predicts
        a repetition; the first time a list comes it cannot be predicted, and weighs little.
        """
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < length:
            n = rng.randint(3, min(32, length // 4))
            if length < 256 or rng.random() < 0.7:
                part = [rng.choice(self.words) for _ in range(n)]
            else:
                part = [rng.randrange(len(SPECIALS), self.vocabulary) for _ in range(n)]
            times = rng.randint(2, 4)
            ids += part * times
            weights += [0.1] * n + [REPEAT_WEIGHT] * (n * (times - 1))
            ids.append(self.end)
            weights.append(1.0)
        return ids[:length], weights[:length]

    def batch(self, step: int, length: int, count: int, mix: Mix) -> tuple[np.ndarray, np.ndarray]:
        """Token ids int64 [count, length + 1] and the weights of predicting each token, float32 likewise."""
        rng = random.Random(f"{self.seed}/{step}")
        ids, weights = [], []
        for _ in range(count):
            u = rng.random()
            kind = mix.kind(u)
            a, b = self.sequence(rng, length + 1, kind)
            ids.append(a)
            weights.append(b)
        return np.array(ids, dtype=np.int64), np.array(weights, dtype=np.float32)

    def positions(self, step: int, length: int, count: int, skip: float, n_ctx: int) -> np.ndarray:
        """Positions of a batch's tokens, int64 [count, length].

        A share `skip` of the sequences leaves a gap of random size somewhere, so that sequences of 512 tokens
        show all distances up to n_ctx (PoSE, Zhu et al. 2023, arXiv 2309.10400); long ones cost much more.
        """
        rng = random.Random(f"{self.seed}/positions/{step}")
        out = np.tile(np.arange(length, dtype=np.int64), (count, 1))
        for row in out:
            if length < n_ctx and rng.random() < skip:
                row[rng.randint(length // 8, length - length // 8) :] += rng.randint(0, n_ctx - length)
        return out
