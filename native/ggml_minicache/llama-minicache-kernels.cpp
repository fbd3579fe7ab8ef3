#include "llama-minicache.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-minicache.h"
#include "llama-minicache-error.h"
#include "minicache-math.h"

#include <algorithm>
#include <cstring>
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
    ggml_tensor * r = ggml_minicache_merge(graph.get(), a, b, { (int32_t) head_size, 0, (int32_t) n_head_kv, t });
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
// attention
//

static void check_args(const llama_minicache_attention_args & a) {
    check(a.q && a.k && a.v, "q, k and v must not be NULL");
    check(a.n_q > 0 && a.n_kv > 0 && a.n_head > 0 && a.n_head_kv > 0 && a.head_size > 0, "arrays must not be empty");
    check(a.n_head % a.n_head_kv == 0, "n_head must be a multiple of n_head_kv");
    check(a.n_retained >= 0 && (a.n_retained == 0 || (a.retained && a.pool_k && a.pool_v)),
        "retained entries need pool_k and pool_v");
    check(a.n_current >= 0 && (a.n_current == 0 || (a.current && a.cur_k && a.cur_v)), "current entries need cur_k and cur_v");
    check(a.n_retained == 0 || a.retain_block > 0, "retained entries need retain_block > 0");
    check_type(a.type_k, a.head_size, "type_k");
    check_type(a.type_v, a.head_size, "type_v");
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

// K and V of the current entries side by side
static std::vector<float> current_of(const llama_minicache_attention_args & a) {
    const int64_t n_embd = a.n_head_kv * a.head_size;

    std::vector<float> kv(2 * n_embd * a.n_current);
    for (int32_t i = 0; i < a.n_current; ++i) {
        std::copy(a.cur_k + i * n_embd, a.cur_k + (i + 1) * n_embd, kv.data() + 2 * i * n_embd);
        std::copy(a.cur_v + i * n_embd, a.cur_v + (i + 1) * n_embd, kv.data() + (2 * i + 1) * n_embd);
    }
    return kv;
}

static void attention(const llama_minicache_attention_args & a, float * result) {
    check(result, "result must not be NULL");
    check_args(a);

    const std::vector<int32_t> cells = cells_of(a);

    const int64_t d      = a.head_size;
    const int64_t n_slot = a.n_retained > 0 ? ggml_minicache_n_slot(a.n_kv, a.retain_block) : 0;

    array_graph    graph;
    ggml_context * ctx = graph.get();

    const auto new_rows = [&](ggml_type type, int64_t n) { return ggml_new_tensor_3d(ctx, type, d, a.n_head_kv, n); };

    ggml_tensor * q      = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, d, a.n_head, a.n_q);
    ggml_tensor * dir_k  = new_rows(a.type_k, a.n_kv);
    ggml_tensor * dir_v  = new_rows(a.type_v, a.n_kv);
    ggml_tensor * mag    = ggml_new_tensor_3d(ctx, GGML_TYPE_F16, a.n_head_kv, 4, a.n_kv);
    ggml_tensor * index  = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, a.n_kv, 1);
    ggml_tensor * mask   = a.mask ? ggml_new_tensor_2d(ctx, GGML_TYPE_F16, a.n_kv, a.n_q) : nullptr;
    ggml_tensor * sinks  = a.sinks ? ggml_new_tensor_1d(ctx, GGML_TYPE_F32, a.n_head) : nullptr;
    ggml_tensor * pool_k = nullptr;
    ggml_tensor * pool_v = nullptr;
    ggml_tensor * kv_cur = nullptr;
    if (n_slot > 0) {
        const bool own = a.type_pool == GGML_TYPE_COUNT;
        pool_k         = new_rows(own ? a.type_k : check_type(a.type_pool, d, "type_pool"), n_slot);
        pool_v         = new_rows(own ? a.type_v : a.type_pool, n_slot);
    }
    if (a.n_current > 0) {
        kv_cur = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 2 * d * a.n_head_kv, a.n_current);
    }

    const ggml_minicache_attn_params params = {
        a.scale,
        a.max_bias,
        a.softcap,
        /*.side =*/0,
        /*.block =*/n_slot > 0 ? a.retain_block : 0,
        a.reference ? 1 : 0,
    };
    ggml_tensor * r = ggml_minicache_attn(
        ctx, ggml_permute(ctx, q, 0, 2, 1, 3), dir_k, dir_v, mag, pool_k, pool_v, kv_cur, mask, index, sinks, params);

    graph.allocate();

    set_data(q, a.q);
    set_data(dir_k, converted(dir_k, a.k).data());
    set_data(dir_v, converted(dir_v, a.v).data());
    set_data(mag, magnitudes_of(a).data());
    set_data(index, cells.data());
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
        set_data(kv_cur, current_of(a).data());
    }

    graph.compute(r, a.n_threads, result);
}

bool llama_minicache_attention(const llama_minicache_attention_args * args, float * result) {
    return minicache_guarded([&] {
        check(args, "args must not be NULL");
        attention(*args, result);
    });
}
