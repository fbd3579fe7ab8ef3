"""An answer in Markdown, cut into prose and blocks of code."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

# in a list, a block may be indented
FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([^\s`]*)[^`]*$")


@dataclass(frozen=True)
class Part:
    """A piece of an answer."""

    text: str
    is_code: bool = False
    # what stands behind the opening fence, such as "python"
    language: str = ""


def split(answer: str) -> list[Part]:
    """The parts of an answer in their order. A block that is not closed yet is code: the answer still grows."""
    parts: list[Part] = []
    lines: list[str] = []
    fence, language = "", ""

    def close() -> None:
        piece = "\n".join(lines)
        if fence or piece.strip():
            text = textwrap.dedent(piece) if fence else piece.strip("\n")
            parts.append(Part(text, bool(fence), language))
        lines.clear()

    for line in answer.split("\n"):
        found = FENCE.match(line)
        if fence and found and found[1].startswith(fence) and not found[2]:
            close()
            fence, language = "", ""
        elif not fence and found:
            close()
            fence, language = found[1], found[2]
        else:
            lines.append(line)
    close()
    return parts
