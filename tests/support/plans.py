"""Plans with random codecs or basis matrices for tiny models, as files for the library and values for the oracle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np

from minicache_cpp.modelfile.ggml_types import GGML_TYPES
from minicache_cpp.native import binding
from minicache_cpp.native.binding import ffi, lib
from oracle.code import Codec, Layout, random_codec
from oracle.model import BasisMatrices, Config
from support.code_arrays import HeadLayouts, of_heads
from support.loaded import Loaded

Groups = tuple[tuple[int, ...], ...]

# every layer of a model of six, in pairs
ALL_PAIRS: Groups = ((0, 1), (2, 3), (4, 5))

# the types of K and V of five of six layers, all different
LAYER_TYPES = (
    (0, "q8_0", "f16"),
    (1, "f16", "q4_0"),
    (2, "iq4_nl", "q5_1"),
    (4, "q5_1", "bf16"),
    (5, "q4_1", "q5_0"),
)

# Units of 16 coefficients of 8, 6, 5, 4, 3, 2 and 1 bits, for K and for V, by the length of a head's vectors of all
# layers together. They have at most as many coefficients, and mostly fewer, so that some are dropped. Two KV heads
# have different layouts, which further heads repeat.
LAYOUTS: dict[int, HeadLayouts] = {
    32: (
        [Layout((1, 0, 0, 1, 0, 0, 0)), Layout((0, 1, 0, 0, 0, 0, 0))],
        [Layout((0, 0, 1, 0, 0, 0, 0)), Layout((0, 0, 0, 1, 1, 0, 0))],
    ),
    64: (
        [Layout((1, 0, 0, 1, 1, 1, 0)), Layout((1, 1, 1, 0, 0, 0, 0))],
        [Layout((0, 1, 1, 0, 1, 0, 0)), Layout((0, 1, 0, 1, 0, 1, 1))],
    ),
    96: (
        [Layout((1, 1, 0, 1, 1, 1, 0)), Layout((2, 0, 1, 1, 0, 0, 0))],
        [Layout((0, 1, 1, 0, 1, 1, 0)), Layout((1, 0, 1, 0, 1, 1, 1))],
    ),
    128: (
        [Layout((2, 1, 0, 2, 1, 1, 0)), Layout((1, 2, 1, 0, 1, 0, 1))],
        [Layout((1, 1, 1, 1, 1, 1, 1)), Layout((0, 2, 1, 1, 2, 0, 0))],
    ),
    256: (
        [Layout((3, 3, 2, 2, 2, 1, 1)), Layout((4, 2, 1, 3, 0, 1, 0))],
        [Layout((2, 2, 2, 2, 3, 2, 2)), Layout((3, 1, 3, 1, 2, 1, 0))],
    ),
    # two of 512: a code of more than 512 coefficients
    1024: (
        [Layout((2, 2, 6, 8, 10, 8, 2)), Layout((4, 2, 4, 6, 8, 4, 0))],
        [Layout((1, 1, 4, 6, 6, 4, 0)), Layout((2, 2, 6, 4, 8, 2, 2))],
    ),
}


def fingerprint(loaded: Loaded) -> str:
    """The fingerprint that the library computes for a model."""
    buffer = ffi.new("char[17]")
    pointer = ffi.cast("struct llama_model *", loaded.model.handle)
    binding.check(lib.llama_minicache_fingerprint(pointer, buffer), "llama_minicache_fingerprint")
    return binding.text(buffer)


def coded(
    loaded: Loaded,
    config: Config,
    path: Path,
    *,
    rope_block: int = 16,
    layouts: HeadLayouts | None = None,
    seed: int = 0,
) -> Config:
    """Returns `config` with its groups kept as random codes, and writes the plan that says so to `path`."""
    shape = loaded.tiny.shape
    rng = np.random.default_rng([seed, 3])
    codecs = tuple(
        random_codec(
            rng,
            *(of_heads(one, shape.n_head_kv) for one in layouts or LAYOUTS[len(group) * shape.head_size]),
            shape.head_size,
            shape.head_size,
            rope=shape.rope,
            n_rot=0 if shape.rope == "none" else shape.head_size,
            rope_base=shape.rope_base,
            n_layer=len(group),
        )
        for group in config.groups
    )
    config = replace(config, codecs=codecs, rope_block=rope_block, plan=str(path))
    write_plan(loaded, config)
    return config


def plain(loaded: Loaded, config: Config, path: Path) -> Config:
    """Returns `config` without groups, and writes a plan with its layers' cache types to `path`."""
    config = replace(config, groups=(), plan=str(path))
    write_plan(loaded, config)
    return config


def aligned(
    loaded: Loaded,
    config: Config,
    path: Path,
    *,
    sides: int = 2,
    identity: bool = False,
    dtype: type[np.floating] = np.float32,
    seed: int = 0,
) -> Config:
    """Returns `config` with its pairs merged in random orthogonal bases, and writes the plan that says so to `path`.

    With `sides` 1 only layer b has a basis matrix, with 2 both layers have one.
    """
    n_head_kv, size = loaded.tiny.shape.n_head_kv, loaded.tiny.shape.head_size
    rng = np.random.default_rng([seed, 4])

    def basis() -> np.ndarray:  # type: ignore[type-arg]
        if identity:
            return np.broadcast_to(np.eye(size, dtype=dtype), (n_head_kv, size, size))
        return np.linalg.qr(rng.standard_normal((n_head_kv, size, size)))[0].astype(dtype)

    basis_matrices = tuple(
        # of K, and of V
        BasisMatrices(*((basis() if sides == 2 else None, basis()) for _ in range(2)))
        for _ in config.groups
    )
    config = replace(config, basis_matrices=basis_matrices, plan=str(path))
    write_plan(loaded, config)
    return config


def write_plan(loaded: Loaded, config: Config, **changes: object) -> None:
    """Writes the plan file that `config` names, with the values of `changes` in place of its own."""
    shape = loaded.tiny.shape
    texts = {
        "fingerprint": fingerprint(loaded),
        "type_k": config.type_k,
        "type_v": config.type_v,
        "pool_type": config.pool_type,
        "model": "tiny",
        "tool": "a test",
        "text": "none",
        "notes": "{}",
    }
    numbers = {
        "version": 4,
        "n_layer": shape.n_layer,
        "rope_block": config.rope_block,
        "window": config.window,
    }
    lists = {
        "groups": [layer for group in config.groups for layer in group],
        "group_sizes": [len(group) for group in config.groups],
        "units_k": [n for codec in config.codecs for units in codec.k.units for n in units],
        "units_v": [n for codec in config.codecs for units in codec.v.units for n in units],
        "heads": [shape.n_head_kv, shape.head_size, shape.head_size] * len(config.groups),
    }
    if config.plain:
        lists["plain"] = [
            n for layer, *types in config.plain for n in (layer, *(GGML_TYPES[one].number for one in types))
        ]
    if config.basis_matrices:
        del lists["units_k"], lists["units_v"]
        texts["mode"] = "aligned"
    writer = gguf.GGUFWriter(config.plan, "minicache")
    writer.add_type("minicache-plan")
    for keys, add in ((texts, writer.add_string), (numbers, writer.add_uint32), (lists, writer.add_array)):
        for name, value in keys.items():
            if value == []:  # GGUF cannot hold empty lists
                continue
            add(f"minicache.{name}", changes.get(name, value))  # type: ignore[operator]
    writer.add_float32("minicache.retain", config.retain)
    if config.basis_matrices:
        writer.add_float32("minicache.t", config.t)
    for i, (first, *_) in enumerate(config.groups):
        if config.basis_matrices:
            for kind in "kv":
                sides = [one for one in getattr(config.basis_matrices[i], kind) if one is not None]
                writer.add_tensor(f"group.{first}.basis_{kind}", np.stack(sides))
        else:
            writer.add_tensor(f"group.{first}.codec", codec_of_file(config.codecs[i]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def codec_of_file(codec: Codec) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
    """A codec as a plan has it: without RoPE's frequencies, which come from the model."""
    return np.frombuffer(replace(codec, freq=np.zeros(0)).to_bytes(), dtype=np.int8)


def refusal(loaded: Loaded, plan: Path) -> str:
    """Returns why the library refuses a plan, when it reads it or when it makes a context of the model with it."""
    params = ffi.new("struct llama_minicache_params *")
    if not lib.llama_minicache_parse_params(f"plan={plan}".encode(), params, ffi.NULL, ffi.NULL):
        return binding.last_error()
    binding.check(lib.llama_minicache_use(lib.LLAMA_MINICACHE_USE_PARAMS, params), "llama_minicache_use")
    try:
        handle = binding.llama_h.llama_init_from_model(
            loaded.model.handle, binding.llama_h.llama_context_default_params()
        )
        assert handle is None
        return binding.last_error()
    finally:
        binding.use_env()
