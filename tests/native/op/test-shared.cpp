#include "ggml-minicache.h"
#include "minicache-cuda-attn-schedule.h"
#include "minicache-code-unit.h"
#include "minicache-turn.h"
#include "test-case.h"

#include <algorithm>
#include <cmath>
#include <vector>

// Arithmetic and indexing that the host and the device both compile, called here as functions. The graph is a formality.
class test_shared : public test_case {
  public:
    test_shared(const char * name, bool (*holds)(rng_t &)) : name(name), holds(holds) {}

    const char * op() const override { return "SHARED"; }

    std::string vars() const override { return name; }

    double max_nmse() const override { return 0.0; }

    void build(ggml_context * ctx, ggml_cgraph * gf, bool) override {
        ggml_tensor * kv = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 2, 1);
        ggml_build_forward_expand(gf, ggml_minicache_merge(ctx, kv, kv, { 1, 1, 1, 0.5f, 0 }));
    }

    void initialize(rng_t & rng) override { held = holds(rng); }

    double error() const override { return held ? 0.0 : INFINITY; }

  private:
    const char * name;
    bool (*holds)(rng_t &);
    bool held = false;
};

static minicache_code_layout random_layout(rng_t & rng) {
    minicache_code_layout layout = {};
    for (uint8_t & n : layout.n_unit) {
        n = (uint8_t) random_int(rng, 0, 3);
    }
    layout.n_layer = (uint8_t) random_int(rng, 1, MINICACHE_CODE_LAYERS);
    return layout;
}

struct pairs_reader {
    const uint16_t * upper;
    const uint16_t * lower;
    uint32_t *       pairs;

    template <int UPPER, int LOWER>
    void operator()() const {
        minicache_unit_pairs<UPPER, LOWER>(upper, lower, pairs);
    }
};

struct unit_writer {
    const uint8_t * levels;
    uint16_t *      upper;
    uint16_t *      lower;

    template <int UPPER, int LOWER>
    void operator()() const {
        minicache_unit_write<UPPER, LOWER>(levels, upper, lower);
    }
};

// Reads a row unit by unit, writes it again, and compares both with minicache_code_coefficients().
static bool units_hold(rng_t & rng) {
    for (int repeat = 0; repeat < 200; ++repeat) {
        const minicache_code_layout layout = random_layout(rng);
        const int                   r      = minicache_code_size(layout);

        std::vector<uint16_t> row(minicache_code_bytes(layout) / 2);
        std::vector<uint16_t> again(row.size());
        for (uint16_t & word : row) {
            word = (uint16_t) random_int(rng, 0, 0xFFFF);
        }
        std::copy_n(row.begin(), minicache_code_mag_bytes(layout) / 2, again.begin());

        std::vector<float> expected(r);
        minicache_code_coefficients(layout, (const uint8_t *) row.data(), expected.data());

        for (int u = 0; u < r / MINICACHE_CODE_UNIT; ++u) {
            const minicache_code_unit unit = minicache_code_unit_at(layout, u);

            uint32_t pairs[8];
            minicache_unit_dispatch(unit.width, pairs_reader{ row.data() + unit.upper / 2, row.data() + unit.lower / 2, pairs });

            uint8_t levels[16];
            for (int i = 0; i < 16; ++i) {
                levels[i] = (uint8_t) (pairs[i % 8] >> (i / 8 * 16));
                if ((float) levels[i] - 0.5f * (float) ((1 << unit.width) - 1) != expected[u * 16 + i]) {
                    return false;
                }
                const int place = minicache_code_place(u * 16 + i);
                if (place != u * 16 + 2 * (i % 8) + i / 8 || minicache_code_placed(place) != u * 16 + i) {
                    return false;
                }
            }
            minicache_unit_dispatch(
                unit.width, unit_writer{ levels, again.data() + unit.upper / 2, again.data() + unit.lower / 2 });
        }
        if (again != row) {
            return false;
        }
    }
    return true;
}

// R(b) and R(-b) undo each other and turn pairs by the angle, also at large positions.
static bool turns_hold(rng_t & rng) {
    for (int repeat = 0; repeat < 300; ++repeat) {
        const int32_t rope     = repeat % 2 ? MINICACHE_ROPE_NEIGHBOURS : MINICACHE_ROPE_HALVES;
        const int     n        = random_int(rng, 1, 16);
        const int     d        = 2 * n + random_int(rng, 0, 3);
        const int32_t position = random_int(rng, -2000000, 2000000);

        const std::vector<float> x = random_floats(rng, d);
        std::vector<float>       y(d);
        std::vector<float>       cosines(n);
        std::vector<float>       sines(n);
        for (int i = 0; i < n; ++i) {
            const float freq = (float) pow(500000.0, -(double) i / n);
            minicache_turn_angle(position, freq, &cosines[i], &sines[i]);
            if (fabs(cosines[i] - cos((double) position * freq)) > 2e-6 ||
                fabs(sines[i] - sin((double) position * freq)) > 2e-6) {
                return false;
            }
        }
        for (int i = 0; i < d; ++i) {
            y[i] = minicache_turned(rope, n, cosines.data(), sines.data(), 0, x.data(), i);
        }
        const int first  = rope == MINICACHE_ROPE_NEIGHBOURS ? 2 * (n - 1) : n - 1;
        const int second = rope == MINICACHE_ROPE_NEIGHBOURS ? 2 * n - 1 : 2 * n - 1;
        if (fabsf(y[first] - (x[first] * cosines[n - 1] - x[second] * sines[n - 1])) > 1e-5f) {
            return false;
        }
        for (int i = 0; i < d; ++i) {
            if (fabsf(minicache_turned(rope, n, cosines.data(), sines.data(), 1, y.data(), i) - x[i]) > 1e-5f) {
                return false;
            }
        }
    }
    return true;
}

// Every cell and query belongs to a block, tiles fit into registers and shared memory, and rows are aligned as matrices require.
static bool schedules_hold(rng_t & rng) {
    for (int repeat = 0; repeat < 5000; ++repeat) {
        const int sizes[] = { 32, 64, 80, 96, 128, 256 };

        minicache_attn_dims d = {};
        d.coded               = repeat % 2;
        d.d_k                 = sizes[random_int(rng, 0, 5)];
        d.d_v                 = random_int(rng, 0, 3) ? d.d_k : 32;
        d.r_k                 = d.coded ? 16 * random_int(rng, 0, std::min(d.d_k / 4, 32)) : d.d_k;
        d.r_v                 = d.coded ? 16 * random_int(rng, 0, std::min(d.d_v / 4, 32)) : d.d_v;
        d.n_gqa               = random_int(rng, 1, 16);
        d.n_head_kv           = random_int(rng, 1, 8);
        d.n_head              = d.n_gqa * d.n_head_kv;
        d.n_tps               = random_int(rng, 1, 64);
        d.n_stream            = random_int(rng, 1, 64);
        d.n_kv                = random_int(rng, 1, 200000);
        d.bytes_k             = d.coded ? 4 + d.r_k / 2 : 2 * d.d_k;
        d.bytes_v             = d.coded ? 4 + d.r_v / 2 : 2 * d.d_v;

        const minicache_attn_schedule p = minicache_attn_schedule_of(d, random_int(rng, 1, 600));

        const int  v_exact = 64 * (d.coded && p.wide > 2 ? p.wide / 2 : p.wide);
        const bool fits =
            minicache_attn_fits(d) && p.shared <= MINICACHE_ATTN_SHARED && d.d_v <= v_exact && (!d.coded || d.r_v <= 64 * p.wide);
        const bool covers = p.chunk % p.tile == 0 && (int64_t) p.chunk * p.n_split >= d.n_kv &&
                            (int64_t) p.chunk * (p.n_split - 1) < d.n_kv && p.rows * p.n_row_tile >= p.n_row &&
                            p.rows * (p.n_row_tile - 1) < p.n_row && p.n_base >= 5 && p.n_base <= MINICACHE_ATTN_BASES &&
                            (int64_t) p.n_split * p.n_row_tile <= INT32_MAX && p.n_span * MINICACHE_ATTN_SPAN >= d.n_kv;
        const int  at[]   = { p.at_v, p.at_q, p.at_q_code, p.at_p, p.at_scores, p.at_raw, p.at_cells, p.raw };
        bool       placed = p.ld_k % 16 == 8 && p.ld_v % 16 == 8 && p.ld_q % 16 == 8 && p.ld_p % 16 == 8;
        for (const int offset : at) {
            placed = placed && offset % 16 == 0;
        }
        if (!fits || !covers || !placed) {
            return false;
        }
    }
    return true;
}

void add_shared_cases(test_cases & cases, bool perf) {
    if (perf) {
        return;
    }
    cases.push_back(std::make_unique<test_shared>("units", units_hold));
    cases.push_back(std::make_unique<test_shared>("turns", turns_hold));
    cases.push_back(std::make_unique<test_shared>("schedules", schedules_hold));
}
