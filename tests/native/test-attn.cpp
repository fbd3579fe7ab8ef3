#include "ggml-backend.h"
#include "ggml-minicache.h"
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
    ggml_type type_k    = GGML_TYPE_F16;
    ggml_type type_v    = GGML_TYPE_F16;
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
    bool      mags      = true;
    bool      mask      = true;
    bool      sinks     = false;
    float     max_bias  = 0.0f;
    float     softcap   = 0.0f;
    content   cells     = MIXED;
    int       threads   = 1;
};

class test_attn : public test_case {
  public:
    explicit test_attn(const attn_shape & p) : p(p), n_head(p.n_head_kv * p.n_gqa) {}

    const char * op() const override { return "ATTN"; }

    std::string vars() const override {
        return var_list()
            .add("type_k", ggml_type_name(p.type_k))
            .add("type_v", ggml_type_name(p.type_v))
            .add("type_pool", ggml_type_name(p.type_pool))
            .add("d_k", p.d_k)
            .add("d_v", p.d_v)
            .add("n_head_kv", p.n_head_kv)
            .add("n_gqa", p.n_gqa)
            .add("n_kv", p.n_kv)
            .add("n_tps", p.n_tps)
            .add("n_stream", p.n_stream)
            .add("block", p.block)
            .add("side", p.side)
            .add("mags", p.mags)
            .add("mask", p.mask)
            .add("sinks", p.sinks)
            .add("max_bias", p.max_bias)
            .add("softcap", p.softcap)
            .add("cells", (int) p.cells)
            .add("threads", p.threads)
            .str();
    }

    // the sums are taken in another order and in float32, and exp is approximate to 1e-7 or so
    double max_nmse() const override { return 1e-10; }

    int n_threads() const override { return p.threads; }

    size_t bytes() const override {
        return ggml_nbytes(q) + ggml_nbytes(out) +
               (ggml_nbytes(cache_k) + ggml_nbytes(cache_v) + (mag ? ggml_nbytes(mag) : 0)) * p.n_kv / n_cells();
    }

    void build(ggml_context * ctx, ggml_cgraph * gf, bool perf) override {
        // as llama.cpp has them: queries permuted, the cache longer than what the graph sees
        q       = ggml_new_tensor_4d(ctx, GGML_TYPE_F32, p.d_k, n_head, p.n_tps, p.n_stream);
        cache_k = ggml_new_tensor_4d(ctx, p.type_k, p.d_k, p.n_head_kv, n_cells(), p.n_stream);
        cache_v = ggml_new_tensor_4d(ctx, p.type_v, p.d_v, p.n_head_kv, n_cells(), p.n_stream);
        mag     = p.mags ? ggml_new_tensor_4d(ctx, GGML_TYPE_F16, p.n_head_kv, 4, n_cells(), p.n_stream) : nullptr;
        mask    = p.mask ? ggml_new_tensor_4d(ctx, GGML_TYPE_F16, p.n_kv, p.n_tps, 1, p.n_stream) : nullptr;
        sinks   = p.sinks ? ggml_new_tensor_1d(ctx, GGML_TYPE_F32, n_head) : nullptr;
        index   = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, p.n_kv, p.n_stream);
        kv_cur =
            has_current() ? ggml_new_tensor_2d(ctx, GGML_TYPE_F32, (int64_t) (p.d_k + p.d_v) * p.n_head_kv, n_tokens()) : nullptr;
        if (p.block > 0) {
            pool_k = ggml_new_tensor_4d(ctx, p.type_pool, p.d_k, p.n_head_kv, n_slot(), p.n_stream);
            pool_v = ggml_new_tensor_4d(ctx, p.type_pool, p.d_v, p.n_head_kv, n_slot(), p.n_stream);
        }
        out = attend(ctx, gf, 0);
        if (!perf) {
            out_ref = attend(ctx, gf, 1);
        }
    }

    void initialize(rng_t & rng) override {
        q_data = set_rows(q, random_floats(rng, ggml_nelements(q)));
        k_data = set_rows(cache_k, random_floats(rng, ggml_nelements(cache_k), 1.0f / sqrtf((float) p.d_k)));
        v_data = set_rows(cache_v, random_floats(rng, ggml_nelements(cache_v), 1.0f / sqrtf((float) p.d_v)));
        if (mag) {
            std::vector<float> x = random_floats(rng, ggml_nelements(mag), 3.0f);
            std::transform(x.begin(), x.end(), x.begin(), [](float m) { return fabsf(m); });
            mag_data = set_rows(mag, x);
        }
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
        if (mask) {
            initialize_mask(rng);
        }
        ggml_backend_tensor_set(index, cells.data(), 0, ggml_nbytes(index));
    }

    double error() const override {
        const std::vector<float> x        = get_rows(out);
        const std::vector<float> x_ref    = get_rows(out_ref);
        const std::vector<float> expected = expect();

        return std::max(nmse(x.data(), expected.data(), x.size()), nmse(x_ref.data(), expected.data(), x.size()));
    }

  private:
    const attn_shape p;
    const int        n_head;

    ggml_tensor * q       = nullptr;
    ggml_tensor * cache_k = nullptr;
    ggml_tensor * cache_v = nullptr;
    ggml_tensor * mag     = nullptr;
    ggml_tensor * pool_k  = nullptr;
    ggml_tensor * pool_v  = nullptr;
    ggml_tensor * kv_cur  = nullptr;
    ggml_tensor * mask    = nullptr;
    ggml_tensor * index   = nullptr;
    ggml_tensor * sinks   = nullptr;
    ggml_tensor * out     = nullptr;
    ggml_tensor * out_ref = nullptr;

    // what the tensors hold, rounding included
    std::vector<float>   q_data;
    std::vector<float>   k_data;
    std::vector<float>   v_data;
    std::vector<float>   mag_data;
    std::vector<float>   pool_k_data;
    std::vector<float>   pool_v_data;
    std::vector<float>   cur_data;
    std::vector<float>   mask_data;
    std::vector<float>   sink_data;
    std::vector<int32_t> cells;

    int n_cells() const { return p.n_kv + 5; }

    int n_tokens() const { return p.n_tps * p.n_stream; }

    int n_slot() const { return (int) ggml_minicache_n_slot(n_cells(), p.block); }

    bool has_current() const { return p.cells == MIXED || p.cells == ALL_CURRENT; }

    ggml_tensor * attend(ggml_context * ctx, ggml_cgraph * gf, int reference) {
        const auto seen = [&](ggml_tensor * x) {
            return ggml_view_4d(ctx, x, x->ne[0], x->ne[1], p.n_kv, x->ne[3], x->nb[1], x->nb[2], x->nb[3], 0);
        };
        ggml_tensor * result =
            ggml_minicache_attn(ctx, ggml_permute(ctx, q, 0, 2, 1, 3), seen(cache_k), seen(cache_v), mag ? seen(mag) : nullptr,
                pool_k, pool_v, kv_cur, mask, index, sinks, { scale(), p.max_bias, p.softcap, p.side, p.block, reference });
        ggml_build_forward_expand(gf, result);
        return result;
    }

    float scale() const { return 1.5f / sqrtf((float) p.d_k); }

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
        make_stale(cache_k, k_data);
        make_stale(cache_v, v_data);
    }

    // What the cache holds where a token is retained or current must not matter.
    void make_stale(ggml_tensor * cache, std::vector<float> & x) {
        const size_t row = cache->ne[0] * cache->ne[1];
        for (int s = 0; s < p.n_stream; ++s) {
            for (int cell = 0; cell < p.n_kv; ++cell) {
                if (cells[s * p.n_kv + cell] != GGML_MINICACHE_CELL_MERGED) {
                    float * stale = x.data() + (s * n_cells() + cell) * row;
                    std::transform(stale, stale + row, stale, [](float value) { return 100.0f * value; });
                }
            }
        }
        x = set_rows(cache, x);
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

    // which: 0 for K, 2 for V, as magnitudes lie
    float magnitude(int stream, int cell, int which, int head_kv) const {
        return mag ? mag_data[((size_t) (stream * n_cells() + cell) * 4 + which + p.side) * p.n_head_kv + head_kv] : 1.0f;
    }

    // the K or V of an entry, magnitudes multiplied in
    std::vector<double> entry(int stream, int cell, int head_kv, bool is_v) const {
        const int     d     = is_v ? p.d_v : p.d_k;
        const int32_t state = cells[stream * p.n_kv + cell];
        const float * row   = nullptr;
        double        m     = 1.0;

        if (state == GGML_MINICACHE_CELL_RETAINED) {
            row =
                &(is_v ? pool_v_data : pool_k_data)[((size_t) (stream * n_slot() + cell / p.block) * p.n_head_kv + head_kv) * d];
        } else if (state == GGML_MINICACHE_CELL_MERGED) {
            row = &(is_v ? v_data : k_data)[((size_t) (stream * n_cells() + cell) * p.n_head_kv + head_kv) * d];
            m   = magnitude(stream, cell, is_v ? 2 : 0, head_kv);
        } else {
            row = &cur_data[(size_t) (stream * p.n_tps + state) * (p.d_k + p.d_v) * p.n_head_kv +
                            (is_v ? p.d_k * p.n_head_kv : 0) + (size_t) head_kv * d];
        }
        std::vector<double> x(row, row + d);
        for (double & value : x) {
            value *= m;
        }
        return x;
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
            const std::vector<double> k = entry(stream, cell, head / p.n_gqa, false);

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
            const std::vector<double> v      = entry(stream, cell, head / p.n_gqa, true);
            const double              weight = exp(scores[cell] - top);
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

static const ggml_type TYPES[] = {
    GGML_TYPE_F16,
    GGML_TYPE_BF16,
    GGML_TYPE_Q8_0,
    GGML_TYPE_Q5_0,
    GGML_TYPE_Q5_1,
    GGML_TYPE_Q4_0,
    GGML_TYPE_Q4_1,
    GGML_TYPE_IQ4_NL,
};

static void add_perf_cases(test_cases & cases) {
    for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }) {
        for (const int n_kv : { 512, 4096, 16384 }) {
            for (const int n_tps : { 1, 64 }) {
                attn_shape p;
                p.type_k = p.type_v = type;
                p.type_pool         = GGML_TYPE_Q8_0;
                p.d_k = p.d_v = 128;
                p.n_head_kv   = 8;
                p.n_gqa       = 4;
                p.n_kv        = n_kv;
                p.n_tps       = n_tps;
                cases.push_back(std::make_unique<test_attn>(p));
            }
        }
    }
}

void add_attn_cases(test_cases & cases, bool perf) {
    if (perf) {
        add_perf_cases(cases);
        return;
    }
    const auto add = [&](const attn_shape & p) {
        if (p.n_tps <= p.n_kv) {
            cases.push_back(std::make_unique<test_attn>(p));
        }
    };

    for (const ggml_type type_k : TYPES) {
        for (const ggml_type type_v : TYPES) {
            attn_shape p;
            p.type_k    = type_k;
            p.type_v    = type_v;
            p.type_pool = type_k == type_v ? type_k : type_v == GGML_TYPE_F16 ? GGML_TYPE_Q8_0 : GGML_TYPE_F16;
            p.side      = type_k < type_v;
            add(p);
        }
    }
    for (const int d_k : { 32, 64, 80, 96, 128, 256 }) {
        for (const int n_gqa : { 1, 2, 4, 7, 8 }) {
            attn_shape p;
            p.type_k = p.type_v = d_k % 32 != 0 ? GGML_TYPE_F16 : n_gqa % 2 == 0 ? GGML_TYPE_Q4_0 : GGML_TYPE_Q8_0;
            p.d_k               = d_k;
            p.d_v               = n_gqa == 4 ? 32 : d_k;
            p.n_gqa             = n_gqa;
            p.n_head_kv         = 1 + n_gqa % 3;
            p.n_tps             = n_gqa;
            add(p);
        }
    }
    for (const int n_kv : { 1, 2, 3, 31, 63, 64, 65, 129, 256, 257, 511, 700 }) {
        for (const int n_tps : { 1, 2, 7, 33 }) {
            for (const int n_stream : { 1, 3 }) {
                attn_shape p;
                p.type_k    = n_kv % 2 == 0 ? GGML_TYPE_F16 : GGML_TYPE_Q8_0;
                p.n_kv      = n_kv;
                p.n_tps     = n_tps;
                p.n_stream  = n_stream;
                p.threads   = 1 + n_kv % 4;
                p.type_pool = GGML_TYPE_Q8_0;
                add(p);
            }
        }
    }
    for (int flags = 0; flags < 64; ++flags) {
        attn_shape p;
        p.mask     = flags & 1;
        p.sinks    = flags & 2;
        p.softcap  = flags & 4 ? 5.0f : 0.0f;
        p.max_bias = flags & 8 ? 8.0f : 0.0f;
        p.block    = flags & 16 ? 7 : 0;
        p.mags     = flags & 32;
        p.n_gqa    = flags & 1 ? 3 : 4;  // head counts that are powers of two and that are not
        p.side     = flags % 3 == 0;
        add(p);
    }
    for (const int block : { 1, 2, 3, 64, 1000 }) {
        for (const int threads : { 1, 2, 3, 4 }) {
            attn_shape p;
            p.block   = block;
            p.threads = threads;
            p.n_kv    = 700;
            p.n_tps   = 1;
            p.n_gqa   = 1;
            add(p);
        }
    }
    for (const content cells : { ALL_CURRENT, ALL_EMPTY, ALL_MASKED, NO_CURRENT }) {
        for (const int threads : { 1, 4 }) {
            for (const bool sinks : { false, true }) {
                attn_shape p;
                p.cells   = cells;
                p.threads = threads;
                p.sinks   = sinks;
                p.n_kv    = cells == ALL_CURRENT ? 33 : 600;
                p.n_tps   = cells == ALL_CURRENT ? 33 : 1;
                add(p);
            }
        }
    }
}
