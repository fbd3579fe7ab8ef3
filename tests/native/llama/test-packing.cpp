#include "llama-minicache-packing.h"

#include "ggml-minicache.h"
#include "test-case.h"
#include "../op/test-codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

// Payloads with the code rows of two groups and other bytes between them: whether they come back, how small they get, and whether
// damaged ones are refused or at least read without harm. The graph is a formality.
class test_packing : public test_case {
  public:
    test_packing(code_units units_k, code_units units_v, int n_layer, int n_head_kv, uint32_t n_token) :
        units{ std::move(units_k), std::move(units_v) }, n_layer(n_layer), n_head_kv(n_head_kv), n_token(n_token) {}

    const char * op() const override { return "PACK"; }

    std::string vars() const override {
        return var_list()
            .add("k", units_name(units[0]))
            .add("v", units_name(units[1]))
            .add("n_layer", n_layer)
            .add("n_head_kv", n_head_kv)
            .add("n_token", n_token)
            .str();
    }

    double max_nmse() const override { return 0.0; }

    void build(ggml_context * ctx, ggml_cgraph * gf, bool) override {
        ggml_tensor * kv = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 2, 1);
        ggml_build_forward_expand(gf, ggml_minicache_merge(ctx, kv, kv, { 1, 1, 1, 0.5f, 0 }));
    }

    void initialize(rng_t & rng) override {
        minicache_group_layouts group;
        for (int h = 0; h < n_head_kv; ++h) {
            group.k.push_back(layout_of(units_of_head(units[0], h), n_layer));
            group.v.push_back(layout_of(units_of_head(units[1], h), n_layer));
        }
        layouts = { group, group };

        add_bytes(rng, random_int(rng, 0, 50));
        for (const uint16_t group : { 0, 1 }) {
            for (const uint16_t is_v : { 0, 1 }) {
                rows.push_back({ payload.size(), n_token, group, is_v });
                add_tokens(rng, layouts[group].of(is_v));
                add_bytes(rng, group * random_int(rng, 0, 50));
            }
        }
        packed = minicache_pack(payload, rows, layouts);
        held   = minicache_unpack(packed, layouts, payload.size()) == payload && is_small() && is_refused_where_larger() &&
                 is_refused_without_codes() && takes_damage(rng);
    }

    double error() const override { return held ? 0.0 : INFINITY; }

  private:
    void add_bytes(rng_t & rng, int n) {
        for (int i = 0; i < n; ++i) {
            payload.push_back((uint8_t) random_int(rng, 0, 255));
            ++n_other;
        }
    }

    void add_tokens(rng_t & rng, const std::vector<minicache_code_layout> & heads) {
        for (uint32_t token = 0; token < n_token; ++token) {
            for (const minicache_code_layout & layout : heads) {
                add_row(rng, layout);
            }
        }
    }

    // A row of what calibrated codes have: coefficients with a bell-shaped distribution, and some magnitudes.
    void add_row(rng_t & rng, const minicache_code_layout & layout) {
        std::normal_distribution<float> bell;
        std::vector<uint8_t>            bytes(minicache_code_bytes(layout));
        for (int i = 0; i < layout.n_layer; ++i) {
            bytes[i] = (uint8_t) random_int(rng, 100, 131);  // 5 bits
            bits += 5.0;
        }
        uint8_t * plane = bytes.data() + minicache_code_mag_bytes(layout);
        for (int w = 0; w < MINICACHE_CODE_WIDTHS; ++w) {
            const int n     = MINICACHE_CODE_UNIT * layout.n_unit[w];
            const int width = minicache_code_width(w);
            const int lower = width - minicache_code_upper(width);
            for (int i = 0; i < n; ++i) {
                // the four middle levels, half of the time each inner one: 1.81 bits, and 1 bit of a single one
                const float x     = bell(rng);
                const int   inner = x > 0.0f;
                const int   outer = std::fabs(x) > 1.15f;  // a quarter of them
                const int   top   = (1 << width) - 1;
                const int   level = width == 1 ? inner : inner ? top / 2 + 1 + outer : top / 2 - outer;
                set_bits(plane, width - lower, i, level >> lower);
                set_bits(plane + n / 8 * (width - lower), lower, i, level & ((1 << lower) - 1));
                bits += width == 1 ? 1.0 : 1.82;
            }
            plane += n / 8 * width;
        }
        payload.insert(payload.end(), bytes.begin(), bytes.end());
    }

    static void set_bits(uint8_t * plane, int p, int i, int value) {
        for (int b = 0; b < p; ++b) {
            plane[(i * p + b) / 8] |= (value >> b & 1) << ((i * p + b) % 8);
        }
    }

    // Frequencies are counted, which costs a little, and take room themselves.
    bool is_small() const {
        const size_t n_unit = 2 * (units_of(layouts[0].k) + units_of(layouts[0].v));
        const double tables = 100.0 + 4.0 * (40.0 + 2 * 32.0 * 4) + n_unit * 16.0;
        return packed.size() <= std::min(n_other + 1.02 * bits / 8 + tables, payload.size() + 16.0);
    }

    // of the head that has most
    static size_t units_of(const std::vector<minicache_code_layout> & heads) {
        int n = 0;
        for (const minicache_code_layout & layout : heads) {
            n = std::max(n, minicache_code_size(layout) / MINICACHE_CODE_UNIT);
        }
        return n;
    }

    bool is_refused(const std::vector<uint8_t> & data, size_t max_size) const { return is_refused(data, layouts, max_size); }

    static bool is_refused(
        const std::vector<uint8_t> & data, const std::vector<minicache_group_layouts> & layouts, size_t max_size) {
        try {
            minicache_unpack(data, layouts, max_size);
            return false;
        } catch (const std::runtime_error &) {
            return true;
        }
    }

    // Rows that are said to be of groups that have no codes; those of few tokens are not packed.
    bool is_refused_without_codes() const {
        const bool has_rows = packed.size() < payload.size();
        return !has_rows || is_refused(packed, { {}, {} }, payload.size());
    }

    bool is_refused_where_larger() const { return payload.empty() || is_refused(packed, payload.size() - 1); }

    bool takes_damage(rng_t & rng) const {
        for (int i = 0; i < 200; ++i) {
            std::vector<uint8_t> data = packed;
            data.resize(random_int(rng, 0, (int) packed.size() - 1));
            if (!is_refused(data, payload.size())) {
                return false;  // whatever is missing is missed
            }
            data = packed;
            for (int n = random_int(rng, 1, 3); n > 0; --n) {
                // more often where the numbers are that say what follows
                const int end                     = (int) (chance(rng, 0.5) ? std::min<size_t>(data.size(), 150) : data.size());
                data[random_int(rng, 0, end - 1)] = (uint8_t) random_int(rng, 0, 255);
            }
            is_refused(data, payload.size());  // the sanitizers judge
        }
        return true;
    }

    const code_units units[2];
    const int        n_layer;
    const int        n_head_kv;
    const uint32_t   n_token;

    std::vector<minicache_group_layouts> layouts;
    std::vector<minicache_code_rows>     rows;
    std::vector<uint8_t>                 payload;
    std::vector<uint8_t>                 packed;

    size_t n_other = 0;    // bytes of the payload that are of no row
    double bits    = 0.0;  // of the rows' symbols, by the entropy of what they are drawn from
    bool   held    = false;
};

void add_packing_cases(test_cases & cases) {
    const code_units all   = { 1, 1, 1, 1, 1, 1, 1 };
    const code_units usual = { 0, 0, 0, 1, 5, 2, 1 };
    for (const uint32_t n_token : { 0u, 1u, 2u, 7u, 64u, 1000u }) {
        cases.push_back(std::make_unique<test_packing>(all, usual, 2, 3, n_token));
    }
    for (const int n_layer : { 1, 2, 3, 4 }) {
        cases.push_back(std::make_unique<test_packing>(usual, all, n_layer, 1, 300));
    }
    for (int width = 0; width < MINICACHE_CODE_WIDTHS; ++width) {
        code_units one(MINICACHE_CODE_WIDTHS, 0);
        one[width] = 2;
        cases.push_back(std::make_unique<test_packing>(one, usual, 1, 2, 100));
    }
}
