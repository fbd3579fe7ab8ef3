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
from ..modelfile.ggml_types import BY_NUMBER, GGML_TYPES
from ..modelfile.gguf_file import GGUFFile, read_gguf
from .code_format import WIDTHS, GroupFormat, Layout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VERSION = 3
TYPE = "minicache-plan"  # general.type of a plan
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
    def pool_types(self) -> tuple[str, str]:
        """The types of K and V of the retained tokens and of the window."""
        return self.pool_type, self.pool_type

    @property
    def retain_block(self) -> int:
        """Consecutive cells that share one retained token; 0 where none is retained."""
        from .native_settings import retain_block

        return retain_block(self.retain)


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


@dataclass(frozen=True)
class PlanFile:
    """A plan file, opened: what it says, and the native library's handle on it, from which contexts are made.

    The native library reads the file and checks it; here it is only decoded. Raises MiniCacheError where the file is no
    plan, or a damaged one.
    """

    path: Path
    plan: Plan
    native: Any = field(repr=False, compare=False)  # struct llama_minicache_plan *

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> PlanFile:
        from ..native.binding import read_plan

        if not os.path.exists(path):
            raise MiniCacheError(f"the plan {os.fspath(path)} does not exist")
        return cls.decode(read_plan(os.fspath(path)))

    @classmethod
    def decode(cls, native: Any) -> PlanFile:
        """The plan that the native library has read."""
        from ..native.binding import own_plan, plan_path

        path = Path(plan_path(native))
        return cls(path, decoded_plan(read_gguf(path)), own_plan(native))

    @classmethod
    def of(cls, plan: object) -> PlanFile:
        """An opened plan, or the one at a path."""
        if isinstance(plan, PlanFile):
            return plan
        if not isinstance(plan, str | os.PathLike):
            raise MiniCacheError(f"plan={plan!r} is no path of a plan file")
        return cls.open(os.fspath(plan))

    def __str__(self) -> str:
        return str(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        return PlanFile.open, (str(self.path),)


def decoded_plan(file: GGUFFile) -> Plan:
    """What a plan file says that has been found sound."""
    keys = {name.removeprefix("minicache."): value for name, value in file.keys.items()}
    mode = str(keys.get("mode", "code"))
    try:
        notes = dict(json.loads(keys.get("notes", "{}")))
    except (TypeError, ValueError):
        notes = {}  # they are for people, and nothing depends on them
    return Plan(
        fingerprint=keys["fingerprint"],
        n_layer=keys["n_layer"],
        rope_block=keys["rope_block"],
        type_k=keys["type_k"],
        type_v=keys["type_v"],
        plain=tuple(_plain_of(keys.get("plain", []))),
        retain=keys["retain"],
        pool_type=keys["pool_type"],
        window=keys.get("window", 0),
        groups=tuple(_groups_of(file, keys, mode)),
        mode=mode,
        t=keys["t"] if mode == "aligned" else DEFAULT_T,
        # an empty text is left out of the file
        model=str(keys.get("model", "")),
        tool=str(keys.get("tool", "")),
        text=str(keys.get("text", "")),
        notes=notes,
    )


def _plain_of(numbers: list[int]) -> Iterator[PlainLayer]:
    for layer, type_k, type_v in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True):
        yield PlainLayer(layer, BY_NUMBER[type_k].name, BY_NUMBER[type_v].name)


def _groups_of(file: GGUFFile, keys: Mapping[str, Any], mode: str) -> Iterator[GroupFormat]:
    layers, sizes = iter(keys.get("groups", [])), iter(keys.get("heads", []))
    no_units = [0] * len(WIDTHS) * len(keys.get("group_sizes", []))
    units_k, units_v = (iter(keys[name] if mode == "code" else no_units) for name in ("units_k", "units_v"))
    for n_layer in keys.get("group_sizes", []):
        group = GroupFormat(
            tuple(itertools.islice(layers, n_layer)),
            *itertools.islice(sizes, 3),
            Layout(tuple(itertools.islice(units_k, len(WIDTHS)))),
            Layout(tuple(itertools.islice(units_v, len(WIDTHS)))),
        )
        if mode == "aligned":
            bases = {f"bases_{kind}": _n_basis(file, group, kind) for kind in ("k", "v")}
            group = replace(group, **bases)
        yield group


def _n_basis(file: GGUFFile, group: GroupFormat, kind: str) -> int:
    """The layers of an aligned group whose K or V has a basis: layer b alone, or both."""
    dims = file.tensors[basis_name(group, kind)].dims
    return int(dims[3]) if len(dims) == 4 else 1
