"""Changes of bytes, of the fields of GGUF files and of JSON, at random."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import NamedTuple

from minicache_cpp.modelfile.gguf_file import ARRAY, SCALARS, STRING

INTERESTING = [0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 4096, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1]
INTERESTING += [2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
WORDS = [
    "",
    "code",
    "aligned",
    "slerp",
    "f16",
    "q8_0",
    "q4_0",
    "iq4_nl",
    "minicache-plan",
    "llama",
    "\0",
    "é",
    "x" * 300,
]


class Field(NamedTuple):
    """A number in a file, little endian."""

    at: int
    size: int
    kind: str  # "number", or the "length" of a string that follows


def mutated(rng: random.Random, data: bytes, fields: list[Field]) -> bytes:
    """Some changes, mostly of fields, where there are any."""
    result = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if fields and rng.random() < 0.75:
            change_field(rng, result, rng.choice(fields))
        else:
            rng.choice(BYTE_CHANGES)(rng, result)
    return bytes(result)


def change_field(rng: random.Random, data: bytearray, field: Field) -> None:
    """Changes a number; a string may become another one, so that what follows moves."""
    if field.at + field.size > len(data):
        return
    value = int.from_bytes(data[field.at : field.at + field.size], "little")
    if field.kind == "length" and rng.random() < 0.5:
        word = rng.choice(WORDS).encode()
        length = len(word).to_bytes(field.size, "little")
        data[field.at : field.at + field.size + min(value, len(data))] = length + word
        return
    data[field.at : field.at + field.size] = other_number(rng, value, field.size)


def other_number(rng: random.Random, value: int, size: int) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        value += rng.choice([-2, -1, 1, 2])
    elif kind == 1:
        value ^= 1 << rng.randrange(8 * size)
    elif kind == 2:
        value = rng.choice([2 * value, value // 2, -value])
    else:
        value = rng.choice(INTERESTING)
    return (value % (1 << 8 * size)).to_bytes(size, "little")


def flip(rng: random.Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data) + 1) :]


def drop(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    del data[at : at + rng.choice([1, 4, 8, 100])]


def repeat(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = data[at : at + rng.choice([1, 4, 8, 100])]


def fill(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    n = min(rng.choice([1, 4, 8, 64]), len(data) - at)
    data[at : at + n] = bytes([rng.choice([0, 0x7F, 0x80, 0xFF])]) * n


BYTE_CHANGES: list[Callable[[random.Random, bytearray], None]] = [flip, flip, cut, drop, repeat, fill]


def gguf_fields(data: bytes) -> list[Field]:
    """The numbers of a GGUF file's header: counts, lengths, types, values, and of tensors their dims and places."""
    fields: list[Field] = []
    at = 4

    def number(size: int, kind: str = "number") -> int:
        nonlocal at
        fields.append(Field(at, size, kind))
        at += size
        return int.from_bytes(data[at - size : at], "little")

    def string() -> None:
        nonlocal at
        length = number(8, "length")
        at += length

    def value(kind: int) -> None:
        if kind == STRING:
            string()
        elif kind == ARRAY:
            of, length = number(4), number(8)
            start = len(fields)
            for _ in range(length):
                value(of)
            del fields[start + 64 :]  # a vocabulary would leave nothing for the rest
        else:
            number(struct.calcsize(SCALARS[kind]))

    number(4)
    n_tensor, n_key = number(8), number(8)
    for _ in range(n_key):
        string()
        value(number(4))
    for _ in range(n_tensor):
        string()
        for _ in range(number(4)):
            number(8)
        number(4)
        number(8)
    return fields


def other_json(rng: random.Random, value: object) -> object:
    """A JSON value with one part replaced, removed or repeated."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        changed = dict(value)
        if rng.random() < 0.15:
            del changed[key]
        else:
            changed[key] = other_json(rng, value[key])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        kind = rng.randrange(4)
        if kind == 0:
            return value[:at]
        if kind == 1:
            return value + value[at:]
        return value[:at] + [other_json(rng, value[at])] + value[at + 1 :]
    if isinstance(value, int) and rng.random() < 0.6:
        return rng.choice([value + 1, value - 1, -value, *INTERESTING, -1, 10**30])
    if isinstance(value, str) and rng.random() < 0.4:
        return rng.choice([*WORDS, value + "x", "\ud800", value[: len(value) // 2]])
    return rng.choice([None, True, 0, -1, 1.5, 1e300, float("nan"), "", "a", [], {}, [[]], [None], {"a": 1}])
