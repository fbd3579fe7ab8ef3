"""A conversation with a model: its messages, and the tokens that stand for them in the context.

Each turn evaluates only what is new. When the context is full, the oldest part after the system message is dropped
and the rest moves up (a context shift).
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import AbortedError, MiniCacheError
from ..native import binding
from ..native.binding import llama_h
from ..runtime.llama import Llama
from ..text.chat_template import ChatTemplate, Message
from .answer_writer import AnswerWriter
from .sampling import Sampler, Sampling


@dataclass(frozen=True)
class Answer:
    """What a model answered, and what it took."""

    text: str
    n_tokens: int
    seconds: float
    # tokens that were evaluated before the answer began
    n_prompt: int
    prompt_seconds: float
    # "stop", "length", "interrupted" or "full"
    finish: str
    # tokens that were dropped from the context to make room
    dropped: int = 0

    @property
    def tokens_per_second(self) -> float:
        return self.n_tokens / self.seconds if self.seconds > 0 else 0.0


class Conversation:
    """The messages so far, and the context that holds their tokens.

    llm: the model, which nothing else uses as long as the conversation lasts.
    template: by default the model's own. system: the system message.
    sampling: how tokens are chosen, by default at a temperature of 0.7.

    `messages` has all that were not dropped, {"role", "content"} each. save_chat() and load_chat() keep a conversation
    in a file.
    """

    def __init__(
        self,
        llm: Llama,
        template: ChatTemplate | None = None,
        system: str | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        self.llm = llm
        self.template = template or template_of(llm)
        self.sampling = sampling or Sampling()
        self.system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.messages: list[Message] = []
        # the text of the tokens in the context, and of those that were dropped from it
        self.text = ""
        # how many of the first tokens a shift never drops
        self.n_keep = 0
        self.reset()

    @property
    def n_ctx(self) -> int:
        # llama.cpp rounds the context up, and llama_cpp's own list of its tokens stays as long as was asked for
        return min(self.llm.n_ctx(), len(self.llm.input_ids))

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen; it may be set between two questions."""
        return self._sampling

    @sampling.setter
    def sampling(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self.sampler = Sampler(sampling, self.llm.n_vocab())

    def reset(self) -> None:
        """Forgets everything but the system message."""
        with self.llm.in_turn():
            binding.clear(self.llm.ctx)
            self.llm.reset()
        self.sampler.reset()
        self.messages = list(self.system)
        self.text = ""
        self.n_keep = 0

    def ask(
        self,
        question: str,
        max_tokens: int = 0,
        on_text: Callable[[str], None] = lambda text: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Answers a question.

        on_text: called with each further piece of the answer.
        stopped: asked between tokens, and between the batches of the prompt, whether to stop.
        max_tokens: the longest answer; 0 limits it to the size of the context, because some models never end
            an answer.

        Llama.abort() from another thread ends it too, at once: what there is of the answer is kept, and a question
        that has not been read whole is taken back.

        Raises MiniCacheError where the question does not fit the context, or another thread uses the Llama; the
        conversation then stays as it was.
        """
        with self.llm.in_turn():
            return self._answer(question, max_tokens, on_text, stopped)

    def _answer(
        self, question: str, max_tokens: int, on_text: Callable[[str], None], stopped: Callable[[], bool]
    ) -> Answer:
        started = time.perf_counter()
        prompt = self._read_question(question, stopped)
        prompt_seconds = time.perf_counter() - started
        if prompt is None:
            return Answer("", 0, 0.0, 0, prompt_seconds, "interrupted")
        writer = AnswerWriter(on_text, self.template.stop)
        started = time.perf_counter()
        n_tokens, dropped, finish = 0, prompt.dropped, "length"
        # until the answer is complete, self.text does not cover all tokens in the context
        self.text = ""
        while n_tokens < (max_tokens or self.n_ctx):
            token = self.sampler.sample(self.llm)
            if llama_h.llama_vocab_is_eog(self.llm._model.vocab, token):
                finish = "stop"
                break
            n_tokens += 1
            writer.write(piece(self.llm, token))
            if self.llm.n_tokens + 1 > self.n_ctx:
                if not self.can_shift:
                    finish = "full"
                    break
                dropped += self._make_room(1)
            try:
                self._eval([token])
            except AbortedError:
                finish = "aborted"
                break
            if writer.stopped or stopped():
                finish = "stop" if writer.stopped else "interrupted"
                break
        seconds = time.perf_counter() - started
        text = writer.finish()
        self.messages.append({"role": "assistant", "content": text})
        # then the context has all tokens of the answer
        if finish not in ("full", "aborted") and not writer.stopped:
            self.text = prompt.text + text
        finish = "interrupted" if finish == "aborted" else finish
        return Answer(text, n_tokens, seconds, len(prompt.tokens), prompt_seconds, finish, dropped)

    #
    # what to evaluate
    #

    def _read_question(self, question: str, stopped: Callable[[], bool]) -> Prompt | None:
        """Evaluates what a question adds. Where that fails or is stopped, the conversation stays as it was."""
        messages, n_tokens = list(self.messages), self.llm.n_tokens
        self.messages.append({"role": "user", "content": question})
        try:
            prompt = self._next_prompt()
            prompt = replace(prompt, dropped=prompt.dropped + self._make_room(len(prompt.tokens)))
            n_tokens = self.llm.n_tokens
            for start in range(0, len(prompt.tokens), self.llm.n_batch):
                if stopped():
                    break
                self._eval(prompt.tokens[start : start + self.llm.n_batch])
            else:
                return prompt
        except AbortedError:
            pass
        except BaseException:
            self.messages = messages
            self._cut(n_tokens)
            raise
        self.messages = messages
        self._cut(n_tokens)
        return None

    def _next_prompt(self) -> Prompt:
        """The conversation as text, and those of its tokens that the context does not hold yet."""
        text = self.template.render(self.messages)
        if self.text and text.startswith(self.text):
            tokens = self._tokenize(text[len(self.text) :])
            fits = self.llm.n_tokens + len(tokens) <= self.n_ctx or self.can_shift
            # a piece that begins in the middle of text could be tokenized differently than as part of the whole
            if fits and tokens and llama_h.llama_vocab_is_control(self.llm._model.vocab, tokens[0]):
                return Prompt(text, tokens)
        return self._whole_prompt(text)

    def _whole_prompt(self, text: str) -> Prompt:
        """As _next_prompt(), from the whole conversation; the context keeps the tokens that both begin with."""
        tokens = self._with_bos(self._tokenize(text))
        n_whole = len(tokens)
        room = self.n_ctx if n_whole < self.n_ctx else self.n_ctx // 2
        while len(tokens) >= room and len(self.messages) - len(self.system) > 1:
            del self.messages[len(self.system) : len(self.system) + 2]  # the oldest question and its answer
            text = self.template.render(self.messages)
            tokens = self._with_bos(self._tokenize(text))
        if self.system:
            opening = self._with_bos(self._tokenize(self.template.opening(self.system)))
            self.n_keep = common_length(opening, tokens)
        else:
            self.n_keep = int(tokens[:1] == [self.llm.token_bos()])
        # at least one token has to be evaluated, because the answer begins from its logits
        held = self.llm.input_ids[: self.llm.n_tokens].tolist()
        same = min(common_length(held, tokens), len(tokens) - 1)
        # otherwise the prompt is refused, and nothing changes
        if len(tokens) - same + self.n_keep < self.n_ctx:
            self.text = ""
            self._cut(same)
            same = self.llm.n_tokens
        return Prompt(text, tokens[same:], n_whole - len(tokens))

    def _tokenize(self, text: str) -> list[int]:
        return list(self.llm.tokenize(text.encode("utf-8"), add_bos=False, special=True))

    def _with_bos(self, tokens: list[int]) -> list[int]:
        # most templates write the beginning-of-text token themselves
        bos = self.llm.token_bos()
        wanted = bos != -1 and self.llm._model.add_bos_token() and tokens[:1] != [bos]
        return [bos, *tokens] if wanted else tokens

    #
    # the context
    #

    @property
    def memory(self) -> object:
        return llama_h.llama_get_memory(self.llm.ctx)

    @property
    def can_shift(self) -> bool:
        return bool(llama_h.llama_memory_can_shift(self.memory))

    def _eval(self, tokens: list[int]) -> None:
        try:
            self.llm.eval(tokens)
        except MiniCacheError:
            raise
        except RuntimeError as error:
            raise MiniCacheError(f"the model could not go on: {error}") from error

    def _make_room(self, n_new: int) -> int:
        """Drops the oldest tokens after the first n_keep, at least half of them, and returns how many were dropped."""
        n_tokens = self.llm.n_tokens
        excess = n_tokens + n_new - self.n_ctx
        if excess <= 0:
            return 0
        if n_new + self.n_keep >= self.n_ctx or not self.can_shift:
            raise MiniCacheError(
                f"this message has {n_new} tokens, and the context holds {self.n_ctx}; "
                "take a larger context (n_ctx, --ctx)"
            )
        n_drop = max(excess, (n_tokens - self.n_keep) // 2)
        first, kept = self.n_keep, self.llm.input_ids[self.n_keep + n_drop : n_tokens].copy()
        llama_h.llama_memory_seq_rm(self.memory, 0, first, first + n_drop)
        llama_h.llama_memory_seq_add(self.memory, 0, first + n_drop, n_tokens, -n_drop)
        self.llm.input_ids[first : first + len(kept)] = kept
        self.llm.n_tokens = n_tokens - n_drop
        self.llm.exact_window.dropped(n_drop)
        return n_drop

    def _cut(self, n_tokens: int) -> None:
        """Keeps only the first tokens."""
        if n_tokens < self.llm.n_tokens:
            if not llama_h.llama_memory_seq_rm(self.memory, 0, n_tokens, -1):
                # the memory of a recurrent model cannot drop a part of a sequence
                binding.clear(self.llm.ctx)
                n_tokens = 0
                self.text = ""
            self.llm.n_tokens = n_tokens


@dataclass(frozen=True)
class Prompt:
    """What is evaluated before an answer."""

    # the text of the whole conversation
    text: str
    # the tokens of what is new in it
    tokens: list[int]
    # tokens that were dropped to make room
    dropped: int = 0


def template_of(llm: Llama) -> ChatTemplate:
    """The chat template of a loaded model."""
    bos, eos = (
        llm._model.token_get_text(token) if token != -1 else ""
        for token in (llm.token_bos(), llm.token_eos())
    )
    return ChatTemplate.from_source(llm.metadata.get("tokenizer.chat_template"), bos, eos)


def piece(llm: Llama, token: int) -> bytes:
    """The bytes of a token; none for a control token."""
    size = 64
    while True:
        buffer = ctypes.create_string_buffer(size)
        n = llama_h.llama_token_to_piece(llm._model.vocab, token, buffer, size, 0, False)
        if n >= 0:
            return buffer.raw[:n]
        size = -n


def common_length(a: list[int], b: list[int]) -> int:
    """How many elements two lists have in common at their beginnings."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
