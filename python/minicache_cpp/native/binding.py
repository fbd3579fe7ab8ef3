"""Our C API (llama-minicache.h), bound with cffi to the libllama that llama_cpp has loaded."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cffi

from ..errors import MiniCacheError
from . import library

GGML_TYPE_COUNT = 43  # stands for "the cache types"

# the declarations of llama-minicache.h, LLAMA_API and comments left out; a test compares them with the header
DECLARATIONS = """
enum llama_minicache_mode {
    LLAMA_MINICACHE_MODE_SLERP   = 0,
    LLAMA_MINICACHE_MODE_AVERAGE = 1,
    LLAMA_MINICACHE_MODE_ALIGNED = 2,
    LLAMA_MINICACHE_MODE_CODE    = 3,
};

struct llama_minicache_params {
    float   start;
    int32_t start_layer;
    const int32_t * pairs;
    int32_t         n_pairs;
    float t;
    float retain;
    int32_t window;
    enum ggml_type pool_type;
    bool strict;
    enum llama_minicache_mode mode;
    const char * plan;
    bool observe;
};

struct llama_minicache_params llama_minicache_default_params(void);
bool llama_minicache_parse_params(const char * text, struct llama_minicache_params * params);

bool llama_minicache_fingerprint(const struct llama_model * model, char * buffer);

enum llama_minicache_use_kind {
    LLAMA_MINICACHE_USE_ENV    = 0,
    LLAMA_MINICACHE_USE_OFF    = 1,
    LLAMA_MINICACHE_USE_PARAMS = 2,
};

bool llama_minicache_use(enum llama_minicache_use_kind use, const struct llama_minicache_params * params);
const char * llama_minicache_last_error(void);

bool llama_minicache_decode_batch(
        struct llama_context * ctx, const struct llama_batch * batch, int32_t * result);
bool llama_minicache_encode_batch(
        struct llama_context * ctx, const struct llama_batch * batch, int32_t * result);
bool llama_minicache_get_state(
        struct llama_context * ctx, llama_seq_id seq_id, uint8_t * dst, size_t size, size_t * n);
bool llama_minicache_set_state(
        struct llama_context * ctx, llama_seq_id seq_id, const uint8_t * src, size_t size, size_t * n);
bool llama_minicache_clear(struct llama_context * ctx, bool data);
bool llama_minicache_free(struct llama_context * ctx);

struct llama_minicache_report {
    bool active;
    uint64_t bytes;
    uint64_t bytes_directions;
    uint64_t bytes_magnitudes;
    uint64_t bytes_pool;
    uint64_t bytes_window;
    uint64_t bytes_index;
    uint64_t bytes_codec;
    uint64_t bytes_unmerged;
    uint64_t bytes_padding;
    uint64_t bytes_f16;
    uint64_t bytes_plain;
    uint32_t n_cells;
    uint32_t n_stream;
    uint32_t n_layer;
    uint32_t n_group;
    uint32_t n_retained;
    uint32_t n_retained_max;
    uint32_t retain_block;
    uint32_t window;
    float t;
    float retain;
    enum ggml_type type_k;
    enum ggml_type type_v;
    enum ggml_type pool_type;
    enum llama_minicache_mode mode;
    int32_t rope_block;
    bool can_shift;
    char note[256];
    char fallback[256];
};

enum llama_minicache_layer_kind {
    LLAMA_MINICACHE_LAYER_NONE    = 0,
    LLAMA_MINICACHE_LAYER_PLAIN   = 1,
    LLAMA_MINICACHE_LAYER_MERGED  = 2,
    LLAMA_MINICACHE_LAYER_REFUSED = 3,
};

struct llama_minicache_layer_report {
    enum llama_minicache_layer_kind kind;
    int32_t group[4];
    int32_t side;
    uint64_t bytes;
    enum ggml_type type_k;
    enum ggml_type type_v;
    float    distance_k;
    float    distance_v;
    uint64_t n_merged;
    char reason[160];
};

bool llama_minicache_get_report(struct llama_context * ctx, struct llama_minicache_report * report);
bool llama_minicache_get_layer_report(
        struct llama_context                * ctx,
        int32_t                               il,
        struct llama_minicache_layer_report * report);

bool llama_minicache_get_rope(
        const struct llama_context * ctx, int32_t il, int32_t * kind, int32_t * n_rot, double * freq);
void llama_minicache_rotation(int32_t head_size_k, int32_t head_size_v, int32_t * n_k, int32_t * n_v);

bool llama_minicache_merge(
        const float * x_a,
        const float * x_b,
        int64_t       n_tokens,
        int64_t       n_head_kv,
        int64_t       head_size,
        float         t,
        float       * direction,
        float       * mag_a,
        float       * mag_b,
        float       * distance);

struct llama_minicache_attention_args {
    const float * q;
    const float * k;
    const float * v;
    const float * mag_k;
    const float * mag_v;
    const float * mask;
    const float * sinks;
    const int32_t * retained;
    const float   * pool_k;
    const float   * pool_v;
    int32_t         n_retained;
    int32_t         retain_block;
    const int32_t * current;
    const float   * cur_k;
    const float   * cur_v;
    int32_t         n_current;
    int64_t n_q;
    int64_t n_kv;
    int64_t n_head;
    int64_t n_head_kv;
    int64_t head_size;
    float scale;
    float max_bias;
    float softcap;
    enum ggml_type type_k;
    enum ggml_type type_v;
    enum ggml_type type_pool;
    int32_t n_threads;
    bool    reference;
};

bool llama_minicache_attention(const struct llama_minicache_attention_args * args, float * result);

struct llama_minicache_codec {
    const void * data;
    int64_t      size;
    int32_t units_k[7];
    int32_t units_v[7];
    int32_t n_layer;
    int32_t head_size_k;
    int32_t head_size_v;
    int32_t n_head_kv;
    int32_t rope;
    int32_t n_rot;
};

bool llama_minicache_encode(
        const struct llama_minicache_codec * codec,
        const float   * k,
        const float   * v,
        const int32_t * bases,
        int64_t         n_tokens,
        int32_t         n_threads,
        bool            reference,
        uint8_t       * code_k,
        uint8_t       * code_v,
        float         * distance_k,
        float         * distance_v);
bool llama_minicache_decode(
        const struct llama_minicache_codec * codec,
        const uint8_t * code_k,
        const uint8_t * code_v,
        const int32_t * bases,
        int64_t         n_tokens,
        int32_t         side,
        float         * k,
        float         * v);
bool llama_minicache_code_attention(
        const struct llama_minicache_codec * codec,
        const uint8_t * code_k,
        const uint8_t * code_v,
        const int32_t * bases,
        int32_t         side,
        const struct llama_minicache_attention_args * args,
        float         * result);
"""

ffi = cffi.FFI()
ffi.cdef(
    f"enum ggml_type {{ GGML_TYPE_F32 = 0, GGML_TYPE_COUNT = {GGML_TYPE_COUNT} }};\n"
    "struct llama_model;\nstruct llama_context;\nstruct llama_batch;\ntypedef int32_t llama_seq_id;"
)
ffi.cdef(DECLARATIONS)
lib: Any = ffi.dlopen(str(library.load()))
llama_h: Any = importlib.import_module("llama_cpp.llama_cpp")  # llama.h, by ctypes, over the same library


def last_error() -> str:
    return text(lib.llama_minicache_last_error())


def check(done: bool, what: str) -> None:
    """Turn a call that failed into an error with the native library's own words."""
    if not done:
        raise MiniCacheError(last_error() or f"{what} failed without a reason")


def text(chars: Any) -> str:
    return str(ffi.string(chars).decode("utf-8", "replace"))


@contextmanager
def observing_contexts() -> Iterator[None]:
    """Contexts made inside, on this thread, merge nothing and name their Q, K and V."""
    params = ffi.new("struct llama_minicache_params *", lib.llama_minicache_default_params())
    params.observe = True
    try:
        check(lib.llama_minicache_use(lib.LLAMA_MINICACHE_USE_PARAMS, params), "llama_minicache_use")
        yield
    finally:
        use_env()


def fingerprint(model: Any) -> str:
    """The fingerprint of a llama_model, as llama_cpp gives its pointer."""
    buffer = ffi.new("char[17]")
    pointer = ffi.cast("struct llama_model *", model)
    check(lib.llama_minicache_fingerprint(pointer, buffer), "llama_minicache_fingerprint")
    return text(buffer)


def use_off() -> None:
    """Contexts made on this thread are upstream's."""
    check(lib.llama_minicache_use(lib.LLAMA_MINICACHE_USE_OFF, ffi.NULL), "llama_minicache_use")


def use_env() -> None:
    """Contexts made on this thread follow the environment variable LLAMA_MINICACHE, as at the start."""
    check(lib.llama_minicache_use(lib.LLAMA_MINICACHE_USE_ENV, ffi.NULL), "llama_minicache_use")


def context_pointer(ctx: Any) -> Any:
    """A llama_context as llama_cpp's ctypes functions return it, as cffi takes it."""
    return ffi.cast("struct llama_context *", ctx)


#
# what reaches a device: what would have ended the process is an error
#


def decode(ctx: Any, batch: Any) -> int:
    """What llama_decode() returns, for a context and a batch of llama_cpp's, with the device's work done."""
    return _run(lib.llama_minicache_decode_batch, ctx, batch)


def encode(ctx: Any, batch: Any) -> int:
    """What llama_encode() returns, as decode()."""
    return _run(lib.llama_minicache_encode_batch, ctx, batch)


def _run(function: Any, ctx: Any, batch: Any) -> int:
    result = ffi.new("int32_t *")
    pointer = ffi.cast("struct llama_batch *", ctypes.addressof(batch))
    check(function(context_pointer(ctx), pointer, result), "the batch")
    return int(result[0])


WHOLE_CONTEXT = -1  # in place of a sequence


def get_state(ctx: Any, seq: int = WHOLE_CONTEXT) -> bytearray:
    """The state of a sequence, or of the whole context, as set_state() takes it."""
    size = ffi.new("size_t *")
    check(lib.llama_minicache_get_state(context_pointer(ctx), seq, ffi.NULL, 0, size), "the state")
    state = bytearray(size[0])
    check(
        lib.llama_minicache_get_state(context_pointer(ctx), seq, ffi.from_buffer(state), len(state), size),
        "the state",
    )
    if size[0] != len(state):
        raise MiniCacheError(last_error() or "llama.cpp did not give the whole state")
    return state


def set_state(ctx: Any, state: Any, seq: int = WHOLE_CONTEXT) -> bool:
    """Load a saved state, any object of bytes; False where it is refused, by us with a last_error()."""
    n = ffi.new("size_t *")
    buffer = ffi.from_buffer(state)
    check(lib.llama_minicache_set_state(context_pointer(ctx), seq, buffer, len(buffer), n), "the state")
    return int(n[0]) == len(buffer)


def clear(ctx: Any) -> None:
    """Empty a context's memory."""
    check(lib.llama_minicache_clear(context_pointer(ctx), True), "clearing")


# contexts that had to be kept: a device failed, and frees nothing any more
_kept: list[Any] = []


def free_context(ctx: Any) -> bool:
    """Free a context; False where it has to be kept, and its model with it, as its device no longer answers."""
    if lib.llama_minicache_free(context_pointer(ctx)):
        return True
    _kept.append(ctx)
    return False


def free_model(model: Any) -> None:
    """Free a model, but once a device has failed keep it, as it may lie there."""
    if not _kept:
        llama_h.llama_model_free(model)
