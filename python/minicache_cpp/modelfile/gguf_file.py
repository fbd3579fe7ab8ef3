"""The header of a GGUF file: its keys and the sizes of its tensors, read without reading the tensors."""

from __future__ import annotations

import math
import mmap
import os
import re
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import MiniCacheError
from ..host.files import refuse_streams
from .ggml_types import BY_NUMBER

MAGIC = b"GGUF"
# number of a value's type in the file -> struct format; strings and arrays have no fixed size
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
LONG_ARRAY = 65536  # longer arrays (vocabularies) are skipped
DEFAULT_ALIGNMENT = 32
MOST = 2**31 - 1  # of a size, as llama.cpp has them
MOST_LAYERS = 65536
MOST_SPLITS = 99999  # five digits in a file's name


@dataclass(frozen=True)
class Tensor:
    """A tensor's place in its file."""

    path: Path  # one of the files of a split model
    offset: int
    type_number: int  # enum ggml_type
    dims: tuple[int, ...]  # the length of a row first

    @property
    def n_bytes(self) -> int:
        """The tensor's bytes, 0 where the type is unknown."""
        ggml_type = BY_NUMBER.get(self.type_number)
        return ggml_type.row_bytes(self.dims[0]) * math.prod(self.dims[1:]) if ggml_type and self.dims else 0

    def read(self, n_bytes: int | None = None) -> bytes:
        """The tensor's data, or its first bytes."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.n_bytes if n_bytes is None else min(n_bytes, self.n_bytes))


@dataclass(frozen=True)
class GGUFFile:
    """A GGUF file's keys and tensors; of a split model, those of all files. `weight_bytes`: the size of all tensors."""

    path: Path
    keys: dict[str, Any]
    n_tensor: int
    weight_bytes: int
    array_lengths: dict[str, int] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def architecture(self) -> str:
        """The model's architecture, such as llama, which names its keys."""
        return str(self.keys.get("general.architecture", "unknown"))

    def get(self, key: str, default: Any = None) -> Any:
        """A key of the model's architecture, such as block_count."""
        return self.keys.get(f"{self.architecture}.{key}", default)

    def number(self, key: str, default: int = 0, most: int = MOST) -> int:
        """A whole number of the architecture's keys. Raises MiniCacheError if it is none, or makes no sense."""
        return _whole_number(self.path, f"{self.architecture}.{key}", self.get(key, default), most)


def read_gguf(path: str | os.PathLike[str] | GGUFFile) -> GGUFFile:
    """The header of a model file, with those of its further parts where it is split.

    A file whose header has been read already is returned as it is. Raises MiniCacheError where the file is not a whole
    GGUF file, or not the first part of one.
    """
    if isinstance(path, GGUFFile):
        return path
    first = _read_one(Path(path))
    n_split = _whole_number(first.path, "split.count", first.keys.get("split.count", 1), MOST_SPLITS)
    if n_split <= 1:
        return first
    name = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", first.path.name)
    if first.keys.get("split.no", 0) != 0 or not name:
        raise MiniCacheError(
            f"{path} is one part of a split model; give its first part, …-00001-of-{n_split:05}.gguf"
        )
    parts = [first.path.with_name(f"{name[1]}-{i + 1:05}-of-{n_split:05}.gguf") for i in range(1, n_split)]
    rest = [_read_one(part) for part in parts]
    return GGUFFile(
        first.path,
        first.keys,
        first.n_tensor + sum(part.n_tensor for part in rest),
        first.weight_bytes + sum(part.weight_bytes for part in rest),
        first.array_lengths,
        {name: tensor for part in (first, *rest) for name, tensor in part.tensors.items()},
    )


def _whole_number(path: Path, key: str, value: object, most: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most:
        return value
    raise MiniCacheError(f"{path} is damaged: {key} is {value!r:.60}, not a whole number up to {most}")


def gguf_header(path: Path, data: bytes) -> GGUFFile:
    """The header of a file, from its bytes up to the tensors' data, which another reader has read from `path`."""
    return _Reader(path, data).read()


def _read_one(path: Path) -> GGUFFile:
    if path.is_dir():
        raise MiniCacheError(f"{path} is a directory; give the path of a GGUF file")
    refuse_streams(path)
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise MiniCacheError(
                    f"{path} is not a GGUF file; llama.cpp's convert_hf_to_gguf.py makes one"
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                reader = _Reader(path, data)
                found = reader.read()
                end = max((one.offset + one.n_bytes for one in found.tensors.values()), default=0)
                if end > len(data):
                    raise reader.truncated()
                return found
    except FileNotFoundError:
        raise MiniCacheError(f"{path} does not exist") from None
    except OSError as error:
        raise MiniCacheError(f"{path} cannot be read: {error.strerror or error}") from None


class _Reader:
    def __init__(self, path: Path, data: mmap.mmap | bytes) -> None:
        self.path, self.data, self.at = path, data, 4

    def read(self) -> GGUFFile:
        try:
            return self.read_header()
        except (struct.error, IndexError):
            raise self.truncated() from None
        except UnicodeDecodeError:
            raise MiniCacheError(f"{self.path} is damaged: a name in its header is not UTF-8") from None

    def read_header(self) -> GGUFFile:
        version, n_tensor, n_key = self.number("I"), self.number("Q"), self.number("Q")
        if version not in (2, 3):
            raise MiniCacheError(f"{self.path} is GGUF version {version}; versions 2 and 3 can be read")
        keys: dict[str, Any] = {}
        lengths: dict[str, int] = {}
        for _ in range(n_key):
            key = self.string()
            kind = self.number("I")
            if kind == ARRAY:
                kind, lengths[key] = self.number("I"), self.number("Q")
                if (values := self.array(kind, lengths[key])) is not None:
                    keys[key] = values
            else:
                keys[key] = self.value(kind)
        found = []
        for _ in range(n_tensor):
            name = self.string()
            dims = tuple(self.number("Q") for _ in range(self.number("I")))
            kind, offset = self.number("I"), self.number("Q")
            found.append((name, Tensor(self.path, offset, kind, dims or (1,))))
        alignment = keys.get("general.alignment", DEFAULT_ALIGNMENT)
        alignment = _whole_number(self.path, "general.alignment", alignment, MOST) or DEFAULT_ALIGNMENT
        start = -(-self.at // alignment) * alignment
        tensors = {name: replace(tensor, offset=start + tensor.offset) for name, tensor in found}
        total = sum(tensor.n_bytes for tensor in tensors.values())
        return GGUFFile(self.path, keys, n_tensor, total, lengths, tensors)

    def number(self, kind: str) -> Any:
        value = struct.unpack_from("<" + kind, self.data, self.at)[0]
        self.at += struct.calcsize(kind)
        return value

    def skip(self, n_bytes: int) -> None:
        self.at += n_bytes
        if self.at > len(self.data):
            raise IndexError

    def string(self) -> str:
        start = self.at + 8
        self.skip(8 + self.number_at("Q"))
        return self.data[start : self.at].decode("utf-8")

    def number_at(self, kind: str) -> int:
        return int(struct.unpack_from("<" + kind, self.data, self.at)[0])

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind not in SCALARS:
            raise MiniCacheError(f"{self.path} is damaged: a key of unknown type {kind}")
        return self.number(SCALARS[kind])

    def array(self, kind: int, length: int) -> list[Any] | None:
        if length > len(self.data):
            raise IndexError
        if kind in SCALARS and length > LONG_ARRAY:
            self.skip(length * struct.calcsize(SCALARS[kind]))
            return None
        if kind == STRING:
            # mostly vocabularies: nothing here uses them
            for _ in range(length):
                self.skip(8 + self.number_at("Q"))
            return None
        return [self.value(kind) for _ in range(length)]

    def truncated(self) -> MiniCacheError:
        size = len(self.data)
        return MiniCacheError(
            f"{self.path} is truncated: it ends at {size:,} bytes, before its content does; download it again"
        )
