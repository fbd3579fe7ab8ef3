#include "test-attn.h"
#include "test-codec.h"

// how the cells' bases are chosen
enum cell_bases {
    ALL_ZERO,
    ADVANCING,  // by 64 for every few cells, as a sequence fills the cache
    UNEVEN,     // runs of cells, each with its own base, some of them negative
    EVERY_CELL,
    FAR,       // advancing from a million on
    IN_TURNS,  // those of three sequences that fill the cache together
    N_CELL_BASES,
};

struct coded_shape : attn_shape {
    code_units     units_k = { 1, 0, 1, 1, 1, 0, 1 };
    code_units     units_v = { 0, 1, 0, 2, 0, 1, 0 };
    int            n_rot   = 64;
    minicache_rope rope    = MINICACHE_ROPE_HALVES;
    cell_bases     base    = ADVANCING;
    int            run     = 10;  // cells that share a base
    int            n_layer = 2;
    bool           alike   = false;  // all heads have the units of the first
};

static codec_shape codec_shape_of(const coded_shape & p) {
    codec_shape s;
    s.units_k = p.units_k;
    s.units_v = p.units_v;
    s.d_k     = p.d_k;
    s.d_v     = p.d_v;
    s.n_rot   = std::min(p.n_rot, p.d_k);
    s.rope    = p.rope;
    s.n_layer = p.n_layer;
    s.alike   = p.alike;
    return s;
}

class test_attn_code : public test_attn {
  public:
    explicit test_attn_code(const coded_shape & p) : test_attn(p), c(p), codec(codec_shape_of(p), p.n_head_kv) {}

    const char * op() const override { return "ATTN_CODE"; }

    // float32 sums over the codes add to those over the entries, and angles are exact to 1e-5
    double max_nmse() const override { return 1e-10; }

  protected:
    void add_vars(var_list & vars) const override {
        vars.add("units_k", units_name(c.units_k))
            .add("units_v", units_name(c.units_v))
            .add("n_rot", c.n_rot)
            .add("rope", (int) c.rope)
            .add("base", (int) c.base)
            .add("run", c.run)
            .add("n_layer", c.n_layer);
    }

    void build_cache(ggml_context * ctx) override {
        code_k     = ggml_new_tensor_4d(ctx, GGML_TYPE_I8, codec.k.token_bytes(), 1, n_cells(), p.n_stream);
        code_v     = ggml_new_tensor_4d(ctx, GGML_TYPE_I8, codec.v.token_bytes(), 1, n_cells(), p.n_stream);
        codec_data = ggml_new_tensor_1d(ctx, GGML_TYPE_I8, minicache_codec_offsets_of(codec.shape).size);
    }

    ggml_tensor * new_index(ggml_context * ctx) const override {
        return ggml_new_tensor_3d(ctx, GGML_TYPE_I32, p.n_kv, p.n_stream, 2);
    }

    ggml_tensor * attend(ggml_context * ctx, int reference) override {
        return ggml_minicache_attn_code(ctx, ggml_permute(ctx, q, 0, 2, 1, 3), seen(ctx, code_k), seen(ctx, code_v), codec_data,
            pool_k, pool_v, kv_cur, mask, index, sinks, params(reference), codec.shape);
    }

    void initialize_cache(rng_t & rng) override {
        codec.draw(rng, GAUSSIAN);
        codec.set(codec_data);

        k_data = random_rows(rng, code_k, codec.k);
        v_data = random_rows(rng, code_v, codec.v);

        for (int i = 0; i < p.n_stream * p.n_kv; ++i) {
            const int run                  = i % p.n_kv / c.run;
            const int values[N_CELL_BASES] = { 0, 64 * run, (run * 7919 % 31 - 10) * 37, random_int(rng, -5000, 5000),
                1000000 + 64 * run, i % 3 * 6400 + run / 3 * 64 };
            base_data.push_back(values[c.base]);
        }
        ggml_backend_tensor_set(index, base_data.data(), index->nb[2], base_data.size() * sizeof(int32_t));
    }

    std::string perf_type() const override { return "code-" + units_name(c.units_k) + "-" + units_name(c.units_v); }

    void fill_cache(rng_t & rng) override {
        codec.draw(rng, GAUSSIAN);
        codec.set(codec_data);
        for (ggml_tensor * code : { code_k, code_v }) {
            std::vector<uint8_t> data(ggml_nbytes(code));
            for (size_t i = 0; i < data.size(); ++i) {
                data[i] = (uint8_t) (rng() & 127);  // magnitudes up to about 3
            }
            ggml_backend_tensor_set(code, data.data(), 0, data.size());
        }
        for (int i = 0; i < p.n_stream * p.n_kv; ++i) {
            base_data.push_back(i % p.n_kv / c.run * c.run);
        }
        ggml_backend_tensor_set(index, base_data.data(), index->nb[2], base_data.size() * sizeof(int32_t));
        fill_rows(rng, rows_k);
        fill_rows(rng, rows_v);
    }

    // the same layer stored as q4_0
    std::vector<rival> rivals(ggml_context * ctx) override {
        rows_k = ggml_new_tensor_4d(ctx, GGML_TYPE_Q4_0, p.d_k, p.n_head_kv, n_cells(), p.n_stream);
        rows_v = ggml_new_tensor_4d(ctx, GGML_TYPE_Q4_0, p.d_v, p.n_head_kv, n_cells(), p.n_stream);

        const size_t  bytes = bytes_with(ggml_nbytes(rows_k) + ggml_nbytes(rows_v));
        ggml_tensor * ours  = ggml_minicache_attn(ctx, ggml_permute(ctx, q, 0, 2, 1, 3), seen(ctx, rows_k), seen(ctx, rows_v),
            nullptr, nullptr, nullptr, nullptr, mask, index, nullptr, params(0));
        return { { "ours q4_0", ours, bytes }, { "upstream q4_0", attend_upstream(ctx, rows_k, rows_v), bytes } };
    }

    size_t cache_bytes() const override { return ggml_nbytes(code_k) + ggml_nbytes(code_v); }

    std::vector<double> shared_entry(int stream, int cell, int head_kv, bool is_v) const override {
        const codec_part & part = is_v ? codec.v : codec.k;
        const uint8_t *    row  = row_of(part, is_v ? v_data : k_data, stream, cell, head_kv);

        std::vector<double> e = part.decode(head_kv, p.side, row);
        if (!is_v) {
            codec.turn(base_data[stream * p.n_kv + cell], e);
        }
        for (double & value : e) {
            value *= part.magnitude(head_kv, p.side, row);
        }
        return e;
    }

  private:
    const coded_shape c;
    test_codec        codec;

    ggml_tensor * code_k     = nullptr;
    ggml_tensor * code_v     = nullptr;
    ggml_tensor * codec_data = nullptr;
    ggml_tensor * rows_k     = nullptr;  // the rivals'
    ggml_tensor * rows_v     = nullptr;

    std::vector<uint8_t> k_data;
    std::vector<uint8_t> v_data;
    std::vector<int32_t> base_data;

    const uint8_t * row_of(const codec_part & part, const std::vector<uint8_t> & data, int stream, int cell, int head_kv) const {
        return data.data() + ((size_t) stream * n_cells() + cell) * part.token_bytes() + part.row_begin(head_kv);
    }

    // Any bytes are a valid code row. Magnitudes are up to about 4 if they matter, and anything if they must not matter.
    std::vector<uint8_t> random_rows(rng_t & rng, ggml_tensor * code, const codec_part & part) const {
        const size_t      n_token = part.token_bytes();
        std::vector<bool> is_mag(n_token);
        for (int h = 0; h < p.n_head_kv; ++h) {
            std::fill_n(is_mag.begin() + part.row_begin(h), part.n_layer, true);
        }
        std::vector<uint8_t> data(ggml_nbytes(code));
        for (size_t i = 0; i < data.size(); ++i) {
            const int  row  = (int) (i / n_token);
            const int  cell = row % n_cells();
            const bool used = cell < p.n_kv && state(row / n_cells(), cell) == GGML_MINICACHE_CELL_MERGED;
            data[i]         = (uint8_t) random_int(rng, 0, is_mag[i % n_token] && used ? 150 : 255);
        }
        ggml_backend_tensor_set(code, data.data(), 0, data.size());
        return data;
    }
};

// Units of 16 coefficients, from the widest to the narrowest, for heads of 64 and of 128: 3, 2 and 1 bits for each number of both
// layers.
struct perf_units {
    code_units of_64;
    code_units of_128;
};

static const perf_units BITS_3 = { { 1, 0, 1, 1, 1, 1, 2 }, { 1, 2, 2, 2, 1, 1, 5 } };
static const perf_units BITS_2 = { { 0, 0, 1, 1, 1, 1, 2 }, { 0, 1, 2, 2, 2, 1, 0 } };
static const perf_units BITS_1 = { { 0, 0, 0, 1, 1, 0, 1 }, { 0, 0, 1, 1, 1, 1, 2 } };

std::unique_ptr<test_case> new_attn_code_perf(const perf_shape & shape) {
    const auto units = [&](const perf_units & bits) {
        const int  size  = shape.head_size % 128 == 0 ? 128 : 64;
        code_units units = size == 128 ? bits.of_128 : bits.of_64;
        for (int & n : units) {
            n = (n * shape.head_size + size / 2) / size;
        }
        return units;
    };
    coded_shape p;
    set_perf_shape(p, shape);
    p.units_k = units(shape.type == "code2" ? BITS_2 : BITS_3);
    p.units_v = units(shape.type == "code2" ? BITS_2 : shape.type == "code3" ? BITS_3 : BITS_1);
    p.n_rot   = p.d_k;
    p.run     = 128;
    p.alike   = true;
    return std::make_unique<test_attn_code>(p);
}

void add_attn_code_cases(test_cases & cases) {
    const auto add = [&](const coded_shape & p) {
        if (p.n_tps <= p.n_kv) {
            cases.push_back(std::make_unique<test_attn_code>(p));
        }
    };

    for (int i = 0; i < 7; ++i) {
        for (const int n : { 1, 2, 3, 5 }) {
            coded_shape p;
            p.units_k    = code_units(7, 0);
            p.units_v    = { 1, 1, 1, 1, 1, 1, 1 };
            p.units_k[i] = n;
            p.units_v[i] = n;
            p.side       = n % 2;
            add(p);
        }
    }
    for (const int n_layer : { 1, 2, 3, 4 }) {
        for (int side = 0; side < n_layer; ++side) {
            for (const int n_tps : { 1, 7, 33 }) {
                for (const bool full : { false, true }) {
                    coded_shape p;
                    p.n_layer = n_layer;
                    p.side    = side;
                    p.n_tps   = n_tps;
                    p.rope    = side % 2 ? MINICACHE_ROPE_NEIGHBOURS : MINICACHE_ROPE_HALVES;
                    p.threads = 1 + (n_layer + side) % 4;
                    if (full) {  // as many coefficients as numbers
                        p.units_k = p.units_v = { 0, 0, 0, n_layer, n_layer, n_layer, p.d_k / 16 * n_layer - 3 * n_layer };
                    }
                    add(p);
                }
            }
        }
    }
    for (int flags = 1; flags < 4; ++flags) {
        coded_shape p;
        p.units_k = flags & 1 ? code_units(7, 0) : p.units_k;
        p.units_v = flags & 2 ? code_units(7, 0) : p.units_v;
        p.n_tps   = 7;
        add(p);
    }
    for (const int d_k : { 32, 64, 80, 128 }) {
        for (const int n_gqa : { 1, 3, 4, 8 }) {
            for (const int n_tps : { 1, 7, 64 }) {
                if (n_tps * n_gqa > 128) {
                    continue;  // the reference decodes every entry for every query
                }
                coded_shape p;
                p.d_k       = d_k;
                p.d_v       = n_gqa == 4 ? 32 : d_k;
                p.n_rot     = n_gqa == 3 ? 16 : d_k;
                p.rope      = n_gqa == 8 ? MINICACHE_ROPE_NEIGHBOURS : MINICACHE_ROPE_HALVES;
                p.n_gqa     = n_gqa;
                p.n_head_kv = 1 + n_gqa % 3;
                p.n_tps     = n_tps;
                p.n_kv      = 150;
                p.type_pool = GGML_TYPE_Q8_0;
                p.run       = 30;
                p.threads   = 1 + n_gqa % 4;
                p.side      = n_tps % 3 == 0;
                if (d_k % 32 != 0) {
                    p.type_pool = GGML_TYPE_F16;
                }
                add(p);
            }
        }
    }
    // rows so long that tiles have fewer cells
    for (const int n : { 12, 20, 32 }) {
        for (const int n_gqa : { 2, 16 }) {
            coded_shape p;
            p.d_k = p.d_v = 256;
            p.n_rot       = 256;
            p.units_k = p.units_v = { 2, 0, 0, n - 6, 0, 4, 0 };
            p.n_gqa               = n_gqa;
            p.n_head_kv           = 1;
            p.n_kv                = 70;
            p.n_tps               = 1;
            add(p);
        }
    }
    // and so long that a device's block takes fewer queries
    for (const int n : { 12, 32, 40 }) {
        for (const int n_tps : { 1, 20 }) {
            coded_shape p;
            p.d_k = p.d_v = 512;
            p.n_rot       = 512;
            p.n_layer     = n > 32 ? 2 : 1;
            p.side        = p.n_layer - 1;
            p.units_k = p.units_v = { 2, 0, 0, n - 6, 0, 4, 0 };
            p.n_gqa               = n == 12 ? 16 : 3;
            p.n_head_kv           = 1;
            p.n_kv                = 70;
            p.n_tps               = n_tps;
            p.type_pool           = GGML_TYPE_Q8_0;
            add(p);
        }
    }
    for (const int n_tps : { 1, 20 }) {
        coded_shape p;
        p.d_k = p.d_v = 128;
        p.n_rot       = 128;
        p.n_layer     = 4;
        p.side        = 2;
        p.units_k = p.units_v = { 4, 4, 4, 8, 4, 4, 4 };
        p.n_tps               = n_tps;
        p.n_kv                = 90;
        add(p);
    }
    for (const minicache_rope rope : { MINICACHE_ROPE_NONE, MINICACHE_ROPE_NEIGHBOURS, MINICACHE_ROPE_HALVES }) {
        for (int base = 0; base < N_CELL_BASES; ++base) {
            for (const int run : { 1, 3, 64, 100 }) {
                coded_shape p;
                p.rope = rope;
                p.base = (cell_bases) base;
                p.run  = run;
                p.n_kv = 300;
                add(p);
            }
        }
    }
    for (const int n_kv : { 1, 2, 31, 63, 64, 65, 257, 700 }) {
        for (const int n_tps : { 1, 2, 33 }) {
            for (const int n_stream : { 1, n_kv < 100 || n_tps < 33 ? 3 : 2 }) {
                coded_shape p;
                p.n_kv     = n_kv;
                p.n_tps    = n_tps;
                p.n_stream = n_stream;
                p.threads  = 1 + n_kv % 4;
                add(p);
            }
        }
    }
    for (int flags = 0; flags < 32; ++flags) {
        coded_shape p;
        p.mask     = flags & 1;
        p.sinks    = flags & 2;
        p.softcap  = flags & 4 ? 5.0f : 0.0f;
        p.max_bias = flags & 8 ? 8.0f : 0.0f;
        p.block    = flags & 16 ? 7 : 0;
        p.n_gqa    = flags & 1 ? 3 : 4;
        p.side     = flags % 3 == 0;
        add(p);
    }
    for (const int threads : { 1, 2, 3, 4 }) {
        for (const int n_gqa : { 1, 4 }) {
            coded_shape p;
            p.threads = threads;
            p.n_kv    = 1100;
            p.n_tps   = 1;
            p.n_gqa   = n_gqa;
            p.run     = 64;
            add(p);
        }
    }
    // thousands of steps from one base to the next
    for (const minicache_rope rope : { MINICACHE_ROPE_NEIGHBOURS, MINICACHE_ROPE_HALVES }) {
        coded_shape p;
        p.rope      = rope;
        p.run       = 1;
        p.n_kv      = 5000;
        p.n_tps     = 1;
        p.n_gqa     = 1;
        p.n_head_kv = 1;
        p.block     = 0;
        p.mask      = false;
        p.cells     = NO_CURRENT;
        add(p);
    }
    for (const content cells : { ALL_CURRENT, ALL_EMPTY, ALL_MASKED, NO_CURRENT }) {
        for (const int threads : { 1, 4 }) {
            for (const bool sinks : { false, true }) {
                coded_shape p;
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
