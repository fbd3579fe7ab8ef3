"""A plan: the GGUF file that says for one model which layers are paired and how each pair is kept (docs/plan.md).

The native library reads the keys that it acts on; `notes` and the rest are for people and for tools.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .code_format import WIDTHS, Layout, PairFormat
from .config import MAX_WINDOW
from .errors import MiniCacheError
from .ggml_types import BY_NUMBER, CACHE_TYPES, GGML_TYPES, POOL_TYPES
from .gguf_file import GGUFFile, read_gguf

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VERSIONS = (1, 2)  # 2: with types of single layers, which readers of 1 would pass over
TYPE = "minicache-plan"  # general.type of a plan
MODES = ("code", "aligned")
DEFAULT_T = 0.6


@dataclass(frozen=True)
class PlainLayer:
    """The cache types of a layer that is not paired."""

    layer: int
    type_k: str
    type_v: str

    @property
    def types(self) -> tuple[str, str]:
        return self.type_k, self.type_v


@dataclass(frozen=True)
class Plan:
    """What a plan file says, the codecs and bases left out."""

    fingerprint: str  # of the model it was made for
    n_layer: int
    rope_block: int = 0  # K is coded relative to the last multiple of this position; 0: as it is
    type_k: str = "f16"  # of the layers that are not paired, and of an aligned plan's directions
    type_v: str = "f16"
    plain: tuple[PlainLayer, ...] = ()  # layers that are not paired and have types of their own
    retain: float = 0.0  # fraction of tokens that both layers of a pair keep as they are
    pool_type: str = "f16"  # of those, and of the window
    window: int = 0  # the latest tokens of each stream, which both layers of a pair keep as they are
    pairs: tuple[PairFormat, ...] = ()
    mode: str = "code"  # or "aligned": SLERP in bases
    t: float = DEFAULT_T  # of SLERP
    model: str = ""  # the model's name
    tool: str = ""  # what wrote the plan
    text: str = ""  # what it was fitted to
    notes: dict[str, Any] = field(
        default_factory=dict, compare=False
    )  # choices, sensitivities, what was measured

    def plain_types(self) -> dict[int, tuple[str, str]]:
        """The types of K and V of each layer that is not paired."""
        paired = {layer for pair in self.pairs for layer in (pair.a, pair.b)}
        own = {one.layer: one.types for one in self.plain}
        common = self.type_k, self.type_v
        return {layer: own.get(layer, common) for layer in range(self.n_layer) if layer not in paired}

    @property
    def fixed_bytes(self) -> int:
        if self.mode == "aligned":
            return sum(pair.basis_bytes for pair in self.pairs)
        return sum(pair.codec_bytes() for pair in self.pairs)


@dataclass(frozen=True)
class Bases:
    """An aligned pair's matrices, [layers, n_head_kv, d, d], of layer b alone or of a and b: W x is merged for x."""

    k: NDArray[np.float32]
    v: NDArray[np.float32]


def codec_name(pair: PairFormat) -> str:
    return f"pair.{pair.a}.codec"


def basis_name(pair: PairFormat, kind: str) -> str:
    return f"pair.{pair.a}.basis_{kind}"


def write_plan(path: str | Path, plan: Plan, parts: Mapping[int, NDArray[np.int8] | Bases]) -> None:
    """Write a plan; `parts` are the pairs' codecs or bases, by layer a. A file that was there is replaced at once."""
    import gguf

    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(part, "minicache")
        writer.add_type(TYPE)
        writer.add_uint32("minicache.version", VERSIONS[bool(plan.plain)])
        writer.add_string("minicache.fingerprint", plan.fingerprint)
        writer.add_uint32("minicache.n_layer", plan.n_layer)
        writer.add_uint32("minicache.rope_block", plan.rope_block)
        writer.add_string("minicache.type_k", plan.type_k)
        writer.add_string("minicache.type_v", plan.type_v)
        if plan.plain:
            writer.add_array("minicache.plain", [n for one in plan.plain for n in _numbers(one)])
        writer.add_string("minicache.pool_type", plan.pool_type)
        writer.add_float32("minicache.retain", plan.retain)
        writer.add_uint32("minicache.window", plan.window)
        writer.add_string("minicache.mode", plan.mode)
        if plan.mode == "aligned":
            writer.add_float32("minicache.t", plan.t)
        if plan.pairs:
            writer.add_array("minicache.pairs", [layer for pair in plan.pairs for layer in (pair.a, pair.b)])
            if plan.mode == "code":
                writer.add_array("minicache.units_k", [n for pair in plan.pairs for n in pair.layout_k.units])
                writer.add_array("minicache.units_v", [n for pair in plan.pairs for n in pair.layout_v.units])
            sizes = [n for pair in plan.pairs for n in (pair.n_head_kv, pair.d_k, pair.d_v)]
            writer.add_array("minicache.heads", sizes)
        writer.add_string("minicache.model", plan.model)
        writer.add_string("minicache.tool", plan.tool)
        writer.add_string("minicache.text", plan.text)
        writer.add_string("minicache.notes", json.dumps(plan.notes, sort_keys=True))
        for pair in plan.pairs:
            part_of = parts[pair.a]
            if isinstance(part_of, Bases):
                writer.add_tensor(basis_name(pair, "k"), part_of.k)
                writer.add_tensor(basis_name(pair, "v"), part_of.v)
            elif part_of.nbytes != pair.codec_bytes():
                raise ValueError(f"the codec of layer {pair.a} has {part_of.nbytes} bytes")
            else:
                writer.add_tensor(codec_name(pair), part_of)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        part.replace(path)
    except OSError as error:
        raise MiniCacheError(f"the plan {path} can't be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _numbers(one: PlainLayer) -> tuple[int, int, int]:
    return one.layer, GGML_TYPES[one.type_k].number, GGML_TYPES[one.type_v].number


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """What a plan file says; refuses what is no plan, or a damaged one."""
    file = read_gguf(Path(path))
    if file.keys.get("general.type") != TYPE:
        raise MiniCacheError(f"{path} is no plan; `minicache calibrate MODEL` makes one")
    if file.keys.get("minicache.version") not in VERSIONS:
        raise MiniCacheError(
            f"{path} is a plan of another version; make it anew with `minicache calibrate MODEL`"
        )
    try:
        return _plan_of(file)
    except (KeyError, TypeError, ValueError) as error:
        raise MiniCacheError(
            f"the plan {path} is damaged ({error}); make it anew with `minicache calibrate MODEL`"
        ) from None


def _plan_of(file: GGUFFile) -> Plan:
    def key(name: str, kind: type) -> Any:
        value = file.keys.get(f"minicache.{name}")
        if not isinstance(value, kind):
            raise ValueError(f"no valid minicache.{name}")
        return value

    mode = str(file.keys.get("minicache.mode", "code"))
    if mode not in MODES:
        raise ValueError(f"mode {mode}, which this version does not know")
    plan = Plan(
        fingerprint=key("fingerprint", str),
        n_layer=key("n_layer", int),
        rope_block=key("rope_block", int),
        type_k=key("type_k", str),
        type_v=key("type_v", str),
        retain=key("retain", float),
        pool_type=key("pool_type", str),
        window=key("window", int) if "minicache.window" in file.keys else 0,
        pairs=tuple(_pairs_of(file, key, mode)) if "minicache.pairs" in file.keys else (),
        mode=mode,
        t=key("t", float) if mode == "aligned" else DEFAULT_T,
        model=str(file.keys.get("minicache.model", "")),  # an empty text is left out
        tool=str(file.keys.get("minicache.tool", "")),
        text=str(file.keys.get("minicache.text", "")),
        notes=json.loads(key("notes", str)),
    )
    if plan.type_k not in CACHE_TYPES or plan.type_v not in CACHE_TYPES or plan.pool_type not in POOL_TYPES:
        raise ValueError("an unknown cache type")
    plan = replace(plan, plain=tuple(_plain_of(file, plan))) if "minicache.plain" in file.keys else plan
    if not 0 <= plan.retain <= 1:
        raise ValueError(f"retain {plan.retain}")
    if not 0 <= plan.window <= MAX_WINDOW:
        raise ValueError(f"window {plan.window}")
    for pair in plan.pairs if mode == "code" else ():
        codec = file.tensors.get(codec_name(pair))
        if codec is None or codec.type_number != GGML_TYPES["i8"].number:
            raise ValueError(f"no codec of layer {pair.a}")
        if codec.n_bytes != pair.codec_bytes():
            raise ValueError(f"the codec of layer {pair.a} has the wrong size")
    return plan


def _plain_of(file: GGUFFile, plan: Plan) -> Iterator[PlainLayer]:
    numbers = file.keys["minicache.plain"]
    kept = {layer for pair in plan.pairs for layer in (pair.a, pair.b)}
    if not isinstance(numbers, list) or len(numbers) % 3:
        raise ValueError("no valid minicache.plain")
    for layer, *types in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True):
        if layer in kept or not 0 <= layer < plan.n_layer:
            raise ValueError(f"layer {layer} is kept in two ways, or there is none")
        kept.add(layer)
        names = [BY_NUMBER[number].name if number in BY_NUMBER else "" for number in types]
        if not set(names) <= set(CACHE_TYPES):
            raise ValueError(f"an unknown cache type of layer {layer}")
        yield PlainLayer(layer, *names)


def _pairs_of(file: GGUFFile, key: Any, mode: str) -> list[PairFormat]:
    layers, sizes = key("pairs", list), key("heads", list)
    n_pair, n_width = len(layers) // 2, len(WIDTHS)
    units_k, units_v = (
        key(name, list) if mode == "code" else [0] * (n_width * n_pair) for name in ("units_k", "units_v")
    )
    lengths = (len(layers), len(sizes), len(units_k), len(units_v))
    if lengths != (2 * n_pair, 3 * n_pair, n_width * n_pair, n_width * n_pair):
        raise ValueError("its lists differ in length")
    seen = set(layers)
    if len(seen) != len(layers) or min(seen) < 0 or max(seen) >= key("n_layer", int):
        raise ValueError("its pairs overlap, or name layers that are none")
    pairs = []
    for i in range(n_pair):
        units = slice(n_width * i, n_width * (i + 1))
        layouts = Layout(tuple(units_k[units])), Layout(tuple(units_v[units]))
        (a, b), (n_head_kv, d_k, d_v) = layers[2 * i : 2 * i + 2], sizes[3 * i : 3 * i + 3]
        pair = PairFormat(a, b, n_head_kv, d_k, d_v, *layouts)
        if mode == "aligned":
            pair = replace(pair, bases_k=_bases_of(file, pair, "k"), bases_v=_bases_of(file, pair, "v"))
        for layout, size in zip(layouts, (pair.d_k, pair.d_v), strict=True):
            if min(layout.units) < 0 or layout.size > 2 * size:
                raise ValueError(f"the code of layer {pair.a} is longer than what it codes")
        pairs.append(pair)
    return pairs


def _bases_of(file: GGUFFile, pair: PairFormat, kind: str) -> int:
    """Of how many layers the pair's K or V has bases."""
    d = pair.d_k if kind == "k" else pair.d_v
    tensor = file.tensors.get(basis_name(pair, kind))
    if tensor is None or tensor.type_number not in (GGML_TYPES["f32"].number, GGML_TYPES["f16"].number):
        raise ValueError(f"no bases of layer {pair.a}")
    dims = [*tensor.dims, 1, 1, 1, 1][:4]
    if dims[:3] != [d, d, pair.n_head_kv] or dims[3] not in (1, 2):
        raise ValueError(f"the bases of layer {pair.a} have the wrong size")
    return int(dims[3])
