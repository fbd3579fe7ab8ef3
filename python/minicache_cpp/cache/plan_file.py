"""A plan: the GGUF file that says for one model which layers share storage, and how (docs/plan.md).

The native library reads the keys that it acts on; `notes` and the rest are for people and for tools.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MiniCacheError
from ..modelfile.ggml_types import BY_NUMBER, CACHE_TYPES, GGML_TYPES, POOL_TYPES
from ..modelfile.gguf_file import GGUFFile, read_gguf
from .code_format import MAX_LAYERS, WIDTHS, GroupFormat, Layout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VERSION = 3
MAX_WINDOW = 65536
TYPE = "minicache-plan"  # general.type of a plan
MODES = ("code", "aligned")
DEFAULT_T = 0.6


@dataclass(frozen=True)
class PlainLayer:
    """The cache types of a layer that is in no group."""

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
    type_k: str = "f16"  # of the layers that are in no group, and of an aligned plan's directions
    type_v: str = "f16"
    plain: tuple[PlainLayer, ...] = ()  # layers that are in no group and have types of their own
    retain: float = 0.0  # fraction of tokens that the layers of a group keep as they are
    pool_type: str = "f16"  # of those, and of the window
    window: int = 0  # the latest tokens of each stream, which the layers of a group keep as they are
    groups: tuple[GroupFormat, ...] = ()
    mode: str = "code"  # or "aligned": SLERP in bases
    t: float = DEFAULT_T  # of SLERP
    model: str = ""  # the model's name
    tool: str = ""  # what wrote the plan
    text: str = ""  # what it was fitted to
    notes: dict[str, Any] = field(
        default_factory=dict, compare=False
    )  # choices, sensitivities, what was measured

    def plain_types(self) -> dict[int, tuple[str, str]]:
        """The types of K and V of each layer that is in no group."""
        grouped = {layer for group in self.groups for layer in group.layers}
        own = {one.layer: one.types for one in self.plain}
        common = self.type_k, self.type_v
        return {layer: own.get(layer, common) for layer in range(self.n_layer) if layer not in grouped}

    @property
    def fixed_bytes(self) -> int:
        if self.mode == "aligned":
            return sum(group.basis_bytes for group in self.groups)
        return sum(group.codec_bytes() for group in self.groups)


@dataclass(frozen=True)
class Bases:
    """An aligned group's matrices, [layers, n_head_kv, d, d], of layer b alone or of a and b: W x is merged for x."""

    k: NDArray[np.float32]
    v: NDArray[np.float32]


def codec_name(group: GroupFormat) -> str:
    return f"group.{group.first}.codec"


def basis_name(group: GroupFormat, kind: str) -> str:
    return f"group.{group.first}.basis_{kind}"


def write_plan(path: str | Path, plan: Plan, parts: Mapping[int, NDArray[np.int8] | Bases]) -> None:
    """Write a plan; `parts` are codecs or bases, by groups' first layers. A file that was there is replaced at once."""
    import gguf

    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(part, "minicache")
        writer.add_type(TYPE)
        writer.add_uint32("minicache.version", VERSION)
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
        if plan.groups:
            writer.add_array("minicache.groups", [layer for group in plan.groups for layer in group.layers])
            writer.add_array("minicache.group_sizes", [group.n_layer for group in plan.groups])
            if plan.mode == "code":
                writer.add_array(
                    "minicache.units_k", [n for group in plan.groups for n in group.layout_k.units]
                )
                writer.add_array(
                    "minicache.units_v", [n for group in plan.groups for n in group.layout_v.units]
                )
            sizes = [n for group in plan.groups for n in (group.n_head_kv, group.d_k, group.d_v)]
            writer.add_array("minicache.heads", sizes)
        writer.add_string("minicache.model", plan.model)
        writer.add_string("minicache.tool", plan.tool)
        writer.add_string("minicache.text", plan.text)
        writer.add_string("minicache.notes", json.dumps(plan.notes, sort_keys=True))
        for group in plan.groups:
            part_of = parts[group.first]
            if isinstance(part_of, Bases):
                writer.add_tensor(basis_name(group, "k"), part_of.k)
                writer.add_tensor(basis_name(group, "v"), part_of.v)
            elif part_of.nbytes != group.codec_bytes():
                raise ValueError(f"the codec of layer {group.first} has {part_of.nbytes} bytes")
            else:
                writer.add_tensor(codec_name(group), part_of)
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
    if file.keys.get("minicache.version") != VERSION:
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
        groups=tuple(_groups_of(file, key, mode)) if "minicache.groups" in file.keys else (),
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
    for group in plan.groups if mode == "code" else ():
        codec = file.tensors.get(codec_name(group))
        if codec is None or codec.type_number != GGML_TYPES["i8"].number:
            raise ValueError(f"no codec of layer {group.first}")
        if codec.n_bytes != group.codec_bytes():
            raise ValueError(f"the codec of layer {group.first} has the wrong size")
    return plan


def _plain_of(file: GGUFFile, plan: Plan) -> Iterator[PlainLayer]:
    numbers = file.keys["minicache.plain"]
    kept = {layer for group in plan.groups for layer in group.layers}
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


def _groups_of(file: GGUFFile, key: Any, mode: str) -> list[GroupFormat]:
    layers, group_sizes, sizes = key("groups", list), key("group_sizes", list), key("heads", list)
    n_group, n_width = len(group_sizes), len(WIDTHS)
    units_k, units_v = (
        key(name, list) if mode == "code" else [0] * (n_width * n_group) for name in ("units_k", "units_v")
    )
    if not all(1 <= n <= MAX_LAYERS for n in group_sizes):
        raise ValueError(f"a group of no layers, or of more than {MAX_LAYERS}")
    lengths = (len(layers), len(sizes), len(units_k), len(units_v))
    if lengths != (sum(group_sizes), 3 * n_group, n_width * n_group, n_width * n_group):
        raise ValueError("its lists differ in length")
    seen = set(layers)
    if len(seen) != len(layers) or min(seen) < 0 or max(seen) >= key("n_layer", int):
        raise ValueError("its groups overlap, or name layers that are none")
    groups = []
    rest = iter(layers)
    for i, n_layer in enumerate(group_sizes):
        members = tuple(itertools.islice(rest, n_layer))
        if list(members) != sorted(members):
            raise ValueError(f"the layers of the group of layer {members[0]} are not in order")
        units = slice(n_width * i, n_width * (i + 1))
        layouts = Layout(tuple(units_k[units])), Layout(tuple(units_v[units]))
        n_head_kv, d_k, d_v = sizes[3 * i : 3 * i + 3]
        group = GroupFormat(members, n_head_kv, d_k, d_v, *layouts)
        if mode == "aligned":
            if n_layer != 2:
                raise ValueError("bases of a group that is not of two layers")
            group = replace(group, bases_k=_bases_of(file, group, "k"), bases_v=_bases_of(file, group, "v"))
        for layout, size in zip(layouts, (group.d_k, group.d_v), strict=True):
            if min(layout.units) < 0 or layout.size > n_layer * size:
                raise ValueError(f"the code of layer {group.first} is longer than what it codes")
        groups.append(group)
    return groups


def _bases_of(file: GGUFFile, group: GroupFormat, kind: str) -> int:
    """Of how many layers the group's K or V has bases."""
    d = group.d_k if kind == "k" else group.d_v
    tensor = file.tensors.get(basis_name(group, kind))
    if tensor is None or tensor.type_number not in (GGML_TYPES["f32"].number, GGML_TYPES["f16"].number):
        raise ValueError(f"no bases of layer {group.first}")
    dims = [*tensor.dims, 1, 1, 1, 1][:4]
    if dims[:3] != [d, d, group.n_head_kv] or dims[3] not in (1, 2):
        raise ValueError(f"the bases of layer {group.first} have the wrong size")
    return int(dims[3])
