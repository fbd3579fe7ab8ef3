"""Readers of files and texts. Each makes its samples, changes one of them, and reads the result.

`read` returns "accepted" or "refused". What raises MiniCacheError is refused too; anything else that is raised is a
finding, and so is WrongError.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Protocol

from campaigns.mutations import gguf_fields, mutated
from campaigns.state_parts import state_fields, with_right_checksums
from minicache_cpp import CacheSpec, MiniCache
from minicache_cpp.cache.checked import checked_specs
from minicache_cpp.modelfile.fingerprint import fingerprint
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.native import binding
from minicache_cpp.native.model_shape import model_shape
from oracle.model import Config
from support import tiny_models
from support.contexts import Context, ContextRefused, interleaved, run
from support.family_caches import LoadedFamily
from support.loaded import Loaded
from support.plans import ALL_PAIRS, LAYER_TYPES, aligned, coded, plain
from support.tiny_models import TinyModel, prompt

ACCEPTED, REFUSED = "accepted", "refused"
MOST_CONTEXT_TOKENS = 3000


class WrongError(Exception):
    """Something that a reader did and must not do."""


class Reader(Protocol):
    def mutate(self, rng: random.Random, /) -> bytes: ...
    def read(self, data: bytes, /) -> str: ...


def small_model() -> TinyModel:
    """For what is read many thousand times."""
    return tiny_models.random_model(n_layer=4, n_embd=64, n_head=2, n_head_kv=1)


class PlanReader:
    """Plans: read, compared with the model, and used by a context."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "changed.plan.gguf"
        self.loaded = Loaded(tiny_models.random_model(), folder / "model.gguf")
        self.file = read_gguf(self.loaded.path)
        base = Config(ALL_PAIRS, retain=0.1, n_ubatch=16)
        made = [
            coded(self.loaded, base, folder / "pairs.gguf"),
            coded(self.loaded, Config(((0, 1, 2), (3, 4, 5)), window=9), folder / "threes.gguf"),
            aligned(self.loaded, base, folder / "aligned.gguf"),
            plain(self.loaded, Config(type_k="q5_0", plain=LAYER_TYPES), folder / "plain.gguf"),
        ]
        samples = [Path(one.plan).read_bytes() for one in made]
        self.samples = [(one, gguf_fields(one)) for one in samples]

    def mutate(self, rng: random.Random) -> bytes:
        return mutated(rng, *rng.choice(self.samples))

    def read(self, data: bytes) -> str:
        self.path.write_bytes(data)
        minicache = MiniCache(plan=self.path)
        checked_specs(self.file, [CacheSpec.of(minicache)])
        try_context(self.loaded, minicache)
        return ACCEPTED


def try_context(
    loaded: Loaded, minicache: MiniCache | None, type_k: str = "f16", type_v: str = "f16"
) -> None:
    types = (minicache.type_k, minicache.type_v) if minicache else (type_k, type_v)
    try:
        with Context(loaded.model, minicache, type_k=types[0], type_v=types[1], n_ubatch=16) as ctx:
            ctx.decode(run(prompt(40)))
            ctx.decode(run(prompt(1), 40))
    except ContextRefused as error:
        if not str(error):
            raise WrongError("a context was refused without a reason") from None


class ModelReader:
    """Headers of models, as `inspect` and `calibrate` read them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "changed.gguf"
        llama = tiny_models.random_model(n_layer=2, n_embd=32, n_head=2, n_head_kv=1, n_ff=32)
        samples = [llama.write(folder / "llama.gguf").read_bytes()]
        self.samples = [(one, gguf_fields(one)) for one in samples]

    def mutate(self, rng: random.Random) -> bytes:
        return mutated(rng, *rng.choice(self.samples))

    def read(self, data: bytes) -> str:
        self.path.write_bytes(data)
        file = read_gguf(self.path)
        fingerprint(file)
        model_shape(file)
        checked_specs(
            file, [CacheSpec.parse("q8_0"), CacheSpec.parse("slerp"), CacheSpec.parse("plain:first=1:q4_0")]
        )
        return ACCEPTED


class StateReader:
    """Saved states of the whole context, or of a sequence; half of them with checksums that are right."""

    def __init__(self, folder: Path, whole: bool) -> None:
        self.whole = whole
        self.loaded = Loaded(small_model(), folder / "model.gguf")
        pairs = ((0, 1), (2, 3))
        base = Config(pairs, retain=0.1, n_ubatch=16, n_seq_max=2)
        beside = Config(((2, 3),), retain=0.5, window=5, n_ubatch=16, n_seq_max=2, unified=False)
        self.contexts = [
            Context.of(self.loaded.model, base),
            Context.of(self.loaded.model, coded(self.loaded, base, folder / "coded.gguf")),
            Context.of(self.loaded.model, coded(self.loaded, beside, folder / "beside.gguf")),
        ]
        for name in ("gemma3", "qwen35"):
            family = LoadedFamily(name, folder / f"{name}.gguf")
            config = family.coded(Config(n_ubatch=16, n_seq_max=2), folder / f"{name}.plan.gguf", window=5)
            self.contexts.append(Context.of(family.model, config, swa_full=False))
        self.tokens = interleaved([prompt(12, 1), prompt(12, 2)])
        self.after = run(prompt(3, 3), 12)
        self.samples = []
        self.expected = []
        for ctx in self.contexts:
            ctx.decode(self.tokens)
            state = ctx.state() if whole else ctx.seq_state(0)
            self.samples.append((state, state_fields(state)))
            self.expected.append(ctx.decode(self.after))
        self.chosen, self.right = 0, False

    def mutate(self, rng: random.Random) -> bytes:
        # states of families are long, and reading them takes time
        self.chosen = rng.choices(range(len(self.contexts)), [6, 6, 6, 1, 1])[0]
        self.right = rng.random() < 0.5
        data = mutated(rng, *self.samples[self.chosen])
        return with_right_checksums(data) if self.right else data

    def read(self, data: bytes) -> str:
        ctx, same = self.contexts[self.chosen], data == self.samples[self.chosen][0]
        ctx.clear()
        ctx.decode(self.tokens)
        before = [ctx.positions(seq) for seq in range(2)]
        done = ctx.restore(data) if self.whole else ctx.restore_seq(data, 0)
        if not done and not self.right:
            if [ctx.positions(seq) for seq in range(2)] != before:
                raise WrongError("a refused state has changed the context")
            if not binding.last_error():
                raise WrongError("a state was refused without a reason")
        # bytes behind the state may differ, which upstream does not look at, and those of the architecture's name
        if done and not self.right and not same and not self.goes_on_as_before(ctx):
            raise WrongError("a damaged state was accepted")
        self.use(ctx)
        ctx.clear()
        ctx.decode(self.tokens)
        if not self.goes_on_as_before(ctx):
            raise WrongError("the context is not what it was when it has been cleared")
        return ACCEPTED if done else REFUSED

    def goes_on_as_before(self, ctx: Context) -> bool:
        return bool((ctx.decode(self.after) == self.expected[self.chosen]).all())

    def use(self, ctx: Context) -> None:
        """Goes on from whatever was accepted; a batch may be refused."""
        for seq in range(2):
            at = ctx.positions(seq)[1] + 1
            if 0 <= at < 2**31 - 2:
                try:
                    ctx.decode(run(prompt(2), at, seq))
                except RuntimeError:
                    continue
        ctx.seq_rm(0, 3, 7)
