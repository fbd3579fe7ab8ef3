"""Readers of tasks that answer as a test wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minicache_cpp.text.chat_template import ChatTemplate

CHATML = ChatTemplate.from_source(
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}<assistant>", "", ""
)


class ScriptedReader:
    """Answers with what two functions return, and keeps what was asked."""

    def __init__(
        self,
        likelihood: Callable[[str, str], float] = lambda before, ending: 0.0,
        continuation: Callable[[str], str] = lambda prompt: "",
        template: ChatTemplate = CHATML,
    ) -> None:
        self.likelihood, self.continuation, self.template = likelihood, continuation, template
        self.asked: list[tuple[str, str]] = []
        self.prompts: list[tuple[str, int, tuple[str, ...]]] = []

    def likelihoods(self, endings: Sequence[tuple[str, str]]) -> list[float]:
        self.asked += endings
        return [self.likelihood(*one) for one in endings]

    def complete(self, prompt: str, n_most: int, stops: Sequence[str] = ()) -> str:
        self.prompts.append((prompt, n_most, tuple(stops)))
        return self.continuation(prompt)
