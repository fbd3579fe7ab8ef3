"""Llama.abort() from another thread ends an answer or a question at once, and the conversation goes on."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from minicache_cpp import Conversation, Llama, Sampling
from minicache_cpp.chat.conversation import Answer
from support.chats import QUIET, talk

LATE = 30.0  # seconds, after which a thread that should have ended hangs


class Asking:
    """A question that another thread asks."""

    def __init__(self, conversation: Conversation, question: str) -> None:
        self.conversation, self.question = conversation, question
        self.answers: list[Answer] = []
        self.texts: list[str] = []
        self.thread = threading.Thread(target=self.ask)
        self.thread.start()

    def ask(self) -> None:
        self.answers.append(self.conversation.ask(self.question, on_text=self.texts.append))

    def abort(self) -> Answer:
        """Aborts until it has an effect: between two evaluations there is nothing to abort."""
        end = time.monotonic() + LATE
        while self.thread.is_alive() and time.monotonic() < end:
            self.conversation.llm.abort()
        self.thread.join(LATE)
        (answer,) = self.answers
        return answer


@pytest.fixture
def llm(models: dict[str, Path]) -> Llama:
    return Llama(
        str(models["chat"]),
        n_ctx=8192,
        n_batch=8192,
        n_ubatch=8192,
        n_threads=1,
        n_threads_batch=1,
        verbose=False,
    )


@QUIET
def test_an_aborted_answer_is_kept_as_far_as_it_is(llm: Llama) -> None:
    with llm:
        conversation = talk(llm)
        asking = Asking(conversation, "hello")
        while not asking.texts and asking.thread.is_alive():
            time.sleep(0.001)
        answer = asking.abort()
        assert answer.finish == "interrupted"
        assert 0 < answer.n_tokens < 8192
        assert answer.text == "".join(asking.texts)
        assert conversation.messages[-1] == {"role": "assistant", "content": answer.text}
        # the context has the whole text, with its last token read anew, when the next answer begins
        conversation.ask("more", 3)
        expected = conversation.template.render(conversation.messages[:-1])
        n_prompt = llm.n_tokens - 3
        held = llm.input_ids[:n_prompt].tolist()
        assert held == llm.tokenize(expected.encode(), add_bos=False, special=True)


@QUIET
def test_an_aborted_question_is_taken_back(llm: Llama) -> None:
    with llm:
        conversation = talk(llm)
        conversation.ask("hello", 5)
        before, n_tokens = list(conversation.messages), llm.n_tokens
        asking = Asking(conversation, "x" * 7000)
        while not llm._busy and asking.thread.is_alive():
            time.sleep(0.001)
        answer = asking.abort()
        assert (answer.finish, answer.text, asking.texts) == ("interrupted", "", [])
        assert (conversation.messages, llm.n_tokens) == (before, n_tokens)
        assert conversation.ask("more", 3).n_tokens == 3


@QUIET
def test_sampling_can_be_changed_between_two_questions(llm: Llama) -> None:
    with llm:
        conversation = talk(llm)
        greedy = conversation.ask("hello", 8).text
        conversation.sampling = Sampling(temp=5.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)
        conversation.reset()
        assert conversation.ask("hello", 8).text != greedy
        conversation.sampling = Sampling(temp=0)
        conversation.reset()
        assert conversation.ask("hello", 8).text == greedy
