"""llama_cpp.Llama with three more arguments: `minicache`, `calibrate` and `on_progress`."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

# first, because it makes llama_cpp load our library
from ..native import binding  # isort: skip
import llama_cpp
from llama_cpp.llama_cache import BaseLlamaCache

from ..cache.context_report import read_report
from ..cache.contexts import creating_contexts
from ..cache.native_settings import window_first
from ..cache.report import KVReport
from ..cache.settings import CacheSpec, MiniCache
from ..errors import AbortedError, MiniCacheError, MiniCacheWarning
from ..host.interrupts import interrupts_afterwards
from ..host.progress import OnProgress
from ..modelfile.gguf_file import GGUFFile
from ..native.log import NativeLog
from . import states
from .auto import machine
from .background import BackgroundCalibration
from .exact_window import ExactWindow
from .guarded_context import GuardedContext
from .request import Given, resolve
from .states import StateCache
from .turns import CLOSED, Turns

WARN_DISTANCE = 0.3  # above it, SLERP of a pair loses more than 2-bit quantization
WARN_TOKENS = 32  # a mean over fewer tokens says little


class Llama(llama_cpp.Llama):
    """llama_cpp.Llama whose KV cache can be held as MiniCache.

        with Llama("model.gguf", n_ctx=4096, minicache=MiniCache(type_k="q4_0", type_v="q4_0")) as llm:
            print(llm.create_chat_completion([{"role": "user", "content": "hi"}]))
            print(llm.kv_report())

    model_path: the path of a GGUF file, the name of a model that `minicache models get` has fetched, or a GGUFFile
        whose header has been read already.
    minicache: None for llama_cpp's own cache, bit for bit (whatever LLAMA_MINICACHE says); MiniCache(...); a CacheSpec,
        which may also be a plain cache; the path of a plan; or "auto" for the plan of this model, which is made
        once where there is none. MiniCache needs flash attention and names the cache types: leave flash_attn, type_k
        and type_v out.
    calibrate: with "auto", "once" to make a missing plan first (a minute for a small model, minutes for one of 8
        billion weights); "background" to start with plain q8_0 and make the plan while the model is idle, for the next
        start; or "never" to use plain q8_0 and make none. None: as MINICACHE_CALIBRATE says, or "once".
    on_progress: called with (fraction, stage, detail) while a plan is made, with "background" in another thread; if it
        returns False, the calibration ends, the cache is plain, and the next calibration goes on from there.
    type_k, type_v: cache types by name ("q8_0") or, as in llama_cpp, by number.

    All other arguments and all methods are those of llama_cpp.Llama. `cache_spec` has the cache that was settled on,
    and `calibration` the BackgroundCalibration where there is one, else None.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str] | GGUFFile,
        *,
        minicache: MiniCache | CacheSpec | str | os.PathLike[str] | None = None,
        calibrate: str | None = None,
        on_progress: OnProgress | None = None,
        type_k: str | int | None = None,
        type_v: str | int | None = None,
        flash_attn: bool | None = None,
        **arguments: Any,
    ) -> None:
        self._stack = ExitStack()  # close() is called even where what follows raises
        self._turns = Turns()
        # whether there is something to abort, and the lock under which that is decided
        self._busy, self._abortable = False, threading.Lock()
        self._cache: StateCache | None = None
        given = Given(minicache, calibrate, type_k, type_v, flash_attn)
        request = resolve(model_path, given, arguments, _warn, on_progress)
        self.calibration: BackgroundCalibration | None = None
        self.cache_spec = request.spec
        self.minicache = request.spec.minicache
        self._distance_checked = self.minicache is None or self.minicache.plan_file is not None
        with creating_contexts(self.minicache), interrupts_afterwards(), NativeLog().listening() as log:
            try:
                super().__init__(request.path, flash_attn=request.flash_attn, **request.types, **arguments)
            except ValueError as error:
                if "llama_context" not in str(error):
                    raise
                reason = binding.last_error() or log.reason()
                if not reason or "alloc" in reason:
                    reason = f"{reason or 'llama.cpp says no more'}; {request.memory}"
                raise MiniCacheError(f"{error}: {reason}") from error
        usage = GuardedContext.take_over(self._ctx)
        report = self.kv_report() if self.minicache else None
        # 0 also where the model has a plain cache in spite of what was asked for
        window = report.window if report else 0
        self.exact_window = ExactWindow(window - window_first(window))
        if report and not report.active and report.note:
            _warn(f"{report.note}; this model's cache is a plain one, of {self.cache_spec.cache}")
        if request.calibrated_later is not None:
            self.calibration = BackgroundCalibration(
                request.calibrated_later,
                self._model.model,
                usage,
                *machine(arguments),
                on_progress,
            )
            # before the model is freed
            self._stack.callback(self.calibration.cancel)

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**state, "minicache": self.minicache}

    def close(self) -> None:
        """Frees the context and the model; whatever is called afterwards raises MiniCacheError.

        What another thread evaluates is ended first, as by abort(), and whatever it does with the Llama is waited for.
        """
        self._turns.end(self.abort)
        self._ctx = self._model = self.tokenizer_ = Closed()  # type: ignore[assignment]
        super().close()

    def abort(self) -> None:
        """Ends what another thread evaluates, a long prompt too, within milliseconds: AbortedError is raised there.

        The tokens of the batches before it stay, and the Llama can be used again at once. Without an evaluation nothing
        happens. What a GPU computes is not interrupted.
        """
        with self._abortable:
            if self._busy:
                binding.stop(self._ctx.ctx, True)

    def kv_report(self) -> KVReport:
        """What the KV cache takes, as allocated, and which layers are merged."""
        with self._turns.used():
            return read_report(self._ctx.ctx)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Inside, no other thread uses the context, and abort() ends what is evaluated."""
        with self._turns.step():
            ctx = self._ctx.ctx
            self._busy = True
            try:
                yield
            finally:
                with self._abortable:
                    self._busy = False
                    binding.stop(ctx, False)

    def in_turn(self) -> AbstractContextManager[None]:
        """Inside, this thread has the Llama for itself, also between steps: others get a MiniCacheError."""
        return self._turns.whole()

    def _create_completion(self, *args: Any, **kwargs: Any) -> Generator[Any, Any, None]:
        chunks: Any = super()._create_completion(*args, **kwargs)
        return self._turns.of(chunks)

    def generate(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Generator[int, Any, None]:
        if not len(tokens) and kwargs.get("reset", True):
            raise MiniCacheError(
                "a prompt without any token cannot be continued: give it one, such as token_bos()"
            )
        return self._turns.of(super().generate(tokens, *args, **kwargs))

    def reset(self) -> None:
        with self._turns.step():
            super().reset()  # type: ignore[no-untyped-call]

    def tokenize(self, text: bytes, *args: Any, **kwargs: Any) -> list[int]:
        with self._turns.used():
            return super().tokenize(text, *args, **kwargs)

    def detokenize(self, tokens: list[int], *args: Any, **kwargs: Any) -> bytes:
        with self._turns.used():
            n_vocab = self.n_vocab()
            if wrong := [token for token in tokens if not 0 <= token < n_vocab]:
                raise MiniCacheError(f"token {wrong[0]}: this model has those from 0 to {n_vocab - 1}")
            return super().detokenize(tokens, *args, **kwargs)

    def sample(self, *args: Any, **kwargs: Any) -> int:
        with self._alone():
            # llama.cpp ends the process where there are none
            idx = kwargs.get("idx")
            row = -1 if idx is None else idx - self.n_tokens
            if not self.n_tokens or not llama_cpp.llama_get_logits_ith(self._ctx.ctx, row):
                raise MiniCacheError(
                    "there are no logits to sample from: evaluate a token first; those of all tokens, and not only of "
                    "the last one, take logits_all=True"
                )
            return int(super().sample(*args, **kwargs))

    def embed(self, input: str | list[str], *args: Any, **kwargs: Any) -> Any:
        if not input and not isinstance(input, str):
            raise MiniCacheError("there is no text to embed")
        for text in [input] if isinstance(input, str) else input:
            if not self.tokenize(text.encode()):
                raise MiniCacheError("a text without any token has no embedding; leave it out")
        with self._alone():
            return super().embed(input, *args, **kwargs)

    def eval(self, tokens: Sequence[int]) -> None:
        with self._alone():
            self._eval(tokens)
        if not self._distance_checked and self.n_tokens >= WARN_TOKENS:
            self._distance_checked = True
            distance = self.kv_report().distance
            if distance is not None and distance > WARN_DISTANCE:
                warnings.warn(distance_warning(distance), MiniCacheWarning, stacklevel=2)

    def _eval(self, tokens: Sequence[int]) -> None:
        """Evaluates tokens and, where tokens were taken back, earlier tokens that a window has lost."""
        end = self.n_tokens
        again = end if self._sliding_window_lost(end) else self.exact_window.to_read_again(end)
        if len(tokens) and again:
            self.n_tokens -= again
            tokens = [*self.input_ids[end - again : end].tolist(), *tokens]
        before = self.n_tokens
        try:
            super().eval(tokens)
        except AbortedError:
            self._drop_what_is_incomplete()
            raise
        finally:
            self.exact_window.read(before, self.n_tokens)

    def _drop_what_is_incomplete(self) -> None:
        """Removes what the batch that was ended has left in the memory; all of it where no part can be removed."""
        memory = llama_cpp.llama_get_memory(self._ctx.ctx)
        if not llama_cpp.llama_memory_seq_rm(memory, 0, self.n_tokens, -1):
            binding.clear(self._ctx.ctx)
            self.n_tokens = 0

    def _sliding_window_lost(self, n_tokens: int) -> bool:
        """Whether sliding-window layers have forgotten tokens that they need to go on from the first `n_tokens`.

        They forget those behind their window as they go, so that not much can be taken back.
        """
        window = llama_cpp.llama_model_n_swa(self._model.model)
        if not n_tokens or not window or self._is_hybrid:
            return False
        oldest = llama_cpp.llama_memory_seq_pos_min(llama_cpp.llama_get_memory(self._ctx.ctx), 0)
        return bool(oldest < 0 or oldest > max(0, n_tokens - window))

    @property
    def cache(self) -> StateCache | None:
        """The cache of states that set_cache() was given; a state in it that does not fit is a miss, with a warning."""
        return self._cache

    @cache.setter
    def cache(self, cache: BaseLlamaCache | None) -> None:
        self._cache = StateCache.of(cache)

    def save_state(self) -> llama_cpp.LlamaState:
        """As in llama_cpp, but device errors are MiniCacheErrors, and scores are included only with logits_all=True."""
        with self._alone():
            return states.state_of(self)

    def load_state(self, state: llama_cpp.LlamaState) -> None:
        """As in llama_cpp, but nothing of this Llama changes before the native state has been accepted."""
        with self._alone():
            try:
                states.load(self, state)
            except MiniCacheError as error:
                if isinstance(state, states.FoundState):
                    raise state.missed(error) from error
                raise
            self.exact_window.restored(self.n_tokens)


class Closed:
    """Stands for the parts of a Llama that has been closed, through which native code would be called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise MiniCacheError(CLOSED)


def _warn(text: str) -> None:
    """Warns at the line of the caller's own code that asked for the Llama."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("minicache_cpp."):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, MiniCacheWarning, stacklevel=level)


def distance_warning(distance: float) -> str:
    return (
        f"the layers merged here have a mean distance of {distance:.2f} (0: the same direction, 0.5: "
        f"unrelated); above {WARN_DISTANCE} merging them loses more than 2-bit quantization would. "
        "A later start layer, a larger retain, or a plain quantized cache may well serve this model better"
    )
