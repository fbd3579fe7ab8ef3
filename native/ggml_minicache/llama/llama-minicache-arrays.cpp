#include "llama-minicache.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-minicache.h"
#include "llama-minicache-error.h"
#include "llama-minicache-plan.h"
#include "minicache-code.h"
#include "minicache-math.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <vector>

// The ops on plain arrays: tensors of a graph of one node, computed by the CPU backend.

static void check(bool ok, const std::string & message) {
    if (!ok) {
        throw std::invalid_argument(message);
    }
}

static ggml_type check_type(ggml_type type, int64_t head_size, const char * name) {
    check(type >= 0 && type < GGML_TYPE_COUNT && ggml_get_type_traits(type)->to_float,
        std::string(name) + " is not a type that rows can be kept in");
    check(head_size % ggml_blck_size(type) == 0, std::string(name) + " " + ggml_type_name(type) +
                                                     " needs a head size that is a multiple of " +
                                                     std::to_string(ggml_blck_size(type)));
    return type;
}

class array_graph {
  public:
    array_graph() {
        ctx.reset(
            ggml_init({ /*.mem_size =*/32 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, /*.no_alloc =*/true }));
        backend.reset(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
        check(ctx && backend, "the CPU backend could not be started");
    }

    ggml_context * get() const { return ctx.get(); }

    void allocate() {
        buffer.reset(ggml_backend_alloc_ctx_tensors(ctx.get(), backend.get()));
        check((bool) buffer, "out of memory");
        ggml_backend_buffer_clear(buffer.get(), 0);
    }

    void compute(ggml_tensor * result, int32_t n_threads, float * out) {
        ggml_backend_dev_t dev           = ggml_backend_get_device(backend.get());
        auto               set_n_threads = (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(dev), "ggml_backend_set_n_threads");
        if (set_n_threads) {
            set_n_threads(backend.get(), std::max(1, n_threads));
        }

        ggml_cgraph * graph = ggml_new_graph(ctx.get());
        ggml_build_forward_expand(graph, result);
        check(ggml_backend_graph_compute(backend.get(), graph) == GGML_STATUS_SUCCESS, "the computation failed");
        if (out) {
            ggml_backend_tensor_get(result, out, 0, ggml_nbytes(result));
        }
    }

  private:
    ggml_context_ptr        ctx;
    ggml_backend_ptr        backend;
    ggml_backend_buffer_ptr buffer;
};

template <typename T>
static void set_data(ggml_tensor * tensor, const T * data) {
    ggml_backend_tensor_set(tensor, data, 0, ggml_nbytes(tensor));
}

// K and V of each token side by side
static std::vector<float> joined(const float * k, const float * v, int64_t n_embd_k, int64_t n_embd_v, int64_t n_tokens) {
    std::vector<float> kv;
    kv.reserve((n_embd_k + n_embd_v) * n_tokens);
    for (int64_t i = 0; i < n_tokens; ++i) {
        kv.insert(kv.end(), k + i * n_embd_k, k + (i + 1) * n_embd_k);
        kv.insert(kv.end(), v + i * n_embd_v, v + (i + 1) * n_embd_v);
    }
    return kv;
}

//
// merge
//

static void merge(const float * x_a, const float * x_b, int64_t n_tokens, int64_t n_head_kv, int64_t head_size, float t,
    float * direction, float * mag_a, float * mag_b, float * distance) {
    check(x_a && x_b && direction && mag_a && mag_b && distance, "arrays must not be NULL");
    check(n_tokens > 0 && n_head_kv > 0 && head_size > 0, "arrays must not be empty");
    check(t >= 0.0f && t <= 1.0f, "t is out of range: it must be from 0 to 1");

    array_graph graph;

    const int64_t n_embd = n_head_kv * head_size;

    ggml_tensor * a = ggml_new_tensor_2d(graph.get(), GGML_TYPE_F32, n_embd, n_tokens);
    ggml_tensor * b = ggml_new_tensor_2d(graph.get(), GGML_TYPE_F32, n_embd, n_tokens);
    ggml_tensor * r = ggml_minicache_merge(graph.get(), a, b, { (int32_t) head_size, 0, (int32_t) n_head_kv, t, 0 });
    graph.allocate();

    set_data(a, x_a);
    set_data(b, x_b);

    std::vector<float> merged(ggml_nelements(r));
    graph.compute(r, 1, merged.data());

    for (int64_t i = 0; i < n_tokens; ++i) {
        const float * row = merged.data() + i * r->ne[0];
        std::copy(row, row + n_embd, direction + i * n_embd);

        row += n_embd;
        std::copy(row, row + n_head_kv, mag_a + i * n_head_kv);
        std::copy(row + n_head_kv, row + 2 * n_head_kv, mag_b + i * n_head_kv);
        std::copy(row + 4 * n_head_kv, row + 5 * n_head_kv, distance + i * n_head_kv);
    }
}

bool llama_minicache_merge(const float * x_a, const float * x_b, int64_t n_tokens, int64_t n_head_kv, int64_t head_size, float t,
    float * direction, float * mag_a, float * mag_b, float * distance) {
    return minicache_guarded([&] { merge(x_a, x_b, n_tokens, n_head_kv, head_size, t, direction, mag_a, mag_b, distance); });
}

//
// codes
//

static minicache_code_layout layout_of(const int32_t * units, const char * name) {
    minicache_code_layout layout = {};
    for (int i = 0; i < MINICACHE_CODE_WIDTHS; ++i) {
        check(units[i] >= 0 && units[i] <= UINT8_MAX, std::string(name) + " must be from 0 to 255");
        layout.n_unit[i] = (uint8_t) units[i];
    }
    return layout;
}

static int16_t check_size(int32_t n, int32_t least, const char * name) {
    check(n >= least && n <= INT16_MAX, std::string(name) + " must be from " + std::to_string(least) + " to 32767");
    return (int16_t) n;
}

static minicache_code_shape shape_of(const llama_minicache_codec & codec) {
    minicache_code_shape shape = {};
    check(codec.n_layer >= 1 && codec.n_layer <= MINICACHE_CODE_LAYERS,
        "n_layer must be from 1 to " + std::to_string(MINICACHE_CODE_LAYERS));
    shape.layout_k         = layout_of(codec.units_k, "units_k");
    shape.layout_v         = layout_of(codec.units_v, "units_v");
    shape.d_k              = check_size(codec.head_size_k, 1, "head_size_k");
    shape.d_v              = check_size(codec.head_size_v, 1, "head_size_v");
    shape.layout_k.n_layer = shape.layout_v.n_layer = (uint8_t) codec.n_layer;
    shape.n_head_kv                                 = check_size(codec.n_head_kv, 1, "n_head_kv");
    shape.n_rot                                     = check_size(codec.n_rot, 0, "n_rot");
    shape.rope                                      = codec.rope;

    check(codec.rope >= MINICACHE_ROPE_NONE && codec.rope <= MINICACHE_ROPE_HALVES, "rope must be 0, 1 or 2");
    check(shape.n_rot % 2 == 0 && shape.n_rot <= shape.d_k, "n_rot must be even, and no more than head_size_k");

    const int64_t size = minicache_codec_offsets_of(shape).size;
    check(codec.data && codec.size == size,
        "the codec has " + std::to_string(codec.size) + " bytes; one of this shape has " + std::to_string(size));
    return shape;
}

static minicache_code_shape checked_shape(const llama_minicache_codec * codec) {
    check(codec, "codec must not be NULL");
    const minicache_code_shape shape = shape_of(*codec);
    const std::string          flaw  = minicache_codec_flaw(shape, codec->data);
    check(flaw.empty(), "the codec has " + flaw);
    return shape;
}

static void check_side(int32_t side, const minicache_code_shape & shape) {
    const int n = shape.layout_k.n_layer;
    check(side >= 0 && side < n, "side must be from 0 to " + std::to_string(n - 1));
}

static void encode(const llama_minicache_codec * codec, const float * k, const float * v, const int32_t * bases, int64_t n_tokens,
    int32_t n_threads, bool reference, uint8_t * code_k, uint8_t * code_v, float * distance_k, float * distance_v) {
    const minicache_code_shape shape = checked_shape(codec);
    check(k && v && bases && code_k && code_v && distance_k && distance_v, "arrays must not be NULL");
    check(n_tokens > 0, "arrays must not be empty");

    array_graph    graph;
    ggml_context * ctx = graph.get();

    const int64_t n_head   = shape.n_head_kv;
    const int64_t n_embd_k = shape.d_k * n_head;
    const int64_t n_embd_v = shape.d_v * n_head;

    ggml_tensor * kv[MINICACHE_CODE_LAYERS] = {};
    for (int side = 0; side < codec->n_layer; ++side) {
        kv[side] = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n_embd_k + n_embd_v, n_tokens);
    }
    ggml_tensor * data   = ggml_new_tensor_1d(ctx, GGML_TYPE_I8, codec->size);
    ggml_tensor * rows_k = ggml_new_tensor_2d(ctx, GGML_TYPE_I8, minicache_code_bytes(shape.layout_k) * n_head, n_tokens);
    ggml_tensor * rows_v = ggml_new_tensor_2d(ctx, GGML_TYPE_I8, minicache_code_bytes(shape.layout_v) * n_head, n_tokens);
    ggml_tensor * rows   = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, n_tokens);
    ggml_tensor * base   = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_tokens);
    ggml_tensor * r      = ggml_minicache_encode(ctx, kv, data, rows_k, rows_v, rows, base, shape);
    if (reference) {
        ggml_minicache_encode_set_reference(r);
    }
    graph.allocate();

    for (int side = 0; side < codec->n_layer; ++side) {
        const float * k_side = k + side * n_tokens * n_embd_k;
        const float * v_side = v + side * n_tokens * n_embd_v;
        set_data(kv[side], joined(k_side, v_side, n_embd_k, n_embd_v, n_tokens).data());
    }
    set_data(data, codec->data);
    set_data(base, bases);

    std::vector<int64_t> row_numbers(n_tokens);
    std::iota(row_numbers.begin(), row_numbers.end(), 0);
    set_data(rows, row_numbers.data());

    std::vector<float> distances(ggml_nelements(r));
    graph.compute(r, n_threads, distances.data());

    ggml_backend_tensor_get(rows_k, code_k, 0, ggml_nbytes(rows_k));
    ggml_backend_tensor_get(rows_v, code_v, 0, ggml_nbytes(rows_v));
    for (int64_t i = 0; i < n_tokens; ++i) {
        const float * row = distances.data() + 2 * n_head * i;
        std::copy(row, row + n_head, distance_k + i * n_head);
        std::copy(row + n_head, row + 2 * n_head, distance_v + i * n_head);
    }
}

bool llama_minicache_encode(const llama_minicache_codec * codec, const float * k, const float * v, const int32_t * bases,
    int64_t n_tokens, int32_t n_threads, bool reference, uint8_t * code_k, uint8_t * code_v, float * distance_k,
    float * distance_v) {
    return minicache_guarded(
        [&] { encode(codec, k, v, bases, n_tokens, n_threads, reference, code_k, code_v, distance_k, distance_v); });
}

// one layer's K, or V, of all KV heads of a token
static void decode_token(const llama_minicache_codec & codec, const minicache_code_shape & shape, bool is_v, int side,
    const uint8_t * rows, float * out) {
    const minicache_codec_offsets o      = minicache_codec_offsets_of(shape);
    const minicache_code_layout   layout = is_v ? shape.layout_v : shape.layout_k;

    const int64_t n    = layout.n_layer;
    const int64_t d    = is_v ? shape.d_v : shape.d_k;
    const int64_t r    = minicache_code_size(layout);
    const auto *  data = (const char *) codec.data;

    std::vector<float>       coefficients(r);
    std::vector<ggml_fp16_t> decoder(d * r);
    for (int64_t h = 0; h < shape.n_head_kv; ++h) {
        const uint8_t * row = rows + h * minicache_code_bytes(layout);
        minicache_code_coefficients(layout, row, coefficients.data());

        float mag[2];
        memcpy(mag, data + o.mag + ((h * 2 + is_v) * n + side) * sizeof(mag), sizeof(mag));
        memcpy(decoder.data(), data + (is_v ? o.dec_v : o.dec_k) + (h * n + side) * d * r * sizeof(ggml_fp16_t),
            decoder.size() * sizeof(ggml_fp16_t));

        const double m = minicache_code_mag_value(row[side], mag[0], mag[1]);
        for (int64_t i = 0; i < d; ++i) {
            double sum = 0.0;
            for (int64_t c = 0; c < r; ++c) {
                sum += (double) ggml_fp16_to_fp32(decoder[i * r + c]) * coefficients[c];
            }
            out[h * d + i] = (float) (m * sum);
        }
    }
}

// RoPE of a token's K by a position
static void turn_token(const llama_minicache_codec & codec, const minicache_code_shape & shape, int32_t position, float * k) {
    const int n = shape.rope == MINICACHE_ROPE_NONE ? 0 : shape.n_rot / 2;

    std::vector<float> freq(n);
    if (n > 0) {
        memcpy(freq.data(), (const char *) codec.data + minicache_codec_offsets_of(shape).freq, n * sizeof(float));
    }
    for (int i = 0; i < n; ++i) {
        const double angle = (double) position * freq[i];
        for (int h = 0; h < shape.n_head_kv; ++h) {
            float * x     = k + h * shape.d_k + (shape.rope == MINICACHE_ROPE_NEIGHBOURS ? 2 * i : i);
            float & other = x[shape.rope == MINICACHE_ROPE_NEIGHBOURS ? 1 : n];

            const double x0 = *x;
            const double x1 = other;
            *x              = (float) (x0 * cos(angle) - x1 * sin(angle));
            other           = (float) (x0 * sin(angle) + x1 * cos(angle));
        }
    }
}

bool llama_minicache_decode(const llama_minicache_codec * codec, const uint8_t * code_k, const uint8_t * code_v,
    const int32_t * bases, int64_t n_tokens, int32_t side, float * k, float * v) {
    return minicache_guarded([&] {
        const minicache_code_shape shape = checked_shape(codec);
        check(code_k && code_v && bases && k && v, "arrays must not be NULL");
        check_side(side, shape);

        for (int64_t i = 0; i < n_tokens; ++i) {
            float * k_i = k + i * shape.n_head_kv * shape.d_k;
            float * v_i = v + i * shape.n_head_kv * shape.d_v;
            decode_token(*codec, shape, false, side, code_k + i * shape.n_head_kv * minicache_code_bytes(shape.layout_k), k_i);
            turn_token(*codec, shape, bases[i], k_i);
            decode_token(*codec, shape, true, side, code_v + i * shape.n_head_kv * minicache_code_bytes(shape.layout_v), v_i);
        }
    });
}

//
// attention
//

// entries that are code rows in place of k, v and their magnitudes
struct code_entries {
    const llama_minicache_codec * codec;

    minicache_code_shape shape;
    const uint8_t *      code_k;
    const uint8_t *      code_v;
    const int32_t *      bases;
    int32_t              side;
};

static void check_args(const llama_minicache_attention_args & a, const code_entries * codes) {
    check(a.q && (codes || (a.k && a.v)), "q, k and v must not be NULL");
    check(a.n_q > 0 && a.n_kv > 0 && a.n_head > 0 && a.n_head_kv > 0 && a.head_size > 0, "arrays must not be empty");
    check(a.n_head % a.n_head_kv == 0, "n_head must be a multiple of n_head_kv");
    check(a.n_retained >= 0 && (a.n_retained == 0 || (a.retained && a.pool_k && a.pool_v)),
        "retained entries need pool_k and pool_v");
    check(a.n_current >= 0 && (a.n_current == 0 || (a.current && a.cur_k && a.cur_v)), "current entries need cur_k and cur_v");
    check(a.n_retained == 0 || a.retain_block > 0, "retained entries need retain_block > 0");
    if (!codes) {
        check_type(a.type_k, a.head_size, "type_k");
        check_type(a.type_v, a.head_size, "type_v");
        return;
    }
    check(codes->code_k && codes->code_v && codes->bases, "code_k, code_v and bases must not be NULL");
    check_side(codes->side, codes->shape);
    check(codes->shape.d_k == a.head_size && codes->shape.d_v == a.head_size, "the codec is for another head size");
    check(codes->shape.n_head_kv == a.n_head_kv, "the codec is for another n_head_kv");
}

// what each cell holds
static std::vector<int32_t> cells_of(const llama_minicache_attention_args & a) {
    std::vector<int32_t> cells(a.n_kv, GGML_MINICACHE_CELL_MERGED);
    std::vector<bool>    taken(a.n_retained > 0 ? ggml_minicache_n_slot(a.n_kv, a.retain_block) : 0);

    for (int32_t i = 0; i < a.n_retained; ++i) {
        const int32_t cell = a.retained[i];
        check(cell >= 0 && cell < a.n_kv, "retained names a cell that is not there");
        check(!taken[cell / a.retain_block], "a block of retain_block cells can retain one of them only");
        taken[cell / a.retain_block] = true;
        cells[cell]                  = GGML_MINICACHE_CELL_RETAINED;
    }
    for (int32_t i = 0; i < a.n_current; ++i) {
        check(a.current[i] >= 0 && a.current[i] < a.n_kv, "current names a cell that is not there");
        cells[a.current[i]] = i;
    }
    return cells;
}

// float rows of heads to the tensor's type, as ggml_set_rows stores them in a cache
static std::vector<uint8_t> converted(const ggml_tensor * tensor, const float * x) {
    std::vector<uint8_t> data(ggml_nbytes(tensor));
    if (tensor->type == GGML_TYPE_F32) {
        memcpy(data.data(), x, data.size());
    } else {
        ggml_get_type_traits(tensor->type)->from_float_ref(x, data.data(), ggml_nelements(tensor));
    }
    return data;
}

// what a magnitude is stored as, the longest that f16 has at most
static ggml_fp16_t stored_magnitude(float mag) { return ggml_fp32_to_fp16(std::min(mag, MINICACHE_MAG_MAX)); }

static std::vector<ggml_fp16_t> magnitudes_of(const llama_minicache_attention_args & a) {
    const ggml_fp16_t one = ggml_fp32_to_fp16(1.0f);

    std::vector<ggml_fp16_t> mags(4 * a.n_head_kv * a.n_kv);
    for (int64_t i = 0; i < a.n_kv; ++i) {
        for (int64_t h = 0; h < a.n_head_kv; ++h) {
            mags[(4 * i + 0) * a.n_head_kv + h] = a.mag_k ? stored_magnitude(a.mag_k[i * a.n_head_kv + h]) : one;
            mags[(4 * i + 2) * a.n_head_kv + h] = a.mag_v ? stored_magnitude(a.mag_v[i * a.n_head_kv + h]) : one;
        }
    }
    return mags;
}

// retained rows at their slots
static std::vector<float> pool_of(const llama_minicache_attention_args & a, const float * rows, int64_t n_slot) {
    const int64_t n_embd = a.n_head_kv * a.head_size;

    std::vector<float> pool(n_embd * n_slot);
    for (int32_t i = 0; i < a.n_retained; ++i) {
        std::copy(rows + i * n_embd, rows + (i + 1) * n_embd, pool.data() + a.retained[i] / a.retain_block * n_embd);
    }
    return pool;
}

static void attention(const llama_minicache_attention_args & a, const code_entries * codes, float * result) {
    check(result, "result must not be NULL");
    check_args(a, codes);

    const std::vector<int32_t> cells = cells_of(a);

    const int64_t d      = a.head_size;
    const int64_t n_slot = a.n_retained > 0 ? ggml_minicache_n_slot(a.n_kv, a.retain_block) : 0;

    array_graph    graph;
    ggml_context * ctx = graph.get();

    const auto new_rows = [&](ggml_type type, int64_t n_row, int64_t n) {
        return ggml_new_tensor_3d(ctx, type, n_row, a.n_head_kv, n);
    };

    ggml_tensor * q       = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, d, a.n_head, a.n_q);
    ggml_tensor * index   = ggml_new_tensor_3d(ctx, GGML_TYPE_I32, a.n_kv, 1, codes ? 2 : 1);
    ggml_tensor * mask    = a.mask ? ggml_new_tensor_2d(ctx, GGML_TYPE_F16, a.n_kv, a.n_q) : nullptr;
    ggml_tensor * sinks   = a.sinks ? ggml_new_tensor_1d(ctx, GGML_TYPE_F32, a.n_head) : nullptr;
    ggml_tensor * cache_k = nullptr;
    ggml_tensor * cache_v = nullptr;
    ggml_tensor * mag     = nullptr;
    ggml_tensor * codec   = nullptr;
    ggml_tensor * pool_k  = nullptr;
    ggml_tensor * pool_v  = nullptr;
    ggml_tensor * kv_cur  = nullptr;
    if (codes) {
        cache_k = new_rows(GGML_TYPE_I8, minicache_code_bytes(codes->shape.layout_k), a.n_kv);
        cache_v = new_rows(GGML_TYPE_I8, minicache_code_bytes(codes->shape.layout_v), a.n_kv);
        codec   = ggml_new_tensor_1d(ctx, GGML_TYPE_I8, codes->codec->size);
    } else {
        cache_k = new_rows(a.type_k, d, a.n_kv);
        cache_v = new_rows(a.type_v, d, a.n_kv);
        mag     = ggml_new_tensor_3d(ctx, GGML_TYPE_F16, a.n_head_kv, 4, a.n_kv);
    }
    if (n_slot > 0) {
        const bool own = a.type_pool == GGML_TYPE_COUNT && !codes;
        pool_k         = new_rows(own ? a.type_k : check_type(a.type_pool, d, "type_pool"), d, n_slot);
        pool_v         = new_rows(own ? a.type_v : a.type_pool, d, n_slot);
    }
    if (a.n_current > 0) {
        kv_cur = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 2 * d * a.n_head_kv, a.n_current);
    }

    const ggml_minicache_attn_params params = {
        a.scale,
        a.max_bias,
        a.softcap,
        codes ? codes->side : 0,
        /*.block =*/n_slot > 0 ? a.retain_block : 0,
        a.reference ? 1 : 0,
        /*.window =*/0,
    };
    ggml_tensor * q_heads = ggml_permute(ctx, q, 0, 2, 1, 3);
    ggml_tensor * r =
        codes ? ggml_minicache_attn_code(
                    ctx, q_heads, cache_k, cache_v, codec, pool_k, pool_v, kv_cur, mask, index, sinks, params, codes->shape) :
                ggml_minicache_attn(ctx, q_heads, cache_k, cache_v, mag, pool_k, pool_v, kv_cur, mask, index, sinks, params);

    graph.allocate();

    set_data(q, a.q);
    ggml_backend_tensor_set(index, cells.data(), 0, cells.size() * sizeof(int32_t));
    if (codes) {
        set_data(cache_k, codes->code_k);
        set_data(cache_v, codes->code_v);
        set_data(codec, codes->codec->data);
        ggml_backend_tensor_set(index, codes->bases, index->nb[2], a.n_kv * sizeof(int32_t));
    } else {
        set_data(cache_k, converted(cache_k, a.k).data());
        set_data(cache_v, converted(cache_v, a.v).data());
        set_data(mag, magnitudes_of(a).data());
    }
    if (mask) {
        set_data(mask, converted(mask, a.mask).data());
    }
    if (sinks) {
        set_data(sinks, a.sinks);
    }
    if (pool_k) {
        set_data(pool_k, converted(pool_k, pool_of(a, a.pool_k, n_slot).data()).data());
        set_data(pool_v, converted(pool_v, pool_of(a, a.pool_v, n_slot).data()).data());
    }
    if (kv_cur) {
        const int64_t n_embd = d * a.n_head_kv;
        set_data(kv_cur, joined(a.cur_k, a.cur_v, n_embd, n_embd, a.n_current).data());
    }

    graph.compute(r, a.n_threads, result);
}

bool llama_minicache_attention(const llama_minicache_attention_args * args, float * result) {
    return minicache_guarded([&] {
        check(args, "args must not be NULL");
        attention(*args, nullptr, result);
    });
}

bool llama_minicache_code_attention(const llama_minicache_codec * codec, const uint8_t * code_k, const uint8_t * code_v,
    const int32_t * bases, int32_t side, const llama_minicache_attention_args * args, float * result) {
    return minicache_guarded([&] {
        check(args, "args must not be NULL");
        const code_entries codes = { codec, checked_shape(codec), code_k, code_v, bases, side };
        attention(*args, &codes, result);
    });
}
