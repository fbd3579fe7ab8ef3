"""The two models and the course of their training: everything that a run depends on besides the corpus."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of the network, which the GGUF metadata repeats."""

    n_vocab: int = 4096
    n_layer: int = 12
    n_embd: int = 192
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 64
    n_ff: int = 512
    n_ctx: int = 4096
    rope_theta: float = 10000.0
    rms_eps: float = 1e-5

    def to_dict(self) -> dict[str, int | float]:
        """The fields as plain values, for checkpoints."""
        return asdict(self)


@dataclass(frozen=True)
class Mix:
    """Shares of the kinds of sequence, with prose for the rest, and of those whose positions have a gap (`skip`)."""

    recall: float = 0.0
    talk: float = 0.0
    repeats: float = 0.0
    skip: float = 0.0

    def kind(self, u: float) -> str:
        """The kind that a number drawn evenly from [0, 1) stands for."""
        if u < self.recall:
            return "recall"
        if u < self.recall + self.talk:
            return "talk"
        return "repeats" if u < self.recall + self.talk + self.repeats else "prose"


@dataclass(frozen=True)
class Phase:
    """A part of the training."""

    until: int  # the first step after it
    length: int  # tokens of a sequence
    mix: Mix
    long: float = 0.0  # share of steps with longer sequences
    tokens: int = 2048  # of a step


@dataclass(frozen=True)
class Schedule:
    """The course of a run of `total` steps.

    Learning rates warm up and then stay level, except between the pairs of steps in `decays`, where they fall to zero.

    `embed_std` is the embedding's standard deviation at the start. With `output_copies` the output matrix starts as a
    small copy of it, so that attending to a token already favours saying it, which makes looking back easier to learn.
    From step `muon_from` on, Muon trains q, k and v as well, and both optimisers start afresh.
    """

    phases: tuple[Phase, ...]
    total: int
    decays: tuple[tuple[int, int], ...]
    seed: int = 1
    warmup: int = 60
    lr_muon: float = 0.012
    lr_adam: float = 0.003
    weight_decay: float = 0.1
    embed_std: float = 0.5
    output_copies: bool = False
    muon_from: int | None = None

    def phase(self, step: int) -> Phase:
        """The phase that a step belongs to; the last one has no end."""
        for phase in self.phases:
            if step < phase.until:
                return phase
        return self.phases[-1]

    def rate(self, step: int) -> float:
        """Factor on the learning rates at a step."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        for start, end in self.decays:
            if start <= step < end:
                return (end - step) / (end - start)
        return 1.0


@dataclass(frozen=True)
class Recipe:
    """One model: its shape, its schedule, and the weights of packages in its prose (1 if not named)."""

    title: str
    file: str
    config: ModelConfig
    schedule: Schedule
    packages: dict[str, float] = field(default_factory=dict)


RECIPES: dict[str, Recipe] = {
    "demo": Recipe(
        title="MiniCache demo",
        file="minicache-demo-q8_0.gguf",
        config=ModelConfig(),
        schedule=Schedule(
            phases=(
                Phase(500, 64, Mix(repeats=0.9), tokens=1024),
                Phase(700, 128, Mix(repeats=0.5, talk=0.2)),
                Phase(1000, 256, Mix(recall=0.3, talk=0.28, repeats=0.08, skip=0.2)),
                Phase(1900, 512, Mix(recall=0.22, talk=0.26, repeats=0.03, skip=0.45), long=0.06),
                Phase(1 << 30, 512, Mix(recall=0.18, talk=0.26, repeats=0.01, skip=0.35), long=0.2),
            ),
            total=3000,
            decays=((2000, 3000),),
        ),
    ),
    "mha": Recipe(
        title="MiniCache demo, full heads",
        file="minicache-demo-mha-q8_0.gguf",
        config=ModelConfig(n_layer=8, n_embd=256, n_head=2, n_head_kv=2, head_dim=128, n_ff=512),
        schedule=Schedule(
            phases=(
                Phase(700, 64, Mix(repeats=0.9), tokens=1024),
                Phase(850, 128, Mix(repeats=0.5, talk=0.2)),
                Phase(1100, 256, Mix(recall=0.26, talk=0.34, repeats=0.08, skip=0.2)),
                Phase(1500, 512, Mix(recall=0.20, talk=0.34, repeats=0.03, skip=0.45), long=0.06),
                Phase(2300, 512, Mix(recall=0.16, talk=0.34, repeats=0.01, skip=0.35), long=0.2),
                Phase(2700, 256, Mix(recall=0.4, talk=0.25, repeats=0.03, skip=0.4)),
                Phase(1 << 30, 512, Mix(recall=0.25, talk=0.3, repeats=0.01, skip=0.35), long=0.15),
            ),
            total=3050,
            decays=((1500, 2300), (2700, 3050)),
            seed=2,
            lr_adam=0.002,
            embed_std=1.0,
            output_copies=True,
            muon_from=2300,
        ),
        packages={
            "rust-doc": 3.0,
            "python3.11-doc": 2.0,
            "sqlite3-doc": 1.5,
            "debmake-doc": 2.0,
            "python-django-doc": 1.0,
            "postgresql-doc-15": 0.5,
            "apache2-doc": 0.3,
            "postfix-doc": 0.3,
            "cmake-doc": 0.3,
            "python-sqlalchemy-doc": 0.3,
        },
    ),
}
