#pragma once

#include "ggml-backend.h"
#include "ggml-minicache.h"
#include "perf.h"
#include "test-case.h"

#include <algorithm>
#include <cmath>
#include <numeric>

// what the cells hold
enum content {
    MIXED,        // merged, retained, current and empty cells
    ALL_CURRENT,  // the first ubatch of a sequence
    ALL_EMPTY,
    ALL_MASKED,
    NO_CURRENT,
};

struct attn_shape {
    ggml_type type_pool = GGML_TYPE_F16;
    int       d_k       = 64;
    int       d_v       = 64;
    int       n_head_kv = 2;
    int       n_gqa     = 2;
    int       n_kv      = 97;
    int       n_tps     = 2;
    int       n_stream  = 1;
    int       block     = 20;
    int       side      = 1;
    bool      mask      = true;
    bool      sinks     = false;
    float     max_bias  = 0.0f;
    float     softcap   = 0.0f;
    content   cells     = MIXED;
    int       threads   = 1;
};

// A case of perf mode: every cell is seen, and none is current.
inline void set_perf_shape(attn_shape & p, const perf_shape & shape) {
    p.d_k = p.d_v = shape.head_size;
    p.n_head_kv   = shape.n_head_kv;
    p.n_gqa       = shape.n_gqa;
    p.n_kv        = shape.n_kv;
    p.n_tps       = shape.n_tps;
    p.n_stream    = shape.n_stream;
    p.block       = 0;
    p.cells       = NO_CURRENT;
}

// Compares attention with the test's own double arithmetic, for any format of the shared entries.
class test_attn : public test_case {
  public:
    explicit test_attn(const attn_shape & p) : p(p), n_head(p.n_head_kv * p.n_gqa) {}

    std::string vars() const override {
        var_list vars;
        add_vars(vars);
        return vars.add("type_pool", ggml_type_name(p.type_pool))
            .add("d_k", p.d_k)
            .add("d_v", p.d_v)
            .add("n_head_kv", p.n_head_kv)
            .add("n_gqa", p.n_gqa)
            .add("n_kv", p.n_kv)
            .add("n_tps", p.n_tps)
            .add("n_stream", p.n_stream)
            .add("block", p.block)
            .add("side", p.side)
            .add("mask", p.mask)
            .add("sinks", p.sinks)
            .add("max_bias", p.max_bias)
            .add("softcap", p.softcap)
            .add("cells", (int) p.cells)
            .add("threads", p.threads)
            .str();
    }

    int n_threads() const override { return p.threads; }

    // queries, entries and weights are f16; upstream allows its flash attention 5e-4
    double max_nmse_on_gpu() const override { return 1e-5; }

    size_t bytes() const override {
        // either the retained or the merged entry of a cell is read
        return bytes_with(cache_bytes());
    }

    std::string perf_name() const override {
        return var_list()
            .add("type", perf_type())
            .add("n_kv", p.n_kv)
            .add("d", p.d_k)
            .add("n_head_kv", p.n_head_kv)
            .add("n_gqa", p.n_gqa)
            .add("n_stream", p.n_stream)
            .add("n_tps", p.n_tps)
            .str();
    }

    void build(ggml_context * ctx, ggml_cgraph * gf, bool perf) override {
        timed = perf;
        // as in llama.cpp's graphs: queries are permuted, and the cache is longer than the part that the graph sees
        build_cache(ctx);
        q     = ggml_new_tensor_4d(ctx, GGML_TYPE_F32, p.d_k, n_head, p.n_tps, p.n_stream);
        mask  = p.mask ? ggml_new_tensor_4d(ctx, GGML_TYPE_F16, p.n_kv, p.n_tps, 1, p.n_stream) : nullptr;
        sinks = p.sinks ? ggml_new_tensor_1d(ctx, GGML_TYPE_F32, n_head) : nullptr;
        index = new_index(ctx);
        kv_cur =
            has_current() ? ggml_new_tensor_2d(ctx, GGML_TYPE_F32, (int64_t) (p.d_k + p.d_v) * p.n_head_kv, n_tokens()) : nullptr;
        if (p.block > 0) {
            pool_k = ggml_new_tensor_4d(ctx, p.type_pool, p.d_k, p.n_head_kv, n_slot(), p.n_stream);
            pool_v = ggml_new_tensor_4d(ctx, p.type_pool, p.d_v, p.n_head_kv, n_slot(), p.n_stream);
        }
        out = attend(ctx, 0);
        ggml_build_forward_expand(gf, out);
        if (!perf && !on_gpu) {
            out_ref = attend(ctx, 1);
            ggml_build_forward_expand(gf, out_ref);
        }
    }

    void initialize(rng_t & rng) override {
        if (timed) {
            initialize_timed(rng);
            return;
        }
        q_data = set_rows(q, random_floats(rng, ggml_nelements(q)));
        if (p.block > 0) {
            pool_k_data = set_rows(pool_k, random_floats(rng, ggml_nelements(pool_k)));
            pool_v_data = set_rows(pool_v, random_floats(rng, ggml_nelements(pool_v)));
        }
        if (kv_cur) {
            cur_data = set_rows(kv_cur, random_floats(rng, ggml_nelements(kv_cur)));
        }
        if (sinks) {
            sink_data = set_rows(sinks, random_floats(rng, n_head, 3.0f));
        }
        initialize_cells(rng);
        initialize_cache(rng);
        if (mask) {
            initialize_mask(rng);
        }
        ggml_backend_tensor_set(index, cells.data(), 0, cells.size() * sizeof(int32_t));
    }

    // sums are in float32 and in another order, and exp is exact to about 1e-7
    double max_nmse() const override { return 1e-10; }

    double error() const override {
        const std::vector<float> x        = get_rows(out);
        const std::vector<float> expected = expect();
        const double             error    = nmse(x.data(), expected.data(), x.size());
        if (!out_ref) {
            return error;
        }
        const std::vector<float> x_ref = get_rows(out_ref);
        return std::max(error, nmse(x_ref.data(), expected.data(), x.size()));
    }

  protected:
    const attn_shape p;
    const int        n_head;

    ggml_tensor * q       = nullptr;
    ggml_tensor * pool_k  = nullptr;
    ggml_tensor * pool_v  = nullptr;
    ggml_tensor * kv_cur  = nullptr;
    ggml_tensor * mask    = nullptr;
    ggml_tensor * index   = nullptr;
    ggml_tensor * sinks   = nullptr;
    ggml_tensor * out     = nullptr;
    ggml_tensor * out_ref = nullptr;

    std::vector<int32_t> cells;  // [n_stream][n_kv]

    virtual void add_vars(var_list & vars) const = 0;

    virtual std::string perf_type() const = 0;

    // Fills rows with arbitrary content.
    virtual void fill_cache(rng_t & rng) = 0;

    virtual void build_cache(ggml_context * ctx) = 0;

    virtual ggml_tensor * new_index(ggml_context * ctx) const = 0;

    virtual ggml_tensor * attend(ggml_context * ctx, int reference) = 0;

    // What the cache holds for a retained or current token must not matter.
    virtual void initialize_cache(rng_t & rng) = 0;

    virtual size_t cache_bytes() const = 0;

    // K or V of a merged or coded entry, times its magnitude
    virtual std::vector<double> shared_entry(int stream, int cell, int head_kv, bool is_v) const = 0;

    int n_cells() const { return p.n_kv + 5; }

    // the bytes that attention over the cells has to read
    size_t bytes_with(size_t cache) const { return ggml_nbytes(q) + ggml_nbytes(out) + cache * p.n_kv / n_cells(); }

    // upstream's attention with the case's queries and mask, over rows [d, n_head_kv, n_cells, n_stream]
    ggml_tensor * attend_upstream(ggml_context * ctx, ggml_tensor * cache_k, ggml_tensor * cache_v) const {
        const auto permuted = [&](ggml_tensor * x) { return ggml_permute(ctx, x, 0, 2, 1, 3); };

        ggml_tensor * result = ggml_flash_attn_ext(
            ctx, permuted(q), permuted(seen(ctx, cache_k)), permuted(seen(ctx, cache_v)), mask, scale(), p.max_bias, p.softcap);
        ggml_prec_set_acc(result, GGML_PREC_F32);
        return result;
    }

    int32_t state(int stream, int cell) const { return cells[stream * p.n_kv + cell]; }

    float scale() const { return 1.5f / sqrtf((float) p.d_k); }

    ggml_minicache_attn_params params(int reference) const {
        return { scale(), p.max_bias, p.softcap, (int16_t) p.side, (int16_t) reference, p.block, 0 };
    }

    // the cells that the graph sees
    ggml_tensor * seen(ggml_context * ctx, ggml_tensor * x) const {
        return ggml_view_4d(ctx, x, x->ne[0], x->ne[1], p.n_kv, x->ne[3], x->nb[1], x->nb[2], x->nb[3], 0);
    }

  private:
    bool timed = false;

    // what the tensors hold, after rounding
    std::vector<float> q_data;
    std::vector<float> pool_k_data;
    std::vector<float> pool_v_data;
    std::vector<float> cur_data;
    std::vector<float> mask_data;
    std::vector<float> sink_data;

    mutable std::vector<std::vector<double>> entries;  // those that were asked for

    int n_tokens() const { return p.n_tps * p.n_stream; }

    int n_slot() const { return (int) ggml_minicache_n_slot(n_cells(), p.block); }

    bool has_current() const { return p.cells == MIXED || p.cells == ALL_CURRENT; }

    void initialize_timed(rng_t & rng) {
        for (ggml_tensor * x : { q, pool_k, pool_v, kv_cur }) {
            if (x) {
                fill_rows(rng, x);
            }
        }
        initialize_cells(rng);
        fill_cache(rng);
        if (mask) {
            const std::vector<ggml_fp16_t> all_seen(ggml_nelements(mask), 0);
            ggml_backend_tensor_set(mask, all_seen.data(), 0, ggml_nbytes(mask));
        }
        ggml_backend_tensor_set(index, cells.data(), 0, cells.size() * sizeof(int32_t));
    }

    void initialize_cells(rng_t & rng) {
        for (int s = 0; s < p.n_stream; ++s) {
            std::vector<int32_t> state(p.n_kv, p.cells == ALL_EMPTY ? GGML_MINICACHE_CELL_EMPTY : GGML_MINICACHE_CELL_MERGED);
            if (p.cells == MIXED && p.mask) {
                for (int32_t & cell : state) {
                    cell = chance(rng, 0.2) ? GGML_MINICACHE_CELL_EMPTY : GGML_MINICACHE_CELL_MERGED;
                }
            }
            for (int i = 0; i < p.n_kv && p.block > 0 && p.cells != ALL_EMPTY; i += p.block) {
                const int cell = i + random_int(rng, 0, std::min(p.block, p.n_kv - i) - 1);
                if (state[cell] == GGML_MINICACHE_CELL_MERGED && chance(rng, 0.8)) {
                    state[cell] = GGML_MINICACHE_CELL_RETAINED;
                }
            }
            if (has_current()) {
                std::vector<int> order(p.n_kv);
                std::iota(order.begin(), order.end(), 0);
                std::shuffle(order.begin(), order.end(), rng);
                for (int i = 0; i < (p.cells == ALL_CURRENT ? p.n_kv : p.n_tps); ++i) {
                    state[order[i]] = i % p.n_tps;
                }
            }
            cells.insert(cells.end(), state.begin(), state.end());
        }
    }

    void initialize_mask(rng_t & rng) {
        mask_data.resize(ggml_nelements(mask));
        for (size_t i = 0; i < mask_data.size(); ++i) {
            const int  cell   = (int) (i % p.n_kv);
            const int  token  = (int) (i / p.n_kv);
            const bool unseen = p.cells == ALL_MASKED || cells[token / p.n_tps * p.n_kv + cell] == GGML_MINICACHE_CELL_EMPTY ||
                                chance(rng, 0.3) || (p.n_tps > 2 && token % p.n_tps == 1);
            mask_data[i]      = unseen ? -INFINITY : p.max_bias > 0.0f ? (float) -random_int(rng, 0, 50) : 0.0f;
        }
        std::vector<ggml_fp16_t> data(mask_data.size());
        ggml_fp32_to_fp16_row(mask_data.data(), data.data(), (int64_t) data.size());
        ggml_backend_tensor_set(mask, data.data(), 0, ggml_nbytes(mask));
    }

    const std::vector<double> & entry(int stream, int cell, int head_kv, bool is_v) const {
        entries.resize((size_t) p.n_stream * p.n_kv * p.n_head_kv * 2);

        std::vector<double> & x = entries[(((size_t) stream * p.n_kv + cell) * p.n_head_kv + head_kv) * 2 + is_v];
        if (x.empty()) {
            x = new_entry(stream, cell, head_kv, is_v);
        }
        return x;
    }

    // the K or V of an entry, times its magnitude
    std::vector<double> new_entry(int stream, int cell, int head_kv, bool is_v) const {
        const int     d     = is_v ? p.d_v : p.d_k;
        const int32_t holds = state(stream, cell);
        const float * row   = nullptr;

        if (holds == GGML_MINICACHE_CELL_MERGED) {
            return shared_entry(stream, cell, head_kv, is_v);
        }
        if (holds == GGML_MINICACHE_CELL_RETAINED) {
            row =
                &(is_v ? pool_v_data : pool_k_data)[((size_t) (stream * n_slot() + cell / p.block) * p.n_head_kv + head_kv) * d];
        } else {
            row = &cur_data[(size_t) (stream * p.n_tps + holds) * (p.d_k + p.d_v) * p.n_head_kv +
                            (is_v ? p.d_k * p.n_head_kv : 0) + (size_t) head_kv * d];
        }
        return std::vector<double>(row, row + d);
    }

    double slope(int head) const {
        if (p.max_bias == 0.0f) {
            return 1.0;
        }
        const int base = 1 << (int) floor(log2(n_head));
        return head < base ? pow(2.0, -(double) p.max_bias * (head + 1) / base) :
                             pow(2.0, -(double) p.max_bias / 2 * (2 * (head - base) + 1) / base);
    }

    std::vector<float> expect() const {
        std::vector<float> result;
        result.reserve((size_t) n_tokens() * n_head * p.d_v);

        for (int token = 0; token < n_tokens(); ++token) {
            for (int head = 0; head < n_head; ++head) {
                const std::vector<double> x = expect_one(token, head);
                result.insert(result.end(), x.begin(), x.end());
            }
        }
        return result;
    }

    std::vector<double> expect_one(int token, int head) const {
        const int     stream = token / p.n_tps;
        const float * query  = &q_data[((size_t) token * n_head + head) * p.d_k];

        std::vector<double> scores(p.n_kv, -INFINITY);
        double              top = sinks ? sink_data[head] : -INFINITY;
        for (int cell = 0; cell < p.n_kv; ++cell) {
            const double bias = mask ? mask_data[(size_t) token * p.n_kv + cell] : 0.0;
            if (cells[stream * p.n_kv + cell] == GGML_MINICACHE_CELL_EMPTY || bias == -INFINITY) {
                continue;
            }
            const std::vector<double> & k = entry(stream, cell, head / p.n_gqa, false);

            double score = scale() * std::inner_product(k.begin(), k.end(), query, 0.0);
            if (p.softcap > 0.0f) {
                score = p.softcap * tanh(score / p.softcap);
            }
            scores[cell] = score + slope(head) * bias;
            top          = std::max(top, scores[cell]);
        }
        std::vector<double> sum(p.d_v, 0.0);
        double              total = sinks ? exp(sink_data[head] - top) : 0.0;
        for (int cell = 0; cell < p.n_kv; ++cell) {
            if (scores[cell] == -INFINITY) {
                continue;
            }
            const std::vector<double> & v      = entry(stream, cell, head / p.n_gqa, true);
            const double                weight = exp(scores[cell] - top);
            total += weight;
            for (int i = 0; i < p.d_v; ++i) {
                sum[i] += weight * v[i];
            }
        }
        for (double & value : sum) {
            value = total > 0.0 ? value / total : 0.0;
        }
        return sum;
    }
};
