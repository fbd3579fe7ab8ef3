// Times decode attention on a device: MiniCache's ops beside ggml's flash attention with plain caches of the same type, and a
// copy, which shows how fast the device's memory is. Prints each measurement as a line with a JSON object;
// scripts/bench_kernels.py makes tables of them. The tensors hold arbitrary values, as the time does not depend on them.

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-minicache.h"
#include "minicache-code-heads.h"
#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

static const int64_t D         = 128;
static const int64_t N_HEAD_KV = 8;
static const int     NODES     = 16;   // nodes of one op in a graph, so that launching it matters little
static const int     REPEATS   = 7;    // of which the median counts
static const int     BASES     = 128;  // positions that a coded K is relative to
static const int     WINDOW    = 64;   // the latest tokens, which plans keep unmerged

// Units of 16 coefficients of 8, 6, 5, 4, 3, 2 and 1 bits, as in plans of these ratios for heads of 128.
struct code_case {
    const char * name;
    uint8_t      units[MINICACHE_CODE_WIDTHS];
};

static const code_case CODES[] = {
    { "code 5", { 1, 2, 2, 3, 2, 2, 0 } },
    { "code 10", { 0, 1, 1, 1, 2, 2, 0 } },
};

static const char * const NOT_SUPPORTED = "not supported";
static const char * const DOES_NOT_FIT  = "does not fit";

// The time of one op, in microseconds.
struct timing {
    const char * missing = nullptr;  // why there is no time
    double       median  = 0.0;
    double       least   = 0.0;
    double       most    = 0.0;
};

class bench {
  public:
    explicit bench(const char * device) : backend(ggml_backend_init_by_name(device, nullptr)) {}

    bool ok() const { return backend != nullptr; }

    const char * description() const { return ggml_backend_dev_description(ggml_backend_get_device(backend.get())); }

    // Builds the op of `build` n_nodes times over the same tensors. `fill` sets those tensors whose content must make sense;
    // all others are set to small numbers.
    timing measure(const std::function<ggml_tensor *(ggml_context *)> & build, const std::function<void()> & fill,
        int n_nodes = NODES) const {
        const ggml_init_params params = { 1024 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true };
        const ggml_context_ptr ctx(ggml_init(params));

        ggml_cgraph * graph = ggml_new_graph(ctx.get());
        for (int i = 0; i < n_nodes; ++i) {
            ggml_build_forward_expand(graph, build(ctx.get()));
        }
        for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
            if (!ggml_backend_supports_op(backend.get(), ggml_graph_node(graph, i))) {
                return { NOT_SUPPORTED };
            }
        }
        size_t needed = 0;
        for (ggml_tensor * x = ggml_get_first_tensor(ctx.get()); x; x = ggml_get_next_tensor(ctx.get(), x)) {
            needed += x->view_src ? 0 : ggml_nbytes(x);
        }
        size_t free  = 0;
        size_t total = 0;
        ggml_backend_dev_memory(ggml_backend_get_device(backend.get()), &free, &total);
        if (needed > free / 10 * 9) {
            return { DOES_NOT_FIT };
        }
        const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend.get()));
        if (!buffer) {
            return { DOES_NOT_FIT };
        }
        ggml_backend_buffer_clear(buffer.get(), 0x2C);  // 0.065 in f16, 2e-12 in f32
        fill();

        std::vector<double> us;
        for (int i = 0; i < REPEATS + 2; ++i) {  // the first two warm up and capture the graph
            const int64_t began = ggml_time_us();
            if (ggml_backend_graph_compute(backend.get(), graph) != GGML_STATUS_SUCCESS) {
                fprintf(stderr, "the computation failed\n");
                exit(1);
            }
            if (i >= 2) {
                us.push_back((double) (ggml_time_us() - began) / n_nodes);
            }
        }
        std::sort(us.begin(), us.end());
        return { nullptr, us[us.size() / 2], us.front(), us.back() };
    }

  private:
    ggml_backend_ptr backend;
};

// What is decoded: `batch` sequences of n_kv tokens, with n_gqa query heads for each KV head.
struct work {
    int64_t n_kv;
    int64_t batch;
    int64_t n_gqa;
};

static void report(const char * op, const char * cache, const work & w, const timing & t, double bytes) {
    printf("{\"op\": \"%s\", \"cache\": \"%s\", \"n_kv\": %lld, \"batch\": %lld, \"gqa\": %lld, ", op, cache, (long long) w.n_kv,
        (long long) w.batch, (long long) w.n_gqa);
    if (t.missing) {
        printf("\"us\": null, \"reason\": \"%s\"}\n", t.missing);
    } else {
        printf("\"us\": %.2f, \"least_us\": %.2f, \"most_us\": %.2f, \"bytes\": %.0f, \"gb_s\": %.2f}\n", t.median, t.least,
            t.most, bytes, bytes / t.median * 1e-3);
    }
    fflush(stdout);
}

static void bench_copy(const bench & b) {
    const int64_t n = 256 * 1024 * 1024;  // bytes, more than any cache holds

    ggml_tensor * x = nullptr;
    ggml_tensor * y = nullptr;

    const auto shaped = [&](ggml_context * ctx) {
        x = x ? x : ggml_new_tensor_1d(ctx, GGML_TYPE_F32, n / 4);
        y = y ? y : ggml_new_tensor_1d(ctx, GGML_TYPE_F32, n / 4);
        return ggml_cpy(ctx, x, y);
    };
    report("copy", "", {}, b.measure(shaped, [] {}, 1), 2.0 * (double) n);
}

// The tensors that all nodes of a graph share.
struct shared_tensors {
    ggml_tensor * q    = nullptr;
    ggml_tensor * k    = nullptr;
    ggml_tensor * v    = nullptr;
    ggml_tensor * mask = nullptr;

    // MiniCache only
    ggml_tensor * scales = nullptr;  // magnitudes, or the codec
    ggml_tensor * pool_k = nullptr;
    ggml_tensor * pool_v = nullptr;
    ggml_tensor * kv_cur = nullptr;
    ggml_tensor * index  = nullptr;

    double bytes() const {
        double sum = 0.0;
        for (const ggml_tensor * x : { q, k, v, mask, scales, pool_k, pool_v, kv_cur, index }) {
            sum += x ? (double) ggml_nbytes(x) : 0.0;
        }
        return sum;
    }
};

static void bench_plain(const bench & b, ggml_type type, const work & w) {
    shared_tensors t;

    const auto build = [&](ggml_context * ctx) {
        if (!t.q) {
            t.q    = ggml_new_tensor_4d(ctx, GGML_TYPE_F32, D, 1, N_HEAD_KV * w.n_gqa, w.batch);
            t.k    = ggml_new_tensor_4d(ctx, type, D, N_HEAD_KV, w.n_kv, w.batch);
            t.v    = ggml_new_tensor_4d(ctx, type, D, N_HEAD_KV, w.n_kv, w.batch);
            t.mask = ggml_new_tensor_4d(ctx, GGML_TYPE_F16, w.n_kv, 1, 1, w.batch);
        }
        ggml_tensor * k = ggml_permute(ctx, t.k, 0, 2, 1, 3);
        ggml_tensor * v = ggml_permute(ctx, t.v, 0, 2, 1, 3);
        return ggml_flash_attn_ext(ctx, t.q, k, v, t.mask, 0.1f, 0.0f, 0.0f);
    };
    const auto fill = [&] { ggml_backend_tensor_memset(t.mask, 0, 0, ggml_nbytes(t.mask)); };

    const timing took = b.measure(build, fill);
    report("flash attention", ggml_type_name(type), w, took, t.bytes());
}

static void set_cells(const shared_tensors & t, const work & w) {
    ggml_backend_tensor_memset(t.mask, 0, 0, ggml_nbytes(t.mask));

    std::vector<int32_t> index(ggml_nelements(t.index), GGML_MINICACHE_CELL_MERGED);
    for (int64_t s = 0; s < w.batch; ++s) {
        for (int64_t i = 0; i < w.n_kv; ++i) {
            int32_t * cell = &index[s * w.n_kv + i];
            *cell          = i == w.n_kv - 1 ? 0 : i >= w.n_kv - WINDOW ? GGML_MINICACHE_CELL_WINDOW : *cell;
            if (t.index->ne[2] == 2) {
                index[(w.batch + s) * w.n_kv + i] = (int32_t) (i / BASES * BASES);
            }
        }
    }
    ggml_backend_tensor_set(t.index, index.data(), 0, ggml_nbytes(t.index));
}

// code: null for directions of `type`
static void bench_minicache(const bench & b, const char * name, ggml_type type, const code_case * code, const work & w) {
    shared_tensors                     t;
    minicache_code_shape               shape = {};
    std::vector<minicache_head_layout> heads;
    if (code) {
        minicache_code_layout layout = {};
        memcpy(layout.n_unit, code->units, sizeof(code->units));
        layout.n_layer  = 2;
        shape.d_k       = (int16_t) D;
        shape.d_v       = (int16_t) D;
        shape.n_head_kv = (int16_t) N_HEAD_KV;
        shape.n_layer   = layout.n_layer;
        shape.n_rot     = (int16_t) D;
        shape.rope      = MINICACHE_ROPE_HALVES;

        const std::vector<minicache_code_layout> all(N_HEAD_KV, layout);
        heads = minicache_set_heads(shape, { all, all });
    }
    const ggml_minicache_attn_params params = { 0.1f, 0.0f, 0.0f, /*.side =*/1, 0, 0, WINDOW };

    const auto build = [&](ggml_context * ctx) {
        if (!t.q) {
            const auto new_rows = [&](int64_t code_bytes) {
                return code ? ggml_new_tensor_4d(ctx, GGML_TYPE_I8, code_bytes, 1, w.n_kv, w.batch) :
                              ggml_new_tensor_4d(ctx, type, D, N_HEAD_KV, w.n_kv, w.batch);
            };
            t.q      = ggml_new_tensor_4d(ctx, GGML_TYPE_F32, D, 1, N_HEAD_KV * w.n_gqa, w.batch);
            t.k      = new_rows(shape.bytes_k);
            t.v      = new_rows(shape.bytes_v);
            t.mask   = ggml_new_tensor_4d(ctx, GGML_TYPE_F16, w.n_kv, 1, 1, w.batch);
            t.scales = code ? ggml_new_tensor_1d(ctx, GGML_TYPE_I8, minicache_codec_offsets_of(shape).size) :
                              ggml_new_tensor_4d(ctx, GGML_TYPE_F16, N_HEAD_KV, 4, w.n_kv, w.batch);
            t.pool_k = ggml_new_tensor_4d(ctx, GGML_TYPE_Q8_0, D, N_HEAD_KV, WINDOW, w.batch);
            t.pool_v = ggml_new_tensor_4d(ctx, GGML_TYPE_Q8_0, D, N_HEAD_KV, WINDOW, w.batch);
            t.kv_cur = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 2 * D * N_HEAD_KV, w.batch);
            t.index  = ggml_new_tensor_3d(ctx, GGML_TYPE_I32, w.n_kv, w.batch, code ? 2 : 1);
        }
        return code ? ggml_minicache_attn_code(
                          ctx, t.q, t.k, t.v, t.scales, t.pool_k, t.pool_v, t.kv_cur, t.mask, t.index, nullptr, params, shape) :
                      ggml_minicache_attn(
                          ctx, t.q, t.k, t.v, t.scales, t.pool_k, t.pool_v, t.kv_cur, t.mask, t.index, nullptr, params);
    };
    const auto fill = [&] {
        set_cells(t, w);
        if (code) {
            ggml_backend_tensor_set(t.scales, heads.data(), 0, heads.size() * sizeof(heads[0]));
        }
    };
    const timing took = b.measure(build, fill);
    report("minicache", name, w, took, t.bytes());
}

static bool parse(const char * text, std::vector<int64_t> & out) {
    out.clear();
    for (const char * at = text; *at;) {
        char *          end   = nullptr;
        const long long value = strtoll(at, &end, 10);
        if (end == at || value < 1 || value > 1 << 24 || (*end && *end != ',')) {
            return false;
        }
        out.push_back(value);
        at = *end ? end + 1 : end;
    }
    return !out.empty();
}

int main(int argc, char ** argv) {
    std::vector<int64_t> n_kvs;
    std::vector<int64_t> batches;
    std::vector<int64_t> gqas;
    if (argc != 5 || !parse(argv[2], n_kvs) || !parse(argv[3], batches) || !parse(argv[4], gqas)) {
        fprintf(stderr, "usage: %s DEVICE N_KV BATCH GQA\n\n", argv[0]);
        fprintf(stderr, "  DEVICE  CPU, CUDA0 and so on\n");
        fprintf(stderr, "  N_KV    lengths of the sequences, such as 4096,32768\n");
        fprintf(stderr, "  BATCH   numbers of sequences\n");
        fprintf(stderr, "  GQA     query heads to each KV head\n");
        return 2;
    }
    ggml_time_init();
    ggml_backend_load_all();
    const bench b(argv[1]);
    if (!b.ok()) {
        fprintf(stderr, "there is no device %s\n", argv[1]);
        return 2;
    }
    printf("{\"device\": \"%s\"}\n", b.description());
    fflush(stdout);
    bench_copy(b);
    for (const int64_t n_kv : n_kvs) {
        for (const int64_t batch : batches) {
            for (const int64_t n_gqa : gqas) {
                const work w = { n_kv, batch, n_gqa };
                for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }) {
                    bench_plain(b, type, w);
                    bench_minicache(b, ggml_type_name(type), type, nullptr, w);
                }
                for (const code_case & code : CODES) {
                    bench_minicache(b, code.name, GGML_TYPE_COUNT, &code, w);
                }
            }
        }
    }
    return 0;
}
