"""Probes: how much errors in K and V change the model's output, in a few short steps.

The model reads a text once, and its Q, K and V are seen. From them follows what attention would return for the last
tokens with the K (or V) of a layer restored from a code. The model then reads those tokens again, as sequences that
share the tokens before: in each of them the attention of one layer is moved by that difference, enlarged so that the
loss it causes stands out from the noise of the arithmetic. To first order the result moves in proportion to the error,
and the KL divergence with its square, so that the divergence over the square of the enlargement is what the errors
themselves cost.

One text may find a layer ten times as sensitive as another one does, and a token as well, so several texts are read,
and several tokens of each.

Codes are fitted to other text than what is read with them later, and lose more of that; how much more differs between
layers. So no text is probed with codes that were fitted to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..cache.code_format import KINDS, Kind
from ..host.files import read_json, write_json
from ..host.threads import side_by_side
from ..reading.model import NativeModel
from .attention import attention
from .code_fit import restored
from .group_fit import GroupFit
from .material import Chunk, Material
from .observed import observing
from .probed_text import ProbedText
from .sensitivity import PROBE_WIDTH, Sensitivities

Floats = NDArray[np.float32]

# the tokens of a text that are read once, beside the window. Early layers look far back: with 112 tokens in place of
# 400 they seem to count several times less than they do
PREFIX = 368
# the tokens of all probes that are read in one step
STEP = 112
# the KL divergence that a probe is expected to cause: far above the noise, and small enough to go with the square of
# the error
WANTED_KL = 0.04
# the largest part of attention's result that may differ from what is computed here
MOST_DIFFERENCE = 0.1
# the least loss that is counted, relative to the noise
LEAST_KL = 0.2
# the expected loss, were all of a layer's K or V lost, where a model's attention cannot be computed here: what small
# models have on average
USUAL: Mapping[Kind, float] = {"k": 0.13, "v": 0.008}
# the parts of the text to fit to: where it is probed too, each part is, with codes that were fitted to the others
PARTS = 4


@dataclass(frozen=True)
class Way:
    """How the layers are probed, each by itself, and how far what is found is believed."""

    # whether the texts to fit to are read too, beside those to measure on
    fitted: bool
    # the most texts that are read
    texts: int
    # the last tokens of a text, which are read again in each probe
    tokens: int
    # how far the logarithms of the sensitivities stay from the mean of their kind, as a part of each difference is
    # chance
    kept: float


# by whether the calibration is thorough; how many texts the fast way has is settled where text is cut
WAYS = {
    False: Way(fitted=False, texts=20, tokens=8, kept=0.8),
    True: Way(fitted=True, texts=24, tokens=16, kept=0.9),
}


@dataclass(frozen=True)
class Probe:
    """A layer whose K, or whose V, is restored from a code."""

    kind: Kind
    layer: int


def probes_of(layers: Iterable[int]) -> list[Probe]:
    """The probes of a model with these layers."""
    layers = list(layers)
    return [Probe(kind, layer) for kind in KINDS for layer in layers]


class Probing:
    """What is known from the probes of the texts so far. `fits` are the codes of single layers, by layer."""

    def __init__(self, fits: Mapping[int, GroupFit], way: Way) -> None:
        self.fits, self.way = fits, way
        self.probes = probes_of(fits)
        # how much the changes of attention's result are enlarged: in all texts alike, so that they can be compared
        self.scales = {
            probe: (WANTED_KL / (USUAL[probe.kind] * self._error(probe))) ** 0.5 for probe in self.probes
        }
        # the losses of each text
        self.losses: dict[Probe, list[float]] = {probe: [] for probe in self.probes}

    def add(self, noise: float, losses: Sequence[float]) -> None:
        """Takes what each probe lost of a text, and what is lost without one."""
        for probe, loss in zip(self.probes, losses, strict=True):
            self.losses[probe].append(max(loss - noise, LEAST_KL * noise, 1e-9))

    def sensitivities(self) -> Sensitivities:
        # one text may be a hundred times as sensitive as another, so the mean is that of the logarithms
        logs = {
            (probe.kind, probe.layer): float(
                np.mean(np.log(losses)) - np.log(self.scales[probe] ** 2 * self._error(probe))
            )
            for probe, losses in self.losses.items()
        }
        means = {kind: np.mean([one for (of, _), one in logs.items() if of == kind]) for kind in KINDS}
        whole = {
            (kind, layer): float(np.exp(means[kind] + self.way.kept * (one - means[kind])))
            for (kind, layer), one in logs.items()
        }
        return sensitivities_of(self.fits, whole)

    def _error(self, probe: Probe) -> float:
        """The error of the probe's code, in units of that of no code at all."""
        part = self.fits[probe.layer].part(probe.kind)
        return max(part.error(part.uniform(PROBE_WIDTH)) / max(part.whole, 1e-30), 1e-6)


@dataclass(frozen=True)
class ToProbe:
    """A text, and the chunks to fit to that its codes must not know, by their numbers."""

    chunk: Chunk
    without: tuple[int, ...] = ()


def tokens_read(texts: Sequence[ToProbe], n_layer: int, way: Way) -> int:
    """The tokens that the model reads for the probes of so many layers on these texts."""
    return sum(len(text.chunk.tokens) + (1 + len(KINDS) * n_layer) * way.tokens for text in texts)


def probed_texts(material: Material, way: Way) -> list[ToProbe]:
    """The texts that are read for the probes, those of the same codes one after the other."""
    texts = [ToProbe(chunk) for chunk in beginnings(material.measure, way)]
    if way.fitted:
        n_chunk = len(material.fit)
        for part in range(min(PARTS, n_chunk)):
            without = tuple(range(part, n_chunk, PARTS))
            chunks = beginnings([material.fit[number] for number in without], way)
            texts += [ToProbe(chunk, without) for chunk in chunks]
    n_text = min(len(texts), way.texts)
    # of each part some
    return [texts[(2 * number + 1) * len(texts) // (2 * n_text)] for number in range(n_text)]


def beginnings(texts: Sequence[Chunk], way: Way) -> list[Chunk]:
    """The beginning of each text and, where it is long enough, as much from its middle on."""
    pieces = []
    for text in texts:
        n_text, length = len(text.tokens), text.window + PREFIX + way.tokens
        for begin in (0, n_text // 2) if n_text >= 2 * length else (0,):
            pieces.append(Chunk(text.tokens[begin : begin + length], text.position + begin, text.window))
    return pieces


def usual_sensitivities(fits: Mapping[int, GroupFit]) -> Sensitivities:
    """Sensitivities for which every layer's K counts alike, and every layer's V; `fits` are codes of single layers."""
    return sensitivities_of(fits, {(kind, layer): USUAL[kind] for kind in KINDS for layer in fits})


def sensitivities_of(fits: Mapping[int, GroupFit], whole: Mapping[tuple[Kind, int], float]) -> Sensitivities:
    """The sensitivities that follow from the losses expected if all of a layer's K or V were lost."""
    return Sensitivities(
        {
            (kind, layer): loss / max(fits[layer].part(kind).whole, 1e-30)
            for (kind, layer), loss in whole.items()
        },
        whole,
    )


def probe_sensitivities(
    model: NativeModel,
    codes: Callable[[Collection[int]], Mapping[int, GroupFit]],
    texts: Sequence[ToProbe],
    way: Way,
    threads: int,
    memory: Path,
    on_text: Callable[[int, Mapping[tuple[str, int], Floats]], None] = lambda number, seen: None,
    on_step: Callable[[float], None] = lambda done: None,
) -> Sensitivities | None:
    """Measures the sensitivities of all layers on the last tokens of each text.

    `codes` returns codes of single layers, by layer, that were fitted to all chunks but those of these numbers. Calls
    `on_text` with the number of each text that is read, and what was seen of it, by kind ("q", "k", "v" and "o") and
    layer, and `on_step` with the share that is done, after each step. The losses of each text go to the file `memory`,
    and the texts that are there already are not read again. Returns None where the model's attention is not what
    attention.py computes, or its memory cannot drop tokens.
    """
    probing = Probing(codes(()), way)
    without: tuple[int, ...] = ()
    fits = probing.fits
    known: list[list[float]] = read_json(memory, [])
    for noise, *losses in known:
        probing.add(noise, losses)
    length = max(len(one.chunk.tokens) for one in texts)
    n_at_once = STEP // way.tokens
    with observing(model, length + STEP, threads, n_at_once + 1, max(length, STEP)) as observed:
        for number, one in enumerate(texts[len(known) :], len(known)):
            on_step(number / len(texts))
            if one.without != without:
                without, fits = one.without, codes(one.without)
            text = ProbedText(observed, one.chunk, way.tokens, model.n_vocab)
            seen = text.begin()
            changes = attention_changes(seen, text.positions, way.tokens, fits, threads) if seen else None
            if seen is None or changes is None:
                return None
            on_text(number, seen)
            moves = [changes.noise(probing), *(changes.move(probe, probing) for probe in probing.probes)]
            found: list[float] = []
            for begin in range(0, len(moves), n_at_once):
                found += text.losses(moves[begin : begin + n_at_once])
                on_step((number + len(found) / len(moves)) / len(texts))
            probing.add(found[0], found[1:])
            known.append(found)
            write_json(memory, known)
    return probing.sensitivities()


@dataclass(frozen=True)
class Changes:
    """How attention's result for the last tokens changes, [tokens, n] by kind and layer."""

    of: Mapping[tuple[Kind, int], Floats]

    def move(self, probe: Probe, probing: Probing) -> dict[int, Floats]:
        """What a probe adds to the result of each layer's attention, [tokens, n]."""
        return {probe.layer: probing.scales[probe] * self.of[probe.kind, probe.layer]}

    def noise(self, probing: Probing) -> dict[int, Floats]:
        """Next to nothing, which is enough for the noise."""
        return {layer: 1e-2 * move for layer, move in self.move(probing.probes[0], probing).items()}


def attention_changes(
    seen: Mapping[tuple[str, int], Floats],
    positions: NDArray[np.int64],
    n_probed: int,
    fits: Mapping[int, GroupFit],
    threads: int,
) -> Changes | None:
    """The changes with each layer's K, and V, restored from its code at 3 bits; None where attention differs.

    `seen` has Q, K, V and attention's result of tokens at `positions`, by kind and layer; the last `n_probed` of them
    are probed.
    """

    def changes(number: int) -> tuple[Floats, Floats] | None:
        return layer_changes(seen, positions, n_probed, number, fits[number])

    found: dict[tuple[Kind, int], Floats] = {}
    for number, of_layer in zip(fits, side_by_side(changes, fits, threads), strict=True):
        if of_layer is None:
            return None
        found["k", number], found["v", number] = of_layer
    return Changes(found)


def layer_changes(
    seen: Mapping[tuple[str, int], Floats],
    positions: NDArray[np.int64],
    n_probed: int,
    number: int,
    fit: GroupFit,
) -> tuple[Floats, Floats] | None:
    """The changes of one layer's attention with its K and with its V restored, [tokens, n]; None where it differs."""
    n, source, window = len(positions), fit.source, fit.source.samples.window
    layer = source.samples.shape.layers[number]
    q, k = (seen[kind, number].reshape(n, -1, layer.head_size_k) for kind in "qk")
    v, result = (seen[kind, number].reshape(n, -1, layer.head_size_v) for kind in "vo")
    q, result = q[-n_probed:], result[-n_probed:]
    exact = attention(q, k, v, k, v, window)
    if not np.linalg.norm(exact - result) <= MOST_DIFFERENCE * np.linalg.norm(result):
        return None
    restored_k = restored(fit.k, PROBE_WIDTH, source.coded(number, k, positions))
    restored_k = source.cached(number, restored_k, positions)
    changed_k = attention(q, k, v, restored_k, v, window)
    changed_v = attention(q, k, v, k, restored(fit.v, PROBE_WIDTH, v), window)
    return (changed_k - exact).reshape(n_probed, -1), (changed_v - exact).reshape(n_probed, -1)
