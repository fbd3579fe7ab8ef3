"""What each method costs on one text: its distance from the exact cache's predictions, and the bytes that it stores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from minicache_cpp.evaluate.losses import Losses
from minicache_cpp.host.tables import aligned
from minicache_cpp.reading.divergence import Floats, log_probabilities

from .method import Method
from .simulated_cache import SimulatedCache
from .transformer import read_text
from .weights import Weights

# the table's columns: title, field of a row, format
COLUMNS = (
    ("bytes/token", "token_bytes", ".0f"),
    ("ratio", "ratio", ".2f"),
    ("with all", "all_bytes", ".0f"),
    ("total", "total_ratio", ".2f"),
    ("mean KL", "kl_mean", ".5f"),
    ("±", "kl_mean_stderr", ".5f"),
    ("median", "kl_median", ".5f"),
    ("99 %", "kl_p99", ".4f"),
    ("top-1", "top1", ".1%"),
    ("ppl", "ppl", ".3f"),
)


@dataclass(frozen=True)
class Row:
    """The figures of one method. KL in nats, bytes of all layers."""

    method: str
    # of a coded token, and the f16 cache's bytes over them
    token_bytes: float
    ratio: float
    # of the whole cache at this context for each token, exact tokens and tables included, and f16's over them
    all_bytes: float
    total_ratio: float
    kl_mean: float
    kl_mean_stderr: float
    kl_median: float
    kl_p99: float
    top1: float
    ppl: float
    # of the exact cache
    ppl_exact: float


def measure(
    weights: Weights,
    tokens: Sequence[int],
    methods: dict[str, Method],
    block: int,
    tail: int,
    on_step: Callable[[str], None],
) -> list[Row]:
    """Reads the tokens with each method in turn, and scores the predictions of the second half.

    block: how many tokens are read at a time. tail: how many of the latest tokens every method keeps exactly.
    """
    scored_from = len(tokens) // 2
    layers = weights.shape.layers

    def predictions(what: str, method: Method | None) -> Floats:
        """The log-probabilities after each scored token, [n, n_vocab]."""
        cache = SimulatedCache(layers, len(tokens), method, tail)
        found = []
        for first, logits in read_text(weights, tokens, block, cache, scored_from):
            on_step(f"{what}: {first} of {len(tokens)} tokens")
            found.append(log_probabilities(logits))
        return np.concatenate(found)

    on_step("the exact cache")
    reference = predictions("the exact cache", None)
    following = list(tokens[scored_from + 1 :])
    exact = Losses()
    exact.add(reference, reference, following, scored_from)
    rows = []
    for name, method in methods.items():
        on_step(name)
        found = Losses()
        found.add(reference, predictions(name, method), following, scored_from)
        rows.append(_row(name, method, found, exact, len(tokens), tail))
    return rows


def _row(name: str, method: Method, found: Losses, exact: Losses, n_tokens: int, tail: int) -> Row:
    # in float32 the exact cache is reproduced to the bit, so its own losses are the floor
    summary = found.summary(exact)
    f16 = sum(2.0 * (layer.n_k + layer.n_v) for layer in method.shape.layers)
    all_bytes = method.n_bytes(n_tokens, tail) / n_tokens
    return Row(
        name,
        method.token_bytes,
        f16 / method.token_bytes,
        all_bytes,
        f16 / all_bytes,
        summary["kl_mean"],
        summary["kl_mean_stderr"],
        summary["kl_median"],
        summary["kl_p99"],
        summary["top1"],
        summary["ppl"],
        exact.summary(exact)["ppl"],
    )


def table(rows: list[Row]) -> str:
    """The rows as a table of plain text."""
    head = ["method", *(title for title, _, _ in COLUMNS)]
    cells = [[row.method, *(f"{getattr(row, name):{form}}" for _, name, form in COLUMNS)] for row in rows]
    return "\n".join([*aligned([head, *cells]), f"perplexity with the exact cache: {rows[0].ppl_exact:.3f}"])
