"""Variable tracking: a chain of assignments is hidden, and has to be followed back to the number (RULER's VT task).

"VAR KQZ = 48213.", "VAR MTR = VAR KQZ." and "VAR PLO = VAR MTR." are hidden, the first of them at the stated depth and
the others evenly behind it. RULER asks which variables have a value, and counts the names in the answer. Here the chain
is completed: "VAR PLO =" with "VAR MTR = VAR KQZ = 48213", each step of which repeats a beginning that was read before.
An example at the beginning of the prompt shows the form. An answer is right only as a whole.
"""

from __future__ import annotations

import random
import string

from .retrieval import Planted, onwards

N_VARIABLES = 3  # of a chain
EXAMPLE = ("AXB", "CYD", "EZF")
EXAMPLE_NUMBER = "70412"


class Variables:
    name = "variables"

    def plant(self, rng: random.Random, depth: float) -> Planted:
        names: list[str] = []
        while len(names) < N_VARIABLES:
            name = "".join(rng.sample(string.ascii_uppercase, 3))
            if name not in (*names, *EXAMPLE):
                names.append(name)
        number = str(rng.randrange(10000, 100000))
        example = " ".join(assignments(EXAMPLE, EXAMPLE_NUMBER))
        begun, rest = chain(names, number)
        return Planted(
            onwards(depth, assignments(names, number)),
            begun,
            rest,
            f"{example} {' '.join(chain(EXAMPLE, EXAMPLE_NUMBER))}.\n\n",
        )


def assignments(names: tuple[str, ...] | list[str], number: str) -> list[str]:
    """The statements of a chain: the first variable gets the number, each later one gets the one before it."""
    values = [number, *(f"VAR {name}" for name in names[:-1])]
    return [f"VAR {name} = {value}." for name, value in zip(names, values, strict=True)]


def chain(names: tuple[str, ...] | list[str], number: str) -> tuple[str, str]:
    """The chain from its last variable back to the number: its beginning, and the rest."""
    last, *before = reversed(names)
    return f"VAR {last} =", " = ".join([*(f"VAR {name}" for name in before), number])
