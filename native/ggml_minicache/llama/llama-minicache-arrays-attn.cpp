#include "ggml-minicache.h"
#include "llama-minicache-arrays.h"
#include "llama-minicache-error.h"
#include "minicache-math.h"

#include <algorithm>
#include <cstring>

// Attention on plain arrays, over merged entries or codes.

// Entries that are code rows, in place of k, v and their magnitudes.
struct code_entries {
    minicache_array_codec codec;
    const uint8_t *       code_k;
    const uint8_t *       code_v;
    const int32_t *       bases;
    int32_t               side;
};

static void check_args(const llama_minicache_attention_args & a, const code_entries * codes) {
    minicache_check_arg(a.q && (codes || (a.k && a.v)), "q, k and v must not be NULL");
    minicache_check_arg(
        a.n_q > 0 && a.n_kv > 0 && a.n_head > 0 && a.n_head_kv > 0 && a.head_size > 0, "arrays must not be empty");
    minicache_check_arg(a.n_head % a.n_head_kv == 0, "n_head must be a multiple of n_head_kv");
    minicache_check_arg(a.n_retained >= 0 && (a.n_retained == 0 || (a.retained && a.pool_k && a.pool_v)),
        "retained entries need pool_k and pool_v");
    minicache_check_arg(
        a.n_current >= 0 && (a.n_current == 0 || (a.current && a.cur_k && a.cur_v)), "current entries need cur_k and cur_v");
    minicache_check_arg(a.n_retained == 0 || a.retain_block > 0, "retained entries need retain_block > 0");
    if (!codes) {
        minicache_check_type(a.type_k, a.head_size, "type_k");
        minicache_check_type(a.type_v, a.head_size, "type_v");
        return;
    }
    minicache_check_arg(codes->code_k && codes->code_v && codes->bases, "code_k, code_v and bases must not be NULL");
    minicache_check_side(codes->side, codes->codec.shape);
    minicache_check_arg(
        codes->codec.shape.d_k == a.head_size && codes->codec.shape.d_v == a.head_size, "the codec is for another head size");
    minicache_check_arg(codes->codec.shape.n_head_kv == a.n_head_kv, "the codec is for another n_head_kv");
}

// What each cell holds.
static std::vector<int32_t> cells_of(const llama_minicache_attention_args & a) {
    std::vector<int32_t> cells(a.n_kv, GGML_MINICACHE_CELL_MERGED);
    std::vector<bool>    taken(a.n_retained > 0 ? ggml_minicache_n_slot(a.n_kv, a.retain_block) : 0);

    for (int32_t i = 0; i < a.n_retained; ++i) {
        const int32_t cell = a.retained[i];
        minicache_check_arg(cell >= 0 && cell < a.n_kv, "retained names a cell that is not there");
        minicache_check_arg(!taken[cell / a.retain_block], "a block of retain_block cells can retain one of them only");
        taken[cell / a.retain_block] = true;
        cells[cell]                  = GGML_MINICACHE_CELL_RETAINED;
    }
    for (int32_t i = 0; i < a.n_current; ++i) {
        minicache_check_arg(a.current[i] >= 0 && a.current[i] < a.n_kv, "current names a cell that is not there");
        cells[a.current[i]] = i;
    }
    return cells;
}

// Converts rows of heads to the tensor's type, as ggml_set_rows stores them in a cache.
static std::vector<uint8_t> converted(const ggml_tensor * tensor, const float * x) {
    std::vector<uint8_t> data(ggml_nbytes(tensor));
    if (tensor->type == GGML_TYPE_F32) {
        memcpy(data.data(), x, data.size());
    } else {
        ggml_get_type_traits(tensor->type)->from_float_ref(x, data.data(), ggml_nelements(tensor));
    }
    return data;
}

// A magnitude as it is stored: in f16, and at most the largest number that f16 has.
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

// The pool, with the retained rows in their slots.
static std::vector<float> pool_of(const llama_minicache_attention_args & a, const float * rows, int64_t n_slot) {
    const int64_t n_embd = a.n_head_kv * a.head_size;

    std::vector<float> pool(n_embd * n_slot);
    for (int32_t i = 0; i < a.n_retained; ++i) {
        std::copy(rows + i * n_embd, rows + (i + 1) * n_embd, pool.data() + a.retained[i] / a.retain_block * n_embd);
    }
    return pool;
}

static void attention(const llama_minicache_attention_args & a, const code_entries * codes, float * result) {
    minicache_check_arg(result, "result must not be NULL");
    check_args(a, codes);

    const std::vector<int32_t> cells = cells_of(a);

    const int64_t d      = a.head_size;
    const int64_t n_slot = a.n_retained > 0 ? ggml_minicache_n_slot(a.n_kv, a.retain_block) : 0;

    minicache_array_graph graph;
    ggml_context *        ctx = graph.get();

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
        cache_k = ggml_new_tensor_3d(ctx, GGML_TYPE_I8, codes->codec.shape.bytes_k, 1, a.n_kv);
        cache_v = ggml_new_tensor_3d(ctx, GGML_TYPE_I8, codes->codec.shape.bytes_v, 1, a.n_kv);
        codec   = ggml_new_tensor_1d(ctx, GGML_TYPE_I8, (int64_t) codes->codec.data.size());
    } else {
        cache_k = new_rows(a.type_k, d, a.n_kv);
        cache_v = new_rows(a.type_v, d, a.n_kv);
        mag     = ggml_new_tensor_3d(ctx, GGML_TYPE_F16, a.n_head_kv, 4, a.n_kv);
    }
    if (n_slot > 0) {
        const bool own = a.type_pool == GGML_TYPE_COUNT && !codes;
        pool_k         = new_rows(own ? a.type_k : minicache_check_type(a.type_pool, d, "type_pool"), d, n_slot);
        pool_v         = new_rows(own ? a.type_v : a.type_pool, d, n_slot);
    }
    if (a.n_current > 0) {
        kv_cur = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 2 * d * a.n_head_kv, a.n_current);
    }

    const ggml_minicache_attn_params params = {
        a.scale,
        a.max_bias,
        a.softcap,
        (int16_t) (codes ? codes->side : 0),
        (int16_t) a.reference,
        /*.block =*/n_slot > 0 ? a.retain_block : 0,
        /*.window =*/0,
    };
    ggml_tensor * q_heads = ggml_permute(ctx, q, 0, 2, 1, 3);
    ggml_tensor * r =
        codes ? ggml_minicache_attn_code(ctx, q_heads, cache_k, cache_v, codec, pool_k, pool_v, kv_cur, mask, index, sinks,
                    params, codes->codec.shape) :
                ggml_minicache_attn(ctx, q_heads, cache_k, cache_v, mag, pool_k, pool_v, kv_cur, mask, index, sinks, params);

    graph.allocate();

    minicache_set_data(q, a.q);
    ggml_backend_tensor_set(index, cells.data(), 0, cells.size() * sizeof(int32_t));
    if (codes) {
        minicache_set_data(cache_k, codes->code_k);
        minicache_set_data(cache_v, codes->code_v);
        minicache_set_data(codec, codes->codec.data.data());
        ggml_backend_tensor_set(index, codes->bases, index->nb[2], a.n_kv * sizeof(int32_t));
    } else {
        minicache_set_data(cache_k, converted(cache_k, a.k).data());
        minicache_set_data(cache_v, converted(cache_v, a.v).data());
        minicache_set_data(mag, magnitudes_of(a).data());
    }
    if (mask) {
        minicache_set_data(mask, converted(mask, a.mask).data());
    }
    if (sinks) {
        minicache_set_data(sinks, a.sinks);
    }
    if (pool_k) {
        minicache_set_data(pool_k, converted(pool_k, pool_of(a, a.pool_k, n_slot).data()).data());
        minicache_set_data(pool_v, converted(pool_v, pool_of(a, a.pool_v, n_slot).data()).data());
    }
    if (kv_cur) {
        const int64_t n_embd = d * a.n_head_kv;
        minicache_set_data(kv_cur, minicache_joined(a.cur_k, a.cur_v, n_embd, n_embd, a.n_current).data());
    }

    graph.compute(r, a.n_threads, result);
}

bool llama_minicache_attention(const llama_minicache_attention_args * args, float * result) {
    return minicache_guarded([&] {
        minicache_check_arg(args, "args must not be NULL");
        attention(*args, nullptr, result);
    });
}

bool llama_minicache_code_attention(const llama_minicache_codec * codec, const uint8_t * code_k, const uint8_t * code_v,
    const int32_t * bases, int32_t side, const llama_minicache_attention_args * args, float * result) {
    return minicache_guarded([&] {
        minicache_check_arg(args, "args must not be NULL");
        const code_entries codes = { minicache_checked_codec(codec), code_k, code_v, bases, side };
        attention(*args, &codes, result);
    });
}
