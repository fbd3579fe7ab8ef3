"""Plan files: written by a calibration, read and checked by the native library, and decoded here.

The native library reads the keys that it acts on; the notes and other keys are for people and tools.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MiniCacheError
from ..host.files import refuse_streams, replacing
from ..host.paths import user_path
from ..modelfile.ggml_types import BY_NUMBER, GGML_TYPES
from ..modelfile.gguf_file import GGUFFile, gguf_header, read_gguf
from .code_format import WIDTHS, GroupFormat, Layout, Layouts
from .plan import DEFAULT_T, BasisMatrices, PlainLayer, Plan, basis_name, codec_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VERSION = 4
TYPE = "minicache-plan"  # general.type of a plan


def is_plan(path: Path) -> bool:
    """Whether a file is a plan, of any version."""
    try:
        return read_gguf(path).keys.get("general.type") == TYPE
    except (MiniCacheError, OSError):
        return False


def write_plan(path: str | Path, plan: Plan, parts: Mapping[int, NDArray[np.int8] | BasisMatrices]) -> None:
    """Write a plan; `parts` are the codecs or basis matrices of its groups, by their first layers.

    An existing file is replaced at once. Raises MiniCacheError where the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            _write(part, plan, parts)
    except OSError as error:
        raise MiniCacheError(f"the plan {path} cannot be written: {error.strerror or error}") from error


def _write(path: Path, plan: Plan, parts: Mapping[int, NDArray[np.int8] | BasisMatrices]) -> None:
    import gguf

    from ..host.array_files import WholeArray

    writer = gguf.GGUFWriter(path, "minicache")
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
            writer.add_array("minicache.units_k", _units(group.layouts_k for group in plan.groups))
            writer.add_array("minicache.units_v", _units(group.layouts_v for group in plan.groups))
        sizes = [n for group in plan.groups for n in (group.n_head_kv, group.d_k, group.d_v)]
        writer.add_array("minicache.heads", sizes)
    writer.add_string("minicache.model", plan.model)
    writer.add_string("minicache.tool", plan.tool)
    writer.add_string("minicache.text", plan.text)
    writer.add_string("minicache.notes", json.dumps(plan.notes, sort_keys=True))
    for group in plan.groups:
        part_of = parts[group.first]
        if isinstance(part_of, BasisMatrices):
            writer.add_tensor(basis_name(group, "k"), WholeArray.of(part_of.k))
            writer.add_tensor(basis_name(group, "v"), WholeArray.of(part_of.v))
        elif part_of.nbytes != group.file_codec_bytes:
            raise ValueError(f"the codec of layer {group.first} has {part_of.nbytes} bytes")
        else:
            writer.add_tensor(codec_name(group), WholeArray.of(part_of))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _units(groups: Iterable[Layouts]) -> list[int]:
    return [n for layouts in groups for layout in layouts for n in layout.units]


def _numbers(one: PlainLayer) -> tuple[int, int, int]:
    return one.layer, GGML_TYPES[one.type_k].number, GGML_TYPES[one.type_v].number


@dataclass(frozen=True)
class PlanFile:
    """A plan file, opened: what it says, and the native library's handle on it, from which contexts are made.

    The native library reads the file and checks it; here the header that it read is only decoded. Raises MiniCacheError
    where the file is no plan, or a damaged one.
    """

    path: Path
    plan: Plan
    native: Any = field(repr=False, compare=False)  # struct llama_minicache_plan *

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> PlanFile:
        from ..native.binding import read_plan

        path = user_path(path)
        refuse_streams(path)
        return cls.decode(read_plan(str(path)))

    @classmethod
    def decode(cls, native: Any) -> PlanFile:
        """The plan that the native library has read."""
        from ..native.binding import own_plan, plan_header, plan_path

        owned, path = own_plan(native), Path(plan_path(native))
        return cls(path, decoded_plan(gguf_header(path, plan_header(owned))), owned)

    @classmethod
    def of(cls, plan: object) -> PlanFile:
        """An opened plan, or the one at a path."""
        if isinstance(plan, PlanFile):
            return plan
        if not isinstance(plan, str | os.PathLike):
            raise MiniCacheError(f"plan={plan!r} is not the path of a plan file")
        return cls.open(plan)

    def __str__(self) -> str:
        return str(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __deepcopy__(self, _: object) -> PlanFile:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return PlanFile.open, (str(self.path.absolute()),)


def decoded_plan(file: GGUFFile) -> Plan:
    """Decodes a plan file that the native reader has accepted."""
    keys = {name.removeprefix("minicache."): value for name, value in file.keys.items()}
    mode = str(keys.get("mode", "code"))
    try:
        notes = dict(json.loads(keys.get("notes", "{}")))
    except (TypeError, ValueError, RecursionError):
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
        # GGUF omits empty strings
        model=str(keys.get("model", "")),
        tool=str(keys.get("tool", "")),
        text=str(keys.get("text", "")),
        notes=notes,
    )


def _plain_of(numbers: list[int]) -> Iterator[PlainLayer]:
    for layer, type_k, type_v in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True):
        yield PlainLayer(layer, BY_NUMBER[type_k].name, BY_NUMBER[type_v].name)


def _groups_of(file: GGUFFile, keys: Mapping[str, Any], mode: str) -> Iterator[GroupFormat]:
    layers, heads = iter(keys.get("groups", [])), iter(keys.get("heads", []))
    units = {kind: iter(keys.get(f"units_{kind}", [])) for kind in ("k", "v")}
    for n_layer in keys.get("group_sizes", []):
        members = tuple(itertools.islice(layers, n_layer))
        n_head_kv, d_k, d_v = itertools.islice(heads, 3)
        group = GroupFormat(members, n_head_kv, d_k, d_v)
        if mode == "aligned":
            yield replace(group, n_basis_k=_n_basis(file, group, "k"), n_basis_v=_n_basis(file, group, "v"))
        else:
            k, v = (
                tuple(Layout(tuple(itertools.islice(units[kind], len(WIDTHS)))) for _ in range(n_head_kv))
                for kind in ("k", "v")
            )
            yield replace(group, layouts_k=k, layouts_v=v)


def _n_basis(file: GGUFFile, group: GroupFormat, kind: str) -> int:
    """The layers of an aligned group whose K or V has a basis: layer b alone, or both."""
    dims = file.tensors[basis_name(group, kind)].dims
    return int(dims[3]) if len(dims) == 4 else 1
