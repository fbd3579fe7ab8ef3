"""How a calibration is done: its options, their defaults, and what is refused before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..cache.plan_file import is_plan
from ..errors import MiniCacheError
from ..host.files import refuse_to_write
from ..host.threads import default_threads
from ..modelfile.gguf_file import GGUFFile
from ..options import ALL_LAYERS, MOST, MOST_THREADS
from .grouping import DEFAULT_GROUP, GROUPINGS

# tokens of text, by whether the calibration is thorough
DEFAULT_TOKENS = {False: 7680, True: 40960}
DEFAULT_BLOCK = 128
DEFAULT_WINDOW = 64
# a model with fewer bytes of weights is run by one thread
TINY = 32 * 2**20


@dataclass(frozen=True)
class Options:
    """The options of `minicache calibrate`, with its defaults. One of `ratio`, `max_kl` and `budget` is given."""

    # UTF-8 files to calibrate with, beside as much of the package's own text
    texts: tuple[Path, ...] = ()
    # f16 bytes per cached token over the plan's, at least
    ratio: float | None = None
    # KL divergence from the model's own f16 cache, in nats per token, at most
    max_kl: float | None = None
    # bytes of the whole cache at a context of n_ctx tokens, at most
    budget: int | None = None
    n_ctx: int = 0
    # K is coded relative to multiples of this position; 0: as it is after RoPE
    rope_block: int = DEFAULT_BLOCK
    # the first and the latest tokens of each stream, which are kept uncoded
    window: int = DEFAULT_WINDOW
    # a key of GROUPINGS
    group: str = DEFAULT_GROUP
    # whether more text is fitted to and probed, and the plan measured and checked at longer contexts
    thorough: bool = False
    # tokens of text to work with, of the given and of the package's own each; None: as DEFAULT_TOKENS says
    tokens: int | None = None
    # how many times the sensitivities are measured again, at the errors of the plan that was chosen
    refine: int = 0
    # CPU threads; 0: as default_threads() says, or one for a tiny model
    threads: int = 0
    # layers on the GPU; -1: all
    gpu_layers: int = 0

    @property
    def n_token(self) -> int:
        """The tokens of text to work with."""
        return DEFAULT_TOKENS[self.thorough] if self.tokens is None else self.tokens


def check_options(options: Options) -> None:
    """Raises MiniCacheError where an option is outside its range."""
    from ..cache.native_settings import MAX_WINDOW

    if options.ratio is not None and not 1 <= options.ratio < float("inf"):
        raise MiniCacheError(f"--ratio {options.ratio:g}: it must be 1 or more")
    if options.max_kl is not None and not 0 < options.max_kl < float("inf"):
        raise MiniCacheError(f"--max-kl {options.max_kl:g}: it must be more than 0")
    for name, least, most in (
        ("n_ctx", 0, MOST),
        ("rope_block", 0, 1024),
        ("window", 0, MAX_WINDOW),
        ("n_token", 128, 2**24),
        ("refine", 0, 10),
        ("threads", 0, MOST_THREADS),
        ("gpu_layers", ALL_LAYERS, MOST),
    ):
        if not least <= getattr(options, name) <= most:
            option = {"n_ctx": "ctx", "n_token": "tokens"}.get(name, name).replace("_", "-")
            raise MiniCacheError(f"--{option} {getattr(options, name)}: it must be from {least} to {most}")
    if options.group not in GROUPINGS:
        raise MiniCacheError(f"group={options.group!r}: it must be one of {', '.join(GROUPINGS)}")
    if options.refine and not options.thorough:
        raise MiniCacheError("--refine measures with whole caches again: it goes with --thorough")
    # chunks must be longer than the window, as errors show only beyond it
    least = 128 + 4 * options.window
    if options.n_token < least:
        raise MiniCacheError(
            f"--tokens {options.n_token}: with --window {options.window} it must be {least} or more"
        )


def check_output(output: Path | None) -> None:
    """Raises MiniCacheError for a path that cannot be written, before minutes of work rather than after.

    A file that is there already is replaced only if it is a plan.
    """
    if output is not None:
        refuse_to_write(output, "a plan", is_plan)


def threads_for(file: GGUFFile) -> int:
    """The CPU threads for a model: one for a tiny model, where synchronising threads costs more than they save."""
    return 1 if file.weight_bytes < TINY else default_threads()
