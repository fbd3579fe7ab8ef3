#include "test-attn.h"

#include <map>

struct merged_shape : attn_shape {
    ggml_type type_k    = GGML_TYPE_F16;
    ggml_type type_v    = GGML_TYPE_F16;
    bool      mags      = true;
    bool      has_index = true;  // false: a plain layer of a context
};

class test_attn_merged : public test_attn {
  public:
    explicit test_attn_merged(const merged_shape & p) : test_attn(p), m(p) {}

    const char * op() const override { return "ATTN"; }

    void build(ggml_context * ctx, ggml_cgraph * gf, bool perf) override {
        test_attn::build(ctx, gf, perf);
        if (!perf && !on_gpu && is_plain()) {
            upstream = attend_upstream(ctx, cache_k, cache_v);
            ggml_build_forward_expand(gf, upstream);
        }
    }

    double error() const override {
        // upstream rounds queries, K and V on the way: this is the bound of its own tests
        return upstream && !(nmse(get_rows(upstream).data(), get_rows(out).data(), ggml_nelements(out)) <= 5e-4) ?
                   INFINITY :
                   test_attn::error();
    }

  protected:
    void add_vars(var_list & vars) const override {
        vars.add("type_k", ggml_type_name(m.type_k))
            .add("type_v", ggml_type_name(m.type_v))
            .add("mags", m.mags)
            .add("index", m.has_index);
    }

    void build_cache(ggml_context * ctx) override {
        cache_k = ggml_new_tensor_4d(ctx, m.type_k, p.d_k, p.n_head_kv, n_cells(), p.n_stream);
        cache_v = ggml_new_tensor_4d(ctx, m.type_v, p.d_v, p.n_head_kv, n_cells(), p.n_stream);
        mag     = m.mags ? ggml_new_tensor_4d(ctx, GGML_TYPE_F16, p.n_head_kv, 4, n_cells(), p.n_stream) : nullptr;
    }

    ggml_tensor * new_index(ggml_context * ctx) const override {
        return ggml_new_tensor_2d(ctx, GGML_TYPE_I32, p.n_kv, p.n_stream);
    }

    ggml_tensor * attend(ggml_context * ctx, int reference) override {
        return ggml_minicache_attn(ctx, ggml_permute(ctx, q, 0, 2, 1, 3), seen(ctx, cache_k), seen(ctx, cache_v),
            mag ? seen(ctx, mag) : nullptr, pool_k, pool_v, kv_cur, mask, m.has_index ? index : nullptr, sinks,
            params(reference));
    }

    void initialize_cache(rng_t & rng) override {
        k_data = set_rows(cache_k, random_floats(rng, ggml_nelements(cache_k), 1.0f / sqrtf((float) p.d_k)));
        v_data = set_rows(cache_v, random_floats(rng, ggml_nelements(cache_v), 1.0f / sqrtf((float) p.d_v)));
        make_stale(cache_k, k_data);
        make_stale(cache_v, v_data);
        if (mag) {
            std::vector<float> x = random_floats(rng, ggml_nelements(mag), 3.0f);
            std::transform(x.begin(), x.end(), x.begin(), [](float m) { return fabsf(m); });
            mag_data = set_rows(mag, x);
        }
    }

    std::string perf_type() const override { return m.mags ? "slerp" : ggml_type_name(m.type_k); }

    void fill_cache(rng_t & rng) override {
        fill_rows(rng, cache_k, 1.0f / sqrtf((float) p.d_k));
        fill_rows(rng, cache_v, 1.0f / sqrtf((float) p.d_v));
        if (mag) {
            const std::vector<ggml_fp16_t> ones(ggml_nelements(mag), ggml_fp32_to_fp16(1.0f));
            ggml_backend_tensor_set(mag, ones.data(), 0, ggml_nbytes(mag));
        }
    }

    std::vector<rival> rivals(ggml_context * ctx) override {
        return { { "upstream", attend_upstream(ctx, cache_k, cache_v),
            bytes_with(ggml_nbytes(cache_k) + ggml_nbytes(cache_v)) } };
    }

    size_t cache_bytes() const override { return ggml_nbytes(cache_k) + ggml_nbytes(cache_v) + (mag ? ggml_nbytes(mag) : 0); }

    std::vector<double> shared_entry(int stream, int cell, int head_kv, bool is_v) const override {
        const int     d   = is_v ? p.d_v : p.d_k;
        const size_t  row = (size_t) stream * n_cells() + cell;
        const float * x   = (is_v ? v_data : k_data).data() + (row * p.n_head_kv + head_kv) * d;
        const double  m   = mag ? mag_data[(row * 4 + (is_v ? 2 : 0) + p.side) * p.n_head_kv + head_kv] : 1.0;

        std::vector<double> e(x, x + d);
        for (double & value : e) {
            value *= m;
        }
        return e;
    }

  private:
    const merged_shape m;

    ggml_tensor * upstream = nullptr;

    // Whether upstream's op computes the same.
    bool is_plain() const { return !m.mags && p.block == 0 && !p.sinks && (p.cells == NO_CURRENT || p.cells == ALL_MASKED); }

    ggml_tensor * cache_k = nullptr;
    ggml_tensor * cache_v = nullptr;
    ggml_tensor * mag     = nullptr;

    // what the tensors hold, after rounding
    std::vector<float> k_data;
    std::vector<float> v_data;
    std::vector<float> mag_data;

    void make_stale(ggml_tensor * cache, std::vector<float> & x) {
        const size_t row = cache->ne[0] * cache->ne[1];
        for (int s = 0; s < p.n_stream; ++s) {
            for (int cell = 0; cell < p.n_kv; ++cell) {
                if (state(s, cell) != GGML_MINICACHE_CELL_MERGED) {
                    float * stale = x.data() + (s * n_cells() + cell) * row;
                    std::transform(stale, stale + row, stale, [](float value) { return 100.0f * value; });
                }
            }
        }
        x = set_rows(cache, x);
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

std::unique_ptr<test_case> new_attn_perf(const perf_shape & shape) {
    static const std::map<std::string, ggml_type> types = { { "f16", GGML_TYPE_F16 }, { "q8_0", GGML_TYPE_Q8_0 },
        { "q4_0", GGML_TYPE_Q4_0 }, { "slerp", GGML_TYPE_Q4_0 } };

    const auto type = types.find(shape.type);
    if (type == types.end()) {
        return nullptr;
    }
    merged_shape p;
    set_perf_shape(p, shape);
    p.type_k = p.type_v = type->second;
    p.mags              = shape.type == "slerp";
    p.block             = p.mags ? 20 : 0;
    p.type_pool         = GGML_TYPE_Q8_0;
    return std::make_unique<test_attn_merged>(p);
}

void add_attn_cases(test_cases & cases) {
    const auto add = [&](const merged_shape & p) {
        if (p.n_tps <= p.n_kv) {
            cases.push_back(std::make_unique<test_attn_merged>(p));
        }
    };

    for (const ggml_type type_k : TYPES) {
        for (const ggml_type type_v : TYPES) {
            merged_shape p;
            p.type_k    = type_k;
            p.type_v    = type_v;
            p.type_pool = type_k == type_v ? type_k : type_v == GGML_TYPE_F16 ? GGML_TYPE_Q8_0 : GGML_TYPE_F16;
            p.side      = type_k < type_v;
            add(p);
        }
    }
    for (const int d_k : { 32, 64, 80, 96, 128, 256, 512 }) {
        for (const int n_gqa : { 1, 2, 4, 7, 8 }) {
            merged_shape p;
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
                merged_shape p;
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
        merged_shape p;
        p.mask     = flags & 1;
        p.sinks    = flags & 2;
        p.softcap  = flags & 4 ? 5.0f : 0.0f;
        p.max_bias = flags & 8 ? 8.0f : 0.0f;
        p.block    = flags & 16 ? 7 : 0;
        p.mags     = flags & 32;
        p.n_gqa    = flags & 1 ? 3 : 4;  // head counts that are powers of two, and others
        p.side     = flags % 3 == 0;
        add(p);
    }
    for (const int block : { 1, 2, 3, 64, 1000 }) {
        for (const int threads : { 1, 2, 3, 4 }) {
            merged_shape p;
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
                merged_shape p;
                p.cells   = cells;
                p.threads = threads;
                p.sinks   = sinks;
                p.n_kv    = cells == ALL_CURRENT ? 33 : 600;
                p.n_tps   = cells == ALL_CURRENT ? 33 : 1;
                add(p);
            }
        }
    }
    for (const ggml_type type : TYPES) {
        for (const int n_tps : { 1, 7, 40 }) {
            for (const int n_gqa : { 1, 4 }) {
                merged_shape p;
                p.type_k = p.type_v = type;
                p.mags              = false;
                p.has_index         = n_gqa == 1;
                p.block             = 0;
                p.cells             = NO_CURRENT;
                p.d_k = p.d_v = n_tps == 7 ? 128 : 64;
                p.n_kv        = 300;
                p.n_tps       = n_tps;
                p.n_gqa       = n_gqa;
                p.threads     = 1 + n_tps % 3;
                add(p);
            }
        }
    }
}
