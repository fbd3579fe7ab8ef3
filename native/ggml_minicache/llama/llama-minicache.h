#pragma once

// MiniCache for llama.cpp: the public C API.
//
// A MiniCache context keeps one K and one V direction for two neighbouring layers (a pair), or one code for a group of 1 to 4,
// each layer's own magnitudes, and a few retained tokens (Liu et al. 2024, arXiv 2405.14366). Everything else is llama.h,
// unchanged: a context made here takes the same calls as any other.
//
// No function here throws or ends the process. A function that fails returns false or NULL, changes nothing, and leaves
// one line that says what was wrong and what to do in llama_minicache_last_error().

#include "llama.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

//
// plans
//

// A plan file that has been read and found sound: which layers of one model share storage, and how. docs/plan.md has the format.
struct llama_minicache_plan;

// Reads a plan file and checks everything that can be checked without its model. Returns NULL if the file is not a
// plan, has another version, or is damaged or truncated. Contexts made with a plan keep what they need of it.
LLAMA_API struct llama_minicache_plan * llama_minicache_read_plan(const char * path);
LLAMA_API void                          llama_minicache_free_plan(struct llama_minicache_plan * plan);

// The path that the plan was read from; valid as long as the plan is.
LLAMA_API const char * llama_minicache_plan_path(const struct llama_minicache_plan * plan);

// The file's header as it was read, which is everything but the tensors' data, for programs that want the notes too. *n_bytes is
// its size; valid as long as the plan is.
LLAMA_API const void * llama_minicache_plan_header(const struct llama_minicache_plan * plan, size_t * n_bytes);

//
// parameters
//

// how a group of layers is kept
enum llama_minicache_mode {
    LLAMA_MINICACHE_MODE_SLERP   = 0,  // one direction, each layer's magnitudes: the paper's
    LLAMA_MINICACHE_MODE_AVERAGE = 1,  // the mean of both layers' vectors: what the paper compares with
    LLAMA_MINICACHE_MODE_ALIGNED = 2,  // as SLERP, after a plan's basis matrices
    LLAMA_MINICACHE_MODE_CODE    = 3,  // as a plan's shared code
    LLAMA_MINICACHE_MODE_PLAIN   = 4,  // no groups: K and V of each layer, in cache types by layer
};

// The cache types of the first, or of the last, layers whose cache grows with the context.
struct llama_minicache_edge {
    int32_t        n_layer;  // 0 for none
    enum ggml_type type_k;
    enum ggml_type type_v;
};

#define LLAMA_MINICACHE_WINDOW_MAX 65536

struct llama_minicache_params {
    float   start;  // first layer that may be merged, as a fraction of the model's layers, [0, 1); used when start_layer < 0
    int32_t start_layer;  // first layer that may be merged, [0, n_layer), or -1 to use `start`

    // explicit pairs, n_pairs x { a, b }, b the deeper; NULL: (S, S+1), (S+2, S+3), ... from the start layer S
    const int32_t * pairs;
    int32_t         n_pairs;

    float t;       // SLERP parameter, [0, 1]: 0 gives layer a's direction, 1 gives layer b's
    float retain;  // γ, fraction of tokens that are kept unmerged, [0, 1]; the budget is one token in round(1/γ)

    // how many tokens of each stream, the first and the latest ones, stay unmerged, 0 to LLAMA_MINICACHE_WINDOW_MAX
    int32_t window;

    // type of retained K and V: GGML_TYPE_F16, GGML_TYPE_Q8_0 (f16 where head sizes are not multiples of 32), or
    // GGML_TYPE_COUNT for the cache types
    enum ggml_type pool_type;

    bool strict;  // refuse to make a context in which no pair, or not every explicit pair, can be merged

    enum llama_minicache_mode mode;  // SLERP, AVERAGE or PLAIN; the other modes come from a plan

    // a plan, which decides everything above but `strict`, and the cache types; NULL for none
    struct llama_minicache_plan * plan;

    // Merge nothing, and name each layer's Q, K (after RoPE) and V in the graph "minicache_q-IL", "minicache_k-IL" and
    // "minicache_v-IL", F32 [head size, heads, tokens], for llama_context_params.cb_eval. For calibration.
    bool observe;

    // of mode PLAIN; a layer that belongs to both counts as one of the first. All other layers have the context's types
    struct llama_minicache_edge first;
    struct llama_minicache_edge last;
};

// the paper's settings: SLERP, start 0.5, t 0.6, retain 0.05; pool q8_0, not strict
LLAMA_API struct llama_minicache_params llama_minicache_default_params(void);

// Parses the text form of the settings, which the environment variable LLAMA_MINICACHE, the commands' SPEC and Python share:
//
//     slerp:key=value, key=value, ...        or average: or plain:
//     plan=PATH                              or the PATH of a .gguf file alone; beside it only strict=0 or strict=1
//
//   mode            slerp, average or plain, which the word before the colon says too; one of them is needed where there is no
//                   plan
//   start           a whole number is a layer, any other number a fraction of the layers
//   t, retain       numbers
//   window          a whole number
//   pairs           8-9;10-11
//   pool            f16, q8_0 or cache
//   type            a cache type for K and V; type_k and type_v, or k and v, for one of them
//   first, last     2:q8_0, or 2:q8_0/q4_0 for K and V: with plain, other types for the first or the last layers
//   plan            the path of a plan file; ~ is the home folder, and a path with a comma stands in quotes, "/a,b.gguf"
//   strict          0 or 1
//
// Every other key is optional, and each may be given once. Numbers are decimal, with a point and an exponent if need be, in any
// locale; blanks around keys, values and commas do not count, nor do quotes around all of it, nor do capitals in words. average
// retains nothing unless `retain` is given. In the environment variable, an empty text, 0, off, false, no and none leave the cache
// a plain one.
//
//   type_k, type_v  receive the cache types, GGML_TYPE_COUNT if the text names none; pass NULL to refuse texts that name a cache
//                   type
//
// params->pairs stays valid until the calling thread's next call of this function. A plan is the caller's:
// llama_minicache_free_plan().
LLAMA_API bool llama_minicache_parse_params(
    const char * text, struct llama_minicache_params * params, enum ggml_type * type_k, enum ggml_type * type_v);

// Checks that the values are in range, without side effects.
LLAMA_API bool llama_minicache_check_params(const struct llama_minicache_params * params);

// The layer that a fraction means: the whole part of start * n_layer, in single precision as `start` is.
LLAMA_API int32_t llama_minicache_start_layer(float start, int32_t n_layer);

// How many consecutive cells share one retained token, round(1/retain); 0 if none is retained.
LLAMA_API int32_t llama_minicache_retain_block(float retain);

// How many tokens of a stream of so many cells stay unmerged with a plan whose window has so many: 1/32 of the cells, or 1/64 where they
// are kept as f16, up to 1024, where that is more. A plan without a window gets none.
LLAMA_API int32_t llama_minicache_window_at(int32_t window, enum ggml_type pool_type, uint32_t n_cells);

// How many of a window's tokens are the first of their stream, which stay in it; the others are the latest.
LLAMA_API int32_t llama_minicache_window_first(int32_t window);

// The model's fingerprint, 16 hexadecimal digits, which identifies the model that a plan belongs to.
// `buffer` has room for 17 characters.
LLAMA_API bool llama_minicache_fingerprint(const struct llama_model * model, char * buffer);

//
// contexts
//

// As llama_init_from_model(), with the cache as `params` say. K and V types are those of cparams: f16, bf16, q8_0, q5_0,
// q5_1, q4_0, q4_1 or iq4_nl. Flash attention is switched on; a context that asks for it to be off is refused.
// NULL on failure.
LLAMA_API struct llama_context * llama_minicache_init_from_model(
    struct llama_model * model, struct llama_context_params cparams, const struct llama_minicache_params * params);

// What llama_init_from_model() does on the calling thread, for bindings that make the context themselves.
enum llama_minicache_use_kind {
    LLAMA_MINICACHE_USE_ENV    = 0,  // the environment variable LLAMA_MINICACHE decides (the state a thread starts in)
    LLAMA_MINICACHE_USE_OFF    = 1,  // plain caches, whatever the environment says
    LLAMA_MINICACHE_USE_PARAMS = 2,  // as `params`, which are copied
};

LLAMA_API bool llama_minicache_use(enum llama_minicache_use_kind use, const struct llama_minicache_params * params);

// The last failure on the calling thread, "" if none. Valid until the thread's next call of this API.
LLAMA_API const char * llama_minicache_last_error(void);

//
// calls of llama.h that reach a device, with errors in place of an end of the process
//

// As llama_decode() and llama_encode(), whose result goes to `result`, and as llama_synchronize() after it, so that a device's
// errors belong to the call they come from. False where llama.cpp or ggml-cuda would have ended the process: an error of
// CUDA, or an assertion. The context has failed then: from then on these functions refuse it; the only call it may be passed to is
// llama_minicache_free(). Other contexts go on.
//
// What still ends the process: errors in the CPU's kernels, errors on other threads, everything while an evaluation callback
// is set, and everything in a build by MSVC. Abort and log callbacks must not call llama.h or ggml meanwhile.
LLAMA_API bool llama_minicache_decode_batch(struct llama_context * ctx, const struct llama_batch * batch, int32_t * result);
LLAMA_API bool llama_minicache_encode_batch(struct llama_context * ctx, const struct llama_batch * batch, int32_t * result);

// With `stop`, the batch that another thread computes in the context ends within a few milliseconds, with the result 2 of
// llama_decode(), and so does every later one until a call without it. Ubatches that were complete stay in the memory. What a GPU
// computes is not interrupted. The first call sets the context's abort callback, so that it must come from the thread that uses the
// context, before it computes anything.
LLAMA_API bool llama_minicache_stop(struct llama_context * ctx, bool stop);

// States and clearing, likewise: as llama_state_get_data() and llama_state_set_data(), for seq_id >= 0 as llama_state_seq_get_data()
// and llama_state_seq_set_data(), and as llama_memory_clear().
//   dst: NULL asks for the size
//   n:   bytes written, or read; 0 where llama.cpp refuses, with the reason in llama_minicache_last_error() if it is ours
LLAMA_API bool llama_minicache_get_state(struct llama_context * ctx, llama_seq_id seq_id, uint8_t * dst, size_t size, size_t * n);
LLAMA_API bool llama_minicache_set_state(
    struct llama_context * ctx, llama_seq_id seq_id, const uint8_t * src, size_t size, size_t * n);
LLAMA_API bool llama_minicache_clear(struct llama_context * ctx, bool data);

// As llama_free(), for any context. False where that would end the process or never return, as after an error of CUDA that the
// device does not recover from: the context is kept to the end of the process then, and its model must not be freed either.
LLAMA_API bool llama_minicache_free(struct llama_context * ctx);

//
// report
//

struct llama_minicache_report {
    bool active;  // the context has merged layers

    // bytes as allocated; their sum is `bytes`
    uint64_t bytes;
    uint64_t bytes_directions;  // directions or codes
    uint64_t bytes_magnitudes;
    uint64_t bytes_pool;
    uint64_t bytes_window;    // of the first and latest tokens that stay unmerged
    uint64_t bytes_index;     // which token each retained slot holds, and the running distances
    uint64_t bytes_codec;     // what codes are made and read with, or basis matrices; the same at any context
    uint64_t bytes_unmerged;  // layers that are not merged, and whose cache grows with the context
    uint64_t bytes_swa;       // the cache of sliding-window layers, which is llama.cpp's; 0 without such layers
    uint64_t bytes_state;     // recurrent states, which are llama.cpp's; 0 without recurrent layers
    uint64_t bytes_padding;   // alignment between tensors

    // what the same context would allocate with plain caches of f16, and of this context's K and V types, where layers that
    // are not merged keep types of their own
    uint64_t bytes_f16;
    uint64_t bytes_plain;

    uint64_t bytes_f16_fixed;  // the part of bytes_f16 that does not grow with the context: sliding-window layers and states

    uint32_t n_cells;      // per stream
    uint32_t n_cells_swa;  // per stream, of sliding-window layers
    uint32_t n_stream;
    uint32_t n_layer;
    uint32_t n_group;  // of layers that share storage

    uint32_t n_retained;      // retained slots in use, over all groups and streams
    uint32_t n_retained_max;  // retained slots there are
    uint32_t retain_block;    // consecutive cells that share a slot, 0 without a pool
    uint32_t window;          // first and latest tokens of each stream that stay unmerged

    float t;
    float retain;  // as granted: 1/retain_block

    enum ggml_type type_k;  // a plan may give layers that are not merged types of their own: see the layers' reports
    enum ggml_type type_v;
    enum ggml_type pool_type;  // GGML_TYPE_COUNT: the cache types

    enum llama_minicache_mode mode;

    int32_t rope_block;  // coded K is relative to the last multiple of this position

    bool can_shift;  // as llama_memory_can_shift(); false where basis matrices are applied after RoPE

    char note[256];      // why no layer is merged where some were asked for, else ""
    char fallback[256];  // which ops of which device run on the CPU in place of it, else ""
};

enum llama_minicache_layer_kind {
    LLAMA_MINICACHE_LAYER_NONE    = 0,  // keeps no K and V
    LLAMA_MINICACHE_LAYER_PLAIN   = 1,
    LLAMA_MINICACHE_LAYER_MERGED  = 2,  // in a group, with one direction or code for all its layers
    LLAMA_MINICACHE_LAYER_REFUSED = 3,  // plain, though it was to be merged
    LLAMA_MINICACHE_LAYER_WINDOW  = 4,  // keeps a window of the latest tokens, in a plain cache of llama.cpp's
    LLAMA_MINICACHE_LAYER_STATE   = 5,  // keeps a recurrent state in place of K and V
};

struct llama_minicache_layer_report {
    enum llama_minicache_layer_kind kind;

    // the layers of the layer's group (for a refused layer, of the group it was meant for), deepest last, padded with -1
    int32_t group[4];
    int32_t side;  // the layer's number among them, -1 if none

    // the layer's plain bytes, or its share of the group's bytes, not counting what does not grow with the context
    uint64_t bytes;

    // of the layer's K and V, or of its group's directions; GGML_TYPE_COUNT for codes, and where the layer keeps none
    enum ggml_type type_k;
    enum ggml_type type_v;

    // mean distance of the group's K and V over all tokens and heads merged so far, NAN before the first: Ω/π, or, of a code,
    // the squared error relative to the squared length
    float    distance_k;
    float    distance_v;
    uint64_t n_merged;  // tokens behind these means

    char reason[160];  // why it was refused, else ""
};

// What a layer keeps, whatever the context.
struct llama_minicache_layer_shape {
    enum llama_minicache_layer_kind kind;  // PLAIN, whose cache grows with the context, WINDOW, STATE, or NONE

    // 0 where the layer keeps no K and V
    int32_t n_head_kv;
    int32_t head_size_k;
    int32_t head_size_v;
    int32_t n_rot;  // numbers of a head of K that RoPE turns

    uint64_t bytes_state;  // of a sequence's recurrent state, 0 without one
};

// Works on a model that was loaded without its weights too.
LLAMA_API bool llama_minicache_get_layer_shape(
    const struct llama_model * model, int32_t il, struct llama_minicache_layer_shape * shape);

// Why no layer of the model can be merged or coded, "" if some can. `reason` has room for `size` bytes; a longer text is cut.
LLAMA_API bool llama_minicache_why_not(const struct llama_model * model, char * reason, size_t size);

// Works on every context, plain ones included. Waits for the context's computations.
LLAMA_API bool llama_minicache_get_report(struct llama_context * ctx, struct llama_minicache_report * report);
LLAMA_API bool llama_minicache_get_layer_report(
    struct llama_context * ctx, int32_t il, struct llama_minicache_layer_report * report);

// How RoPE turns the K of a layer: `n_pair` pairs of numbers, of which `kind` says which they are: 0 none, 1 neighbours (2i, 2i + 1),
// 2 halves (i, i + n_pair); by position*freq[i] radians. `freq` has room for head size/2 numbers. False where it turns them in another
// way.
LLAMA_API bool llama_minicache_get_rope(
    const struct llama_context * ctx, int32_t il, int32_t * kind, int32_t * n_pair, double * freq);

// Sizes of the blocks in which llama.cpp rotates quantized K and V with a Hadamard matrix; 0 where it does not.
LLAMA_API void llama_minicache_rotation(int32_t head_size_k, int32_t head_size_v, int32_t * n_k, int32_t * n_v);

//
// kernels on arrays, for tests and for people who study the method
//
// All arrays are dense, row-major float32. The native ops run on the CPU with n_threads threads.
//

// direction [n_tokens, n_head_kv, head_size]; mag_a, mag_b, distance [n_tokens, n_head_kv]; eqs. 3 and 4 of the paper
LLAMA_API bool llama_minicache_merge(const float * x_a,  // [n_tokens, n_head_kv, head_size]
    const float *                                  x_b,  // [n_tokens, n_head_kv, head_size]
    int64_t n_tokens, int64_t n_head_kv, int64_t head_size, float t, float * direction, float * mag_a, float * mag_b,
    float * distance);

struct llama_minicache_attention_args {
    const float * q;      // [n_q, n_head, head_size]
    const float * k;      // [n_kv, n_head_kv, head_size], directions where mag_k is given
    const float * v;      // [n_kv, n_head_kv, head_size], directions where mag_v is given
    const float * mag_k;  // [n_kv, n_head_kv] or NULL for 1
    const float * mag_v;  // [n_kv, n_head_kv] or NULL for 1
    const float * mask;   // [n_q, n_kv], added to the scores, or NULL; rounded to f16 as llama.cpp's masks are
    const float * sinks;  // [n_head] or NULL

    // retained entries: cell retained[i] takes pool_k[i] and pool_v[i] in place of its direction and magnitude
    const int32_t * retained;  // [n_retained], at most one in each block of retain_block cells
    const float *   pool_k;    // [n_retained, n_head_kv, head_size]
    const float *   pool_v;    // [n_retained, n_head_kv, head_size]
    int32_t         n_retained;
    int32_t         retain_block;

    // current entries: cell current[i] takes cur_k[i] and cur_v[i], unrounded
    const int32_t * current;  // [n_current]
    const float *   cur_k;    // [n_current, n_head_kv, head_size]
    const float *   cur_v;    // [n_current, n_head_kv, head_size]
    int32_t         n_current;

    int64_t n_q;
    int64_t n_kv;
    int64_t n_head;
    int64_t n_head_kv;
    int64_t head_size;

    float scale;
    float max_bias;  // ALiBi, 0 for none
    float softcap;   // 0 for none

    enum ggml_type type_k;
    enum ggml_type type_v;
    enum ggml_type type_pool;  // GGML_TYPE_COUNT: type_k and type_v

    int32_t n_threads;
    bool    reference;  // the plain scalar kernel in place of the vectorised one
};

// result [n_q, n_head, head_size]
LLAMA_API bool llama_minicache_attention(const struct llama_minicache_attention_args * args, float * result);

// What a group's shared codes are made and read with. Code rows are laid out as minicache-code.h says, a token's heads one
// after the other: [n_tokens, bytes of the code rows of all KV heads].
struct llama_minicache_codec {
    const void * data;  // codec as minicache-code.h says, without the heads' layouts that it begins with
    int64_t      size;  // bytes

    // units of 16 coefficients of 8, 6, 5, 4, 3, 2 and 1 bits, [n_head_kv, 7]
    const int32_t * units_k;
    const int32_t * units_v;

    int32_t n_layer;  // of the group, 1 to 4
    int32_t head_size_k;
    int32_t head_size_v;
    int32_t n_head_kv;
    int32_t rope;   // 0 none, 1 neighbours (2i, 2i + 1), 2 halves (i, i + n_rot/2)
    int32_t n_rot;  // numbers of a head of K that RoPE turns
};

// K and V of all layers, [n_layer, n_tokens, n_head_kv, head_size], K after RoPE, to code rows; `bases` [n_tokens] are the
// positions that K is coded relative to, distance_k and distance_v [n_tokens, n_head_kv] the relative squared errors
LLAMA_API bool llama_minicache_encode(const struct llama_minicache_codec * codec, const float * k, const float * v,
    const int32_t * bases, int64_t n_tokens, int32_t n_threads, bool reference, uint8_t * code_k, uint8_t * code_v,
    float * distance_k, float * distance_v);

// what code rows restore of layer `side` of the group, from 0 on; k and v [n_tokens, n_head_kv, head_size]
LLAMA_API bool llama_minicache_decode(const struct llama_minicache_codec * codec, const uint8_t * code_k, const uint8_t * code_v,
    const int32_t * bases, int64_t n_tokens, int32_t side, float * k, float * v);

// As llama_minicache_attention(), with code rows [n_kv, ...] in place of k, v and their magnitudes, which are not looked at,
// nor are type_k and type_v. K and V must have one head size, and type_pool be a type.
LLAMA_API bool llama_minicache_code_attention(const struct llama_minicache_codec * codec, const uint8_t * code_k,
    const uint8_t * code_v, const int32_t * bases, int32_t side, const struct llama_minicache_attention_args * args,
    float * result);

#ifdef __cplusplus
}
#endif
