"""The declarations of llama-minicache.h, as cffi reads them: without LLAMA_API and comments. A test compares both."""

from __future__ import annotations

# stands for "the cache types" where a type is asked for
GGML_TYPE_COUNT = 43

# of ggml.h and llama.h
FOREIGN = f"""
enum ggml_type {{ GGML_TYPE_F32 = 0, GGML_TYPE_COUNT = {GGML_TYPE_COUNT} }};
struct llama_model;
struct llama_context;
struct llama_batch;
typedef int32_t llama_seq_id;
"""

DECLARATIONS = """
enum llama_minicache_mode {
    LLAMA_MINICACHE_MODE_SLERP   = 0,
    LLAMA_MINICACHE_MODE_AVERAGE = 1,
    LLAMA_MINICACHE_MODE_ALIGNED = 2,
    LLAMA_MINICACHE_MODE_CODE    = 3,
    LLAMA_MINICACHE_MODE_PLAIN   = 4,
};

struct llama_minicache_edge {
    int32_t        n_layer;
    enum ggml_type type_k;
    enum ggml_type type_v;
};

struct llama_minicache_plan;

struct llama_minicache_plan * llama_minicache_read_plan(const char * path);
void llama_minicache_free_plan(struct llama_minicache_plan * plan);
const char * llama_minicache_plan_path(const struct llama_minicache_plan * plan);
const void * llama_minicache_plan_header(const struct llama_minicache_plan * plan, size_t * n_bytes);

#define LLAMA_MINICACHE_WINDOW_MAX 65536

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
    struct llama_minicache_plan * plan;
    bool observe;
    struct llama_minicache_edge first;
    struct llama_minicache_edge last;
};

struct llama_minicache_params llama_minicache_default_params(void);
bool llama_minicache_parse_params(
        const char * text, struct llama_minicache_params * params, enum ggml_type * type_k, enum ggml_type * type_v);
bool llama_minicache_check_params(const struct llama_minicache_params * params);
int32_t llama_minicache_start_layer(float start, int32_t n_layer);
int32_t llama_minicache_retain_block(float retain);
int32_t llama_minicache_window_at(int32_t window, enum ggml_type pool_type, uint32_t n_cells);
int32_t llama_minicache_window_first(int32_t window);

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
bool llama_minicache_stop(struct llama_context * ctx, bool stop);
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
    uint64_t bytes_swa;
    uint64_t bytes_state;
    uint64_t bytes_padding;
    uint64_t bytes_f16;
    uint64_t bytes_plain;
    uint64_t bytes_f16_fixed;
    uint32_t n_cells;
    uint32_t n_cells_swa;
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
    LLAMA_MINICACHE_LAYER_WINDOW  = 4,
    LLAMA_MINICACHE_LAYER_STATE   = 5,
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

struct llama_minicache_layer_shape {
    enum llama_minicache_layer_kind kind;
    int32_t n_head_kv;
    int32_t head_size_k;
    int32_t head_size_v;
    int32_t n_rot;
    uint64_t bytes_state;
};

bool llama_minicache_get_layer_shape(
        const struct llama_model * model, int32_t il, struct llama_minicache_layer_shape * shape);
bool llama_minicache_why_not(const struct llama_model * model, char * reason, size_t size);

bool llama_minicache_get_report(struct llama_context * ctx, struct llama_minicache_report * report);
bool llama_minicache_get_layer_report(
        struct llama_context                * ctx,
        int32_t                               il,
        struct llama_minicache_layer_report * report);

bool llama_minicache_get_rope(
        const struct llama_context * ctx, int32_t il, int32_t * kind, int32_t * n_pair, double * freq);

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
    const int32_t * units_k;
    const int32_t * units_v;
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
