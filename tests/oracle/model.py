"""A Llama-like model in NumPy with a MiniCache cache, simulated cell by cell, slot by slot and ubatch by ubatch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from support.tiny_models import Shape, TinyModel

from .arithmetic import Merged, attend, merge, restore
from .cells import Cells, Token, Ubatch, split, window_slot
from .code import Codec
from .quant import is_quantized, round_magnitude, round_trip

Array = npt.NDArray[np.floating]


class BasisMatrices(NamedTuple):
    """Basis matrices [n_head_kv, d, d] of layers a and b: W x is merged in place of x, and x itself where W is None."""

    k: tuple[Array | None, Array | None]
    v: tuple[Array | None, Array | None]


@dataclass(frozen=True)
class Config:
    """The settings of a context: cache types, streams and ubatches, and what is merged."""

    # layers that share storage: pairs, or as codes any number of layers
    groups: tuple[tuple[int, ...], ...] = ()
    t: float = 0.6
    retain: float = 0.0
    window: int = 0  # how many of a stream's first and latest tokens are kept exactly, at least
    type_k: str = "f16"
    type_v: str = "f16"
    # layers outside groups that have cache types of their own: layer, type of K, type of V
    plain: tuple[tuple[int, str, str], ...] = ()
    pool_type: str = "q8_0"
    n_cells: int = 256  # per stream
    n_ubatch: int = 512
    n_seq_max: int = 1
    unified: bool = True
    # reverses the rule of retention, to show that a test would notice
    keep_most_similar: bool = False
    # one for each group, if groups are kept as codes
    codecs: tuple[Codec, ...] = ()
    rope_block: int = 0  # the base of coded K is the last multiple of it
    # one for each pair, if pairs are merged in bases of their own
    basis_matrices: tuple[BasisMatrices, ...] = ()
    average: bool = False  # keeps means of both vectors, and no magnitudes
    plan: str = ""  # the file with the same settings for the library

    @property
    def n_stream(self) -> int:
        return 1 if self.unified else self.n_seq_max

    @property
    def n_exact(self) -> int:
        """How many of a stream's tokens are kept exactly: the window, or with codes more in a long context."""
        grown = min(self.n_cells // (64 if self.pool_type == "f16" else 32), 1024)
        return grown if self.codecs and 0 < self.window < grown else self.window

    def types(self, layer: int) -> tuple[str, str]:
        """The types of a layer's K and V, or of its group's directions. Codes have none, so f32 stands for them."""
        if self.codecs and any(layer in group for group in self.groups):
            return "f32", "f32"
        own = {number: (type_k, type_v) for number, type_k, type_v in self.plain}
        return own.get(layer, (self.type_k, self.type_v))

    @property
    def block(self) -> int:
        """The number of cells that share a slot for a retained token."""
        return round(1 / self.retain) if self.retain else 0


class PlainLayer:
    """K and V of one layer, rounded to the layer's types."""

    def __init__(self, shape: Shape, config: Config, layer: int) -> None:
        self.layer = layer  # the first of a group
        self.type_k, self.type_v = config.types(layer)
        rows = (config.n_stream, config.n_cells, shape.n_head_kv, shape.head_size)
        self.k, self.v = np.zeros(rows), np.zeros(rows)


class Group(PlainLayer):
    """Directions of K and V, the magnitudes |K_a|, |K_b|, |V_a|, |V_b|, and the slots of retained tokens."""

    def __init__(self, shape: Shape, config: Config, layers: tuple[int, ...]) -> None:
        super().__init__(shape, config, layers[0])
        self.n_layer = len(layers)
        self.mag = np.zeros((config.n_stream, config.n_cells, 4, shape.n_head_kv))
        # the slots of the window come first
        n_slot = config.n_exact + (-(-config.n_cells // config.block) if config.block else 0)
        self.slot_cell = np.full((config.n_stream, n_slot), -1)
        self.slot_distance = np.zeros((config.n_stream, n_slot))
        # K of all layers, then V
        self.pool = np.zeros((config.n_stream, n_slot, 2 * self.n_layer, shape.n_head_kv, shape.head_size))
        self.distances: list[tuple[float, float]] = []  # of K and V, token by token

    def arrays(self) -> list[Array]:
        """The arrays that are copied when a stream is copied."""
        return [self.k, self.v, self.mag, self.slot_cell, self.slot_distance, self.pool]


class CodedGroup(Group):
    """Code rows in place of directions and magnitudes. Upstream's rotation is not applied."""

    def __init__(self, shape: Shape, config: Config, layers: tuple[int, ...], codec: Codec) -> None:
        super().__init__(shape, config, layers)
        self.codec = codec
        self.rows_k, self.rows_v = (
            np.zeros((config.n_stream, config.n_cells, part.row_bytes), dtype=np.uint8)
            for part in (codec.k, codec.v)
        )

    def arrays(self) -> list[Array]:
        return [*super().arrays(), self.rows_k, self.rows_v]


class Oracle:
    def __init__(self, model: TinyModel, config: Config) -> None:
        self.model, self.shape, self.config = model, model.shape, config
        self.cells = [Cells(config.n_cells, config.n_seq_max) for _ in range(config.n_stream)]
        self.groups = {
            layers: CodedGroup(model.shape, config, layers, config.codecs[i])
            if config.codecs
            else Group(model.shape, config, layers)
            for i, layers in enumerate(config.groups)
        }
        # position minus base, set when a token is stored
        self.offsets = np.zeros((config.n_stream, config.n_cells), dtype=int)
        self.side = {layer: (group, side) for group in config.groups for side, layer in enumerate(group)}
        self.plain = {
            layer: PlainLayer(model.shape, config, layer)
            for layer in range(self.shape.n_layer)
            if layer not in self.side
        }
        types = [config.types(layer) for layer in range(self.shape.n_layer)]
        self.rot_k = [self._rotation(type_k, widest=True) for type_k, _ in types]
        self.rot_v = [self._rotation(type_v, widest=False) for _, type_v in types]
        # the smallest difference of two distances that decided which token is retained: if tiny, rounding may decide
        self.margin = np.inf

    #
    # forward
    #

    def decode(self, batch: Sequence[Token]) -> Array:
        """Decodes a batch and returns the logits of every token, [n_tokens, n_vocab]."""
        tokens = list(batch)
        self._apply_shift()
        logits = np.zeros((len(tokens), len(self._weight("output.weight"))))
        for ubatch in split(tokens, self.config.n_ubatch, self.config.unified):
            order = [number for entries in ubatch.entries for number in entries]
            logits[order] = self._forward(ubatch, tokens)
        return logits

    def _forward(self, ubatch: Ubatch, batch: list[Token]) -> Array:
        tokens = [batch[number] for entries in ubatch.entries for number in entries]
        parts = []  # for each stream: the stream, its indices into `tokens`, its cells
        first = 0
        for stream, entries in zip(ubatch.streams, ubatch.entries, strict=True):
            cells = self.cells[stream].find(len(entries))
            self.cells[stream].place(cells, [batch[number] for number in entries])
            for cell, number in zip(cells, entries, strict=True):
                pos = batch[number].pos
                self.offsets[stream, cell] = pos % self.config.rope_block if self.config.rope_block else pos
            parts.append((stream, range(first, first + len(entries)), cells))
            first += len(entries)
        bias = [
            np.stack([self._bias(self.cells[stream], tokens[i]) for i in numbers])
            for stream, numbers, _ in parts
        ]

        pos = np.array([token.pos for token in tokens])
        hidden = self._weight("token_embd.weight")[[token.id for token in tokens]].astype(np.float64)
        exact: dict[int, tuple[Array, Array]] = {}  # K and V of the ubatch, layer by layer
        for layer in range(self.shape.n_layer):
            q, k, v = self._qkv(layer, self._norm(hidden, f"blk.{layer}.attn_norm.weight"), pos)
            rot_k, rot_v = self.rot_k[layer], self.rot_v[layer]
            q, k, v = (
                self._turned(layer, kind, x, rot)
                for kind, x, rot in (("k", q, rot_k), ("k", k, rot_k), ("v", v, rot_v))
            )
            exact[layer] = (k, v)
            attended = np.zeros((len(tokens), self.shape.n_head, self.shape.head_size))
            for (stream, numbers, cells), mask in zip(parts, bias, strict=True):
                rows = slice(numbers.start, numbers.stop)
                if layer in self.plain:
                    store = self.plain[layer]
                    store.k[stream, cells] = round_trip(k[rows], store.type_k)
                    store.v[stream, cells] = round_trip(v[rows], store.type_v)
                    # our kernels use queries unrounded, upstream's round them
                    ours = self.config.groups or self.config.plan
                    query = q[rows] if ours else round_trip(q[rows], query_type(store.type_k))
                    keys, values = store.k[stream], store.v[stream]
                else:
                    query = q[rows]
                    keys, values = self._restored(layer, stream)
                    keys[cells], values[cells] = k[rows], v[rows]
                attended[rows] = attend(query, keys, values, mask, max_bias=self.shape.max_bias)
            if layer in self.side and layer == self.side[layer][0][-1]:
                layers = self.side[layer][0]
                for stream, numbers, cells in parts:
                    rows = slice(numbers.start, numbers.stop)
                    ks, vs = ([exact[il][i][rows] for il in layers] for i in (0, 1))
                    self._merge(layers, stream, cells, ks, vs)
            attended = self._turned(layer, "v", attended, rot_v, back=True)
            attended = rotate(attended, rot_v).reshape(len(tokens), -1)
            hidden = hidden + attended @ self._weight(f"blk.{layer}.attn_output.weight").T
            normed = self._norm(hidden, f"blk.{layer}.ffn_norm.weight")
            gate, up = (normed @ self._weight(f"blk.{layer}.ffn_{name}.weight").T for name in ("gate", "up"))
            hidden = (
                hidden + (gate / (1 + np.exp(-gate)) * up) @ self._weight(f"blk.{layer}.ffn_down.weight").T
            )
        return self._norm(hidden, "output_norm.weight") @ self._weight("output.weight").T

    def _qkv(self, layer: int, x: Array, pos: Array) -> tuple[Array, Array, Array]:
        heads = {"q": self.shape.n_head, "k": self.shape.n_head_kv, "v": self.shape.n_head_kv}
        result = {}
        for name, n_head in heads.items():
            y = x @ self._weight(f"blk.{layer}.attn_{name}.weight").T
            y = y + self.model.weights.get(f"blk.{layer}.attn_{name}.bias", 0)
            result[name] = y.reshape(len(x), n_head, self.shape.head_size)
        q, k = (rope(result[name], pos, self.shape) for name in ("q", "k"))
        rot_k, rot_v = self.rot_k[layer], self.rot_v[layer]
        return rotate(q, rot_k), rotate(k, rot_k), rotate(result["v"], rot_v)

    def _turned(self, layer: int, kind: str, x: Array, rot: Array | None, back: bool = False) -> Array:
        """Takes heads [n, heads, d], which upstream has rotated, to the basis of their layer's group, or back."""
        if not self.config.basis_matrices or layer not in self.side:
            return x
        layers, side = self.side[layer]
        matrices = self.config.basis_matrices[self.config.groups.index(layers)]
        matrix = getattr(matrices, kind)[side]
        if matrix is None:
            return x
        matrix = np.repeat(matrix, x.shape[1] // len(matrix), axis=0)
        own = rotate(x, rot)  # the rotation is its own inverse
        turned = np.einsum("hji,nhj->nhi" if back else "hij,nhj->nhi", matrix.astype(np.float64), own)
        return rotate(turned, rot)

    def _norm(self, x: Array, name: str) -> Array:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.shape.eps) * self._weight(name)

    def _weight(self, name: str) -> Array:
        return self.model.weights[name]

    def _bias(self, cells: Cells, token: Token) -> Array:
        distance = (
            -np.abs(cells.pos - token.pos).astype(np.float16).astype(float) if self.shape.max_bias else 0.0
        )
        return np.where(cells.visible(token), distance, -np.inf)

    #
    # the merged cache
    #

    def _restored(self, layer: int, stream: int) -> tuple[Array, Array]:
        """K and V of all cells as one layer of a group sees them: restored, or exact where the cell is retained."""
        key, side = self.side[layer]
        group = self.groups[key]
        if isinstance(group, CodedGroup):
            keys = group.codec.restore_k(group.rows_k[stream], side, self._bases(stream))
            values = group.codec.restore_v(group.rows_v[stream], side)
        else:
            keys = restore(group.k[stream], group.mag[stream, :, side])
            values = restore(group.v[stream], group.mag[stream, :, 2 + side])
        held = group.slot_cell[stream] >= 0
        cells = group.slot_cell[stream, held]
        keys[cells] = group.pool[stream, held, side]
        values[cells] = group.pool[stream, held, group.n_layer + side]
        return keys, values

    def _bases(self, stream: int) -> Array:
        cells = self.cells[stream]
        return np.where(cells.used, cells.pos - self.offsets[stream], 0)

    def _merge(
        self, key: tuple[int, ...], stream: int, cells: list[int], ks: list[Array], vs: list[Array]
    ) -> None:
        group, config, n = self.groups[key], self.config, len(key)
        if isinstance(group, CodedGroup):
            k, v = (group.codec.encode_k(ks, self._bases(stream)[cells]), group.codec.encode_v(vs))
            group.rows_k[stream, cells], group.rows_v[stream, cells] = k.rows, v.rows
        else:
            k, v = merge(*ks, config.t), merge(*vs, config.t)
            if config.average:
                k, v = average(k, *ks), average(v, *vs)
            group.k[stream, cells] = round_trip(k.direction, group.type_k)
            group.v[stream, cells] = round_trip(v.direction, group.type_v)
            group.mag[stream, cells] = round_magnitude(np.stack([k.mag_a, k.mag_b, v.mag_a, v.mag_b], axis=1))
        group.distances += zip(k.distance.mean(-1), v.distance.mean(-1), strict=True)
        used = self.cells[stream].used
        for slot, held in enumerate(group.slot_cell[stream]):
            if held in cells or (held >= 0 and not used[held]):
                group.slot_cell[stream, slot] = -1
        distance = ((k.distance + v.distance) / 2).mean(-1)
        pool_k = config.type_k if config.pool_type == "cache" else config.pool_type
        pool_v = config.type_v if config.pool_type == "cache" else config.pool_type
        for i, cell in enumerate(cells):
            rows = (
                round_trip(np.stack([x[i] for x in ks]), pool_k),
                round_trip(np.stack([x[i] for x in vs]), pool_v),
            )
            if config.n_exact:
                slot = window_slot(cell, config.n_exact)
                group.slot_cell[stream, slot] = cell
                group.pool[stream, slot, :n], group.pool[stream, slot, n:] = rows
            if not config.block:
                continue
            slot = config.n_exact + cell // config.block
            if group.slot_cell[stream, slot] >= 0:
                gain = distance[i] - group.slot_distance[stream, slot]
                self.margin = min(self.margin, abs(gain))
                if (gain >= 0) if config.keep_most_similar else (gain <= 0):
                    continue
            group.slot_cell[stream, slot], group.slot_distance[stream, slot] = cell, distance[i]
            group.pool[stream, slot, :n], group.pool[stream, slot, n:] = rows

    def retained(self, key: tuple[int, ...], stream: int = 0) -> set[int]:
        """The cells whose tokens a group retains, without those of the window."""
        held = self.groups[key].slot_cell[stream, self.config.n_exact :]
        return {int(cell) for cell in held if cell >= 0}

    #
    # sequence operations
    #

    def seq_rm(self, seq: int, p0: int, p1: int) -> None:
        for one in [seq] if seq >= 0 else range(self.config.n_seq_max):
            cells = self._stream(one)
            cells.leave(cells.within(one, p0, p1), one)

    def seq_keep(self, seq: int) -> None:
        self._stream(seq).keep(seq)

    def seq_cp(self, source: int, target: int, p0: int = -1, p1: int = -1) -> None:
        if self.config.unified:
            self.cells[0].member[target, self.cells[0].within(source, p0, p1)] = True
            return
        cells = self.cells[target] = Cells(self.config.n_cells, self.config.n_seq_max)
        cells.head = self.cells[source].head
        copied = self.cells[source].within(source, -1, -1)
        cells.pos[copied], cells.member[target, copied] = self.cells[source].pos[copied], True
        cells.shift[copied] = self.cells[source].shift[copied]
        for layer in self.plain.values():
            layer.k[target], layer.v[target] = layer.k[source], layer.v[source]
        for group in self.groups.values():
            for array in group.arrays():
                array[target] = array[source]
        self.offsets[target] = self.offsets[source]

    def seq_add(self, seq: int, p0: int, p1: int, delta: int) -> None:
        cells = self._stream(seq)
        cells.move(cells.within(seq, p0, p1), delta)

    def seq_div(self, seq: int, p0: int, p1: int, divisor: int) -> None:
        cells = self._stream(seq)
        cells.divide(cells.within(seq, p0, p1), divisor)

    def clear(self) -> None:
        self.cells = [Cells(self.config.n_cells, self.config.n_seq_max) for _ in self.cells]
        for group in self.groups.values():
            group.slot_cell[:] = -1

    def _stream(self, seq: int) -> Cells:
        return self.cells[0 if self.config.unified else seq]

    def _apply_shift(self) -> None:
        """Turns K of moved cells by the distance they have moved, and rounds it again."""
        for stream, cells in enumerate(self.cells):
            moved = cells.shift.nonzero()[0]
            if not len(moved):
                continue
            delta = cells.shift[moved]
            turned = [group for group in self.groups.values() if not isinstance(group, CodedGroup)]
            for layer in [*self.plain.values(), *turned]:
                rot = self.rot_k[layer.layer]
                layer.k[stream, moved] = self._turn(layer.k[stream, moved], delta, layer.type_k, rot)
            for group in self.groups.values():
                for slot, cell in enumerate(group.slot_cell[stream]):
                    if cell in moved:
                        kind = (
                            self.config.type_k if self.config.pool_type == "cache" else self.config.pool_type
                        )
                        by = cells.shift[[cell] * group.n_layer]
                        k = group.pool[stream, slot, : group.n_layer]
                        k[:] = self._turn(k, by, kind, self.rot_k[group.layer])
            cells.shift[:] = 0

    def _turn(self, k: Array, delta: Array, kind: str, rot: Array | None) -> Array:
        return round_trip(rotate(rope(rotate(k, rot), delta, self.shape), rot), kind)

    def _rotation(self, kind: str, widest: bool) -> Array | None:
        """The Hadamard matrix by which llama.cpp spreads outliers in quantized caches; it is its own inverse."""
        if not is_quantized(kind) or self.shape.head_size % 64:
            return None
        size = 64
        while widest and self.shape.head_size % (2 * size) == 0:
            size *= 2
        matrix = np.ones((1, 1))
        while len(matrix) < size:
            matrix = np.block([[matrix, matrix], [matrix, -matrix]])
        return matrix / np.sqrt(size)


def average(merged: Merged, x_a: Array, x_b: Array) -> Merged:
    """The paper's baseline: one mean for both layers, without magnitudes."""
    ones = np.ones_like(merged.mag_a)
    return Merged((x_a + x_b) / 2, ones, ones, merged.distance)


def query_type(kind: str) -> str:
    """The type to which upstream's CPU attention rounds queries for plain layers whose K is of type `kind`."""
    return "q8_0" if is_quantized(kind) else kind


def rotate(x: Array, matrix: Array | None) -> Array:
    if matrix is None:
        return x
    return (x.reshape(*x.shape[:-1], -1, len(matrix)) @ matrix).reshape(x.shape)


def rope(x: Array, pos: Array, shape: Shape) -> Array:
    """Turns rows [n, heads, head_size] to their positions by RoPE."""
    if shape.rope == "none":
        return x
    half = shape.head_size // 2
    angle = pos[:, None, None] * shape.rope_base ** (-np.arange(half) / half)
    cos, sin = np.cos(angle), np.sin(angle)
    first, second = (
        (x[..., ::2], x[..., 1::2]) if shape.rope == "neighbours" else (x[..., :half], x[..., half:])
    )
    turned = first * cos - second * sin, first * sin + second * cos
    if shape.rope == "neighbours":
        return np.stack(turned, axis=-1).reshape(x.shape)
    return np.concatenate(turned, axis=-1)
