#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-minicache.h"
#include "test-case.h"
#include "test-codec.h"
#include "test-device.h"

#include <algorithm>
#include <cmath>
#include <numeric>

// what the layers' vectors are: A is the first layer, B stands for the others
enum vectors {
    USUAL,
    ZERO_A,
    ZERO_B,
    ZERO_BOTH,
    ONE_NUMBER,
    DENORMAL,
    HUGE_BOTH,
    HUGE_AND_TINY,
    LARGEST,  // every number is the largest that float32 has
    N_VECTORS,
};

// how the tokens' bases are chosen
enum bases {
    ZERO,
    SHARED,  // runs of tokens with the same base
    NEGATIVE,
    LARGE,
    RANDOM_BASES,
    N_BASES,
};

struct encode_shape {
    codec_shape codec;
    int         n_head_kv = 2;
    int         n_tokens  = 5;
    int         n_stream  = 1;
    vectors     x         = USUAL;
    bases       base      = SHARED;
    decoders    how       = GAUSSIAN;
    int         threads   = 1;
};

class test_encode : public test_case {
  public:
    explicit test_encode(const encode_shape & p) : p(p), codec(p.codec, p.n_head_kv) {}

    const char * op() const override { return "ENCODE"; }

    std::string vars() const override {
        return var_list()
            .add("units_k", units_name(p.codec.units_k))
            .add("units_v", units_name(p.codec.units_v))
            .add("d_k", p.codec.d_k)
            .add("d_v", p.codec.d_v)
            .add("n_rot", p.codec.n_rot)
            .add("rope", (int) p.codec.rope)
            .add("n_layer", p.codec.n_layer)
            .add("n_head_kv", p.n_head_kv)
            .add("n_tokens", p.n_tokens)
            .add("n_stream", p.n_stream)
            .add("x", (int) p.x)
            .add("base", (int) p.base)
            .add("how", (int) p.how)
            .add("threads", p.threads)
            .str();
    }

    // Restored vectors are compared only if the basis is complete: what is lost there is the rounding to 8 bits and to the
    // steps of the magnitudes (2.5 %).
    double max_nmse() const override { return p.how == ORTHONORMAL ? 5e-4 : 0.0; }

    int n_threads() const override { return p.threads; }

    size_t bytes() const override { return p.codec.n_layer * ggml_nbytes(kv[0]) + ggml_nbytes(codec_data); }

    void build(ggml_context * ctx, ggml_cgraph * gf, bool perf) override {
        graph = gf;
        for (int side = 0; side < p.codec.n_layer; ++side) {
            kv[side] = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, (int64_t) (codec.k.d + codec.v.d) * p.n_head_kv, p.n_tokens);
        }
        rows       = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, p.n_tokens);
        bases      = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, p.n_tokens);
        codec_data = ggml_new_tensor_1d(ctx, GGML_TYPE_I8, minicache_codec_offsets_of(codec.shape).size);
        for (int reference = 0; reference < (perf || on_gpu ? 1 : 2); ++reference) {
            result & r = results[reference];
            r.code_k   = new_cache(ctx, codec.k);
            r.code_v   = new_cache(ctx, codec.v);
            r.out      = ggml_minicache_encode(ctx, kv, codec_data, r.code_k, r.code_v, rows, bases, codec.shape);
            if (reference) {
                ggml_minicache_encode_set_reference(r.out);
            }
            ggml_build_forward_expand(gf, r.out);
        }
        for (int i = 0; i < p.n_tokens && !perf && !on_gpu; i += std::max(1, (p.n_tokens - 1) / 3)) {
            lone.push_back({ i, new_alone(ctx, i) });
            ggml_build_forward_expand(gf, lone.back().second.out);
        }
    }

    void initialize(rng_t & rng) override {
        codec.draw(rng, p.how);
        codec.set(codec_data);

        for (int side = 0; side < p.codec.n_layer; ++side) {
            x[side] = random_floats(rng, ggml_nelements(kv[side]), 1.0f + (float) side);
            for (int head = 0; head < p.n_tokens * p.n_head_kv; ++head) {
                change(vector(side, head / p.n_head_kv, head % p.n_head_kv, false), codec.k.d, side);
                change(vector(side, head / p.n_head_kv, head % p.n_head_kv, true), codec.v.d, side);
            }
            set_rows(kv[side], x[side]);
        }
        for (int i = 0; i < p.n_tokens; ++i) {
            const int values[N_BASES] = { 0, i / 3 * 64, -64 * (i / 2), 1000000 + 64 * i, random_int(rng, -100000, 100000) };
            base_data.push_back(values[p.base]);
        }
        std::vector<int64_t> order((size_t) n_cells() * p.n_stream);
        std::iota(order.begin(), order.end(), 0);
        std::shuffle(order.begin(), order.end(), rng);
        row_data.assign(order.begin(), order.begin() + p.n_tokens);

        ggml_backend_tensor_set(bases, base_data.data(), 0, ggml_nbytes(bases));
        ggml_backend_tensor_set(rows, row_data.data(), 0, ggml_nbytes(rows));
        clear();
    }

    double error() const override {
        double worst = 0.0;
        for (const result & r : results) {
            worst = r.out ? std::max(worst, result_error(r)) : worst;
        }
        if (on_gpu) {
            return worst;
        }
        const written before = read(results[0]);
        for (const auto & [i, r] : lone) {
            if (!is_part(read(r), i, before)) {
                return INFINITY;
            }
        }
        for (const int n : { 1, 3 }) {
            const ggml_backend_ptr backend(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
            test_set_n_threads(backend.get(), n);
            clear();
            if (ggml_backend_graph_compute(backend.get(), graph) != GGML_STATUS_SUCCESS || !(read(results[0]) == before)) {
                return INFINITY;
            }
        }
        return worst;
    }

  private:
    // what one of the op's two versions computed
    struct result {
        ggml_tensor * code_k;
        ggml_tensor * code_v;
        ggml_tensor * out;
    };

    struct written {
        std::vector<uint8_t> code_k;
        std::vector<uint8_t> code_v;
        std::vector<float>   out;

        bool operator==(const written & other) const {
            return code_k == other.code_k && code_v == other.code_v && out == other.out;
        }
    };

    static const uint8_t UNTOUCHED = 0xA5;

    const encode_shape p;
    test_codec         codec;

    ggml_cgraph * graph;
    ggml_tensor * kv[MINICACHE_CODE_LAYERS] = {};
    ggml_tensor * rows;
    ggml_tensor * bases;
    ggml_tensor * codec_data;
    result        results[2] = {};

    std::vector<std::pair<int, result>> lone;  // some tokens, each encoded by an op of its own

    std::vector<float>   x[MINICACHE_CODE_LAYERS];
    std::vector<int32_t> base_data;
    std::vector<int64_t> row_data;

    int n_cells() const { return p.n_tokens + 3; }

    ggml_tensor * new_cache(ggml_context * ctx, const codec_part & part) const {
        return ggml_new_tensor_3d(ctx, GGML_TYPE_I8, part.token_bytes(), n_cells(), p.n_stream);
    }

    result new_alone(ggml_context * ctx, int token) const {
        ggml_tensor * x[MINICACHE_CODE_LAYERS];
        for (int side = 0; side < p.codec.n_layer; ++side) {
            x[side] = ggml_view_2d(ctx, kv[side], kv[side]->ne[0], 1, kv[side]->nb[1], token * kv[side]->nb[1]);
        }
        result r;
        r.code_k = new_cache(ctx, codec.k);
        r.code_v = new_cache(ctx, codec.v);
        r.out    = ggml_minicache_encode(ctx, x, codec_data, r.code_k, r.code_v, ggml_view_1d(ctx, rows, 1, token * rows->nb[0]),
            ggml_view_1d(ctx, bases, 1, token * bases->nb[0]), codec.shape);
        return r;
    }

    // A token's own op writes what the op for all tokens writes: a code does not depend on what else is encoded.
    bool is_part(const written & alone, int token, const written & all) const {
        const auto same_row = [&](const std::vector<uint8_t> & a, const std::vector<uint8_t> & b, const codec_part & part) {
            const size_t n = part.token_bytes();
            return std::equal(
                a.begin() + row_data[token] * n, a.begin() + (row_data[token] + 1) * n, b.begin() + row_data[token] * n);
        };
        return same_row(alone.code_k, all.code_k, codec.k) && same_row(alone.code_v, all.code_v, codec.v) &&
               std::equal(alone.out.begin(), alone.out.end(), all.out.begin() + token * alone.out.size());
    }

    float * vector(int side, int token, int head, bool is_v) {
        const int first = token * (codec.k.d + codec.v.d) * p.n_head_kv;
        return x[side].data() + first + (is_v ? codec.k.d * p.n_head_kv + head * codec.v.d : head * codec.k.d);
    }

    void change(float * y, int d, int side) const {
        for (int i = 0; i < d; ++i) {
            switch (p.x) {
                case ZERO_A:
                case ZERO_B:
                    y[i] *= (side == 0) == (p.x == ZERO_A) ? 0.0f : 1.0f;
                    break;
                case ZERO_BOTH:
                    y[i] = 0.0f;
                    break;
                case ONE_NUMBER:
                    y[i] = i == 3 % d ? -7.0f : 0.0f;
                    break;
                case DENORMAL:
                    y[i] *= 1e-41f;
                    break;
                case HUGE_BOTH:
                    y[i] *= 1e30f;
                    break;
                case HUGE_AND_TINY:
                    y[i] *= side == 0 ? 1e36f : 1e-36f;
                    break;
                case LARGEST:
                    y[i] = i % 3 == side ? -3.4028235e38f : 3.4028235e38f;
                    break;
                default:
                    break;
            }
        }
    }

    void clear() const {
        for (const result & r : results) {
            if (r.out) {
                ggml_backend_tensor_memset(r.code_k, UNTOUCHED, 0, ggml_nbytes(r.code_k));
                ggml_backend_tensor_memset(r.code_v, UNTOUCHED, 0, ggml_nbytes(r.code_v));
            }
        }
    }

    static written read(const result & r) {
        written w = { std::vector<uint8_t>(ggml_nbytes(r.code_k)), std::vector<uint8_t>(ggml_nbytes(r.code_v)), get_rows(r.out) };
        ggml_backend_tensor_get(r.code_k, w.code_k.data(), 0, w.code_k.size());
        ggml_backend_tensor_get(r.code_v, w.code_v.data(), 0, w.code_v.size());
        return w;
    }

    double result_error(const result & r) const {
        const written w = read(r);

        double error = 0.0;
        double norm  = 0.0;
        for (int i = 0; i < p.n_tokens; ++i) {
            for (int h = 0; h < p.n_head_kv; ++h) {
                for (const bool is_v : { false, true }) {
                    const codec_part & part = is_v ? codec.v : codec.k;
                    const size_t       row  = row_data[i] * part.token_bytes() + part.row_begin(h);
                    if (!check_row(i, h, is_v, (is_v ? w.code_v : w.code_k).data() + row, w.out[(i * 2 + is_v) * p.n_head_kv + h],
                            error, norm)) {
                        return INFINITY;
                    }
                }
            }
        }
        if (!others_untouched(w.code_k) || !others_untouched(w.code_v)) {
            return INFINITY;
        }
        return p.how != ORTHONORMAL || norm == 0.0 ? 0.0 : error / norm;
    }

    bool others_untouched(const std::vector<uint8_t> & code) const {
        const size_t n_row = code.size() / ((size_t) n_cells() * p.n_stream);
        for (size_t i = 0; i < code.size(); ++i) {
            const bool taken = std::find(row_data.begin(), row_data.end(), (int64_t) (i / n_row)) != row_data.end();
            if (!taken && code[i] != UNTOUCHED) {
                return false;
            }
        }
        return true;
    }

    // Each step is compared with what follows from the outcome of the step before. Rounding may go either way for a number that
    // is midway between two steps.
    bool check_row(int token, int head, bool is_v, const uint8_t * row, float distance, double & error, double & norm) const {
        const codec_part & part = is_v ? codec.v : codec.k;
        const head_codec & own  = part.heads[head];
        const double       near = 2e-3;

        std::vector<double> u[MINICACHE_CODE_LAYERS];
        double              length[MINICACHE_CODE_LAYERS];
        for (int side = 0; side < part.n_layer; ++side) {
            const float * y = const_cast<test_encode *>(this)->vector(side, token, head, is_v);
            u[side].assign(y, y + part.d);
            if (!is_v) {
                codec.turn(-(double) base_data[token], u[side]);
            }
            length[side] = sqrt(std::inner_product(u[side].begin(), u[side].end(), u[side].begin(), 0.0));
            for (double & value : u[side]) {
                value = length[side] > 0.0 ? value / length[side] : 0.0;
            }
        }

        std::vector<double> z(own.r());
        for (int c = 0; c < own.r(); ++c) {
            for (int i = 0; i < part.n_layer * part.d; ++i) {
                z[c] += (double) own.dec[(size_t) i * own.r() + c] * own.weight[i] * u[i / part.d][i % part.d];
            }
            z[c] *= own.gain[c];
        }
        if (!has_best_scale(own, z, part.levels(head, row), near)) {
            return false;
        }

        double expected = 0.0;
        for (int side = 0; side < part.n_layer; ++side) {
            const std::vector<double> u_hat = part.decode(head, side, row);

            double uu = 0.0;
            double yy = 0.0;
            for (int i = 0; i < part.d; ++i) {
                const double w = own.weight[(size_t) side * part.d + i];
                uu += w * u[side][i] * u[side][i];
                yy += w * u_hat[i] * u_hat[i];
            }
            const double mag = yy > 0.0 ? sqrt(uu / yy) * length[side] : 0.0;
            if (!(fabs(row[side] - mag_byte(own, side, mag)) <= 0.5 + near)) {
                return false;
            }
            const double m = part.magnitude(head, side, row);
            for (int i = 0; i < part.d && length[side] > 0.0; ++i) {
                const double difference = u[side][i] - m / length[side] * u_hat[i];
                expected += difference * difference / part.n_layer;
                error += difference * difference;
                norm += u[side][i] * u[side][i];
            }
        }
        const bool even = part.n_layer % 2 == 0 || row[part.n_layer] == 0;
        return even && fabs(distance - std::min(expected, 1.0)) <= 1e-5;
    }

    // Whether the levels are the nearest ones at one of the scales that lose least.
    static bool has_best_scale(
        const head_codec & codec, const std::vector<double> & z, const std::vector<int> & levels, double near) {
        double least = INFINITY;
        double own   = INFINITY;  // of the scales that the levels are nearest at
        for (int i = -6; i <= 16; ++i) {
            const double scale = pow(2.0, i / 8.0);

            double lost    = 0.0;
            bool   nearest = true;
            for (int c = 0; c < codec.r(); ++c) {
                const double half = codec.level_half(c);
                const double want = std::min(std::max(z[c] / scale + half, 0.0), 2.0 * half);
                const double away = z[c] - scale * (floor(want + 0.5) - half);
                lost += away * away / codec.gain[c];
                nearest = nearest && fabs(levels[c] - want) <= 0.5 + near;
            }
            least = std::min(least, lost);
            own   = nearest ? std::min(own, lost) : own;
        }
        return own <= least * (1.0 + 1e-4);
    }

    // before rounding
    static double mag_byte(const head_codec & codec, int side, double m) {
        const float * mag = codec.mag.data() + side * 2;
        if (!(m > 1e-46)) {
            return 0.0;
        }
        return std::min(std::max((log(std::min(m, 3.4028235e38)) - mag[0]) / mag[1] + 1.0, 1.0), 255.0);
    }
};

// The bytes of a row, written down by hand. Each column of the decoder picks one number, and sets the level.
class test_planes : public test_case {
  public:
    test_planes() : codec(shape(), 1) {}

    const char * op() const override { return "ENCODE"; }

    std::string vars() const override { return "planes"; }

    double max_nmse() const override { return 0.0; }

    void build(ggml_context * ctx, ggml_cgraph * gf, bool) override {
        kv                           = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, codec.k.d + codec.v.d, 1);
        rows                         = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, 1);
        bases                        = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, 1);
        codec_data                   = ggml_new_tensor_1d(ctx, GGML_TYPE_I8, minicache_codec_offsets_of(codec.shape).size);
        code_k                       = ggml_new_tensor_3d(ctx, GGML_TYPE_I8, codec.k.token_bytes(), 1, 1);
        code_v                       = ggml_new_tensor_3d(ctx, GGML_TYPE_I8, codec.v.token_bytes(), 1, 1);
        ggml_tensor * const layers[] = { kv, kv };
        ggml_build_forward_expand(gf, ggml_minicache_encode(ctx, layers, codec_data, code_k, code_v, rows, bases, codec.shape));
    }

    void initialize(rng_t &) override {
        const int64_t row  = 0;
        const int32_t base = 0;
        ggml_backend_tensor_set(rows, &row, 0, sizeof(row));
        ggml_backend_tensor_set(bases, &base, 0, sizeof(base));
        set_rows(kv, std::vector<float>(codec.k.d + codec.v.d, 3.0f));

        set_levels(codec.k);
        set_levels(codec.v);
        codec.set(codec_data);
    }

    double error() const override {
        static const uint8_t expected[] = {
            0x00,
            0x11,
            0x22,
            0x33,
            0x44,
            0x55,
            0x66,
            0x77,  // 8 bits: 0x11*i
            0x88,
            0x99,
            0xaa,
            0xbb,
            0xcc,
            0xdd,
            0xee,
            0xff,  //
            0x10,
            0x32,
            0x54,
            0x76,
            0x98,
            0xba,
            0xdc,
            0xfe,  // 6 bits, the upper 4: i
            0xe4,
            0xe4,
            0xe4,
            0xe4,  // the lower 2: i % 4
            0x10,
            0x32,
            0x54,
            0x76,
            0x98,
            0xba,
            0xdc,
            0xfe,  // 5 bits, the upper 4: i
            0xaa,
            0xaa,  // the lowest: i % 2
            0x10,
            0x32,
            0x54,
            0x76,
            0x98,
            0xba,
            0xdc,
            0xfe,  // 4 bits: i
            0xe4,
            0xe4,
            0xe4,
            0xe4,  // 3 bits, the upper 2: i % 4
            0x00,
            0xff,  // the lowest: i / 8
            0xe4,
            0xe4,
            0xe4,
            0xe4,  // 2 bits: i % 4
            0xaa,
            0xaa,  // 1 bit: i % 2
        };
        std::vector<uint8_t> row(sizeof(expected) + 2);
        for (const ggml_tensor * code : { code_k, code_v }) {
            if (ggml_nbytes(code) != row.size()) {
                return INFINITY;
            }
            ggml_backend_tensor_get(code, row.data(), 0, row.size());
            if (!std::equal(row.begin() + 2, row.end(), expected)) {
                return INFINITY;
            }
        }
        return 0.0;
    }

  private:
    test_codec codec;

    ggml_tensor * kv;
    ggml_tensor * rows;
    ggml_tensor * bases;
    ggml_tensor * codec_data;
    ggml_tensor * code_k;
    ggml_tensor * code_v;

    static codec_shape shape() {
        codec_shape s;
        s.units_k = s.units_v = { 1, 1, 1, 1, 1, 1, 1 };
        s.d_k = s.d_v = 56;
        s.rope        = MINICACHE_ROPE_NONE;
        return s;
    }

    static void set_levels(codec_part & part) {
        head_codec & head = part.heads[0];
        head.mag          = { -1.0f, 0.1f, -1.0f, 0.1f };
        head.weight       = std::vector<float>(2 * part.d, 1.0f);
        head.dec          = std::vector<float>((size_t) 2 * part.d * head.r(), 0.0f);
        for (int c = 0; c < head.r(); ++c) {
            const int i     = c % 16;
            const int level = c < 16 ? 0x11 * i :
                              c < 32 ? 4 * i + i % 4 :
                              c < 48 ? 2 * i + i % 2 :
                              c < 64 ? i :
                              c < 80 ? 2 * (i % 4) + i / 8 :
                              c < 96 ? i % 4 :
                                       i % 2;
            head.gain.push_back((float) sqrt(part.d));
            head.dec[(size_t) c * head.r() + c] = (float) (level - head.level_half(c));
        }
    }
};

static void add_perf_cases(test_cases & cases) {
    for (const auto & [n_head_kv, d] : { std::pair(8, 128), { 2, 64 } }) {
        for (const int n_tokens : { 1, 512 }) {
            for (const code_units & units : { code_units{ 1, 2, 2, 3, 2, 2, 0 }, code_units{ 0, 1, 1, 1, 2, 2, 0 } }) {
                encode_shape p;
                p.codec.units_k = p.codec.units_v = units;
                p.codec.d_k = p.codec.d_v = d;
                p.codec.n_rot             = d;
                p.codec.alike             = true;
                p.n_head_kv               = n_head_kv;
                p.n_tokens                = n_tokens;
                if (2 * d >= 16 * std::accumulate(units.begin(), units.end(), 0)) {
                    cases.push_back(std::make_unique<test_encode>(p));
                }
            }
        }
    }
}

void add_encode_cases(test_cases & cases, bool perf) {
    if (perf) {
        add_perf_cases(cases);
        return;
    }
    const auto add = [&](const encode_shape & p) { cases.push_back(std::make_unique<test_encode>(p)); };

    cases.push_back(std::make_unique<test_planes>());

    // every width, alone and together with others, in odd numbers of units
    for (int i = 0; i < 7; ++i) {
        for (const int n : { 1, 2, 3 }) {
            encode_shape p;
            p.codec.units_k    = code_units(7, 0);
            p.codec.units_v    = { 1, 1, 1, 1, 1, 1, 1 };
            p.codec.units_k[i] = n;
            p.codec.units_v[i] = n;
            p.threads          = 1 + i % 4;
            add(p);
        }
    }
    for (const bool in_k : { false, true }) {
        encode_shape p;
        (in_k ? p.codec.units_k : p.codec.units_v) = code_units(7, 0);
        add(p);
    }
    for (int x = 0; x < N_VECTORS; ++x) {
        for (int base = 0; base < N_BASES; ++base) {
            encode_shape p;
            p.codec.units_k = { 1, 0, 1, 1, 0, 2, 0 };
            p.x             = (vectors) x;
            p.base          = (bases) base;
            p.codec.rope    = base % 2 == 0 ? MINICACHE_ROPE_HALVES : MINICACHE_ROPE_NEIGHBOURS;
            add(p);
        }
    }
    for (const minicache_rope rope : { MINICACHE_ROPE_NONE, MINICACHE_ROPE_NEIGHBOURS, MINICACHE_ROPE_HALVES }) {
        for (const int n_rot : { 2, 20, 80 }) {
            for (int base = 0; base < N_BASES; ++base) {
                encode_shape p;
                p.codec.rope  = rope;
                p.codec.n_rot = n_rot;
                p.codec.d_k   = 80;
                p.codec.d_v   = 32;
                p.base        = (bases) base;
                add(p);
            }
        }
    }
    for (const int n_tokens : { 1, 2, 7, 8, 9, 31, 65 }) {
        for (const int n_head_kv : { 1, 3 }) {
            for (const int threads : { 1, 3, 4 }) {
                encode_shape p;
                p.codec.units_v = { 0, 1, 0, 0, 1, 0, 1 };
                p.n_tokens      = n_tokens;
                p.n_head_kv     = n_head_kv;
                p.n_stream      = n_head_kv;
                p.threads       = threads;
                add(p);
            }
        }
    }
    for (const int n_layer : { 1, 2, 3, 4 }) {
        for (int x = 0; x < N_VECTORS; ++x) {
            for (const int n_tokens : { 1, 9 }) {
                encode_shape p;
                p.codec.n_layer = n_layer;
                p.codec.units_k = { 1, 1, 0, 1, 0, 0, 1 };
                p.codec.units_v = { 0, 0, 1, 0, 1, 1, 0 };
                p.codec.d_k     = 80;
                p.n_tokens      = n_tokens;
                p.x             = (vectors) x;
                p.threads       = n_tokens % 4;
                add(p);
            }
        }
    }
    // rows so long that a device's block takes fewer tokens
    for (const auto & [d, n_layer] : { std::pair(512, 2), { 256, 4 }, { 512, 4 } }) {
        encode_shape p;
        p.codec.n_layer = n_layer;
        p.codec.units_k = { 1, 1, 0, 1, 0, 2, 1 };
        p.codec.units_v = { 0, 2, 1, 0, 1, 1, 0 };
        p.codec.d_k = p.codec.d_v = d;
        p.codec.n_rot             = d;
        p.n_head_kv               = 1;
        p.n_tokens                = 11;
        p.base                    = RANDOM_BASES;
        add(p);
    }
    // a complete basis of 8 bits restores what was encoded
    for (const auto & [d, n_layer] :
        { std::pair(32, 2), { 64, 2 }, { 80, 2 }, { 128, 2 }, { 64, 1 }, { 80, 3 }, { 128, 4 }, { 512, 1 } }) {
        for (const vectors x : { USUAL, ZERO_A }) {
            encode_shape p;
            p.codec.n_layer = n_layer;
            p.codec.units_k = p.codec.units_v = { n_layer * d / 16, 0, 0, 0, 0, 0, 0 };
            p.codec.d_k = p.codec.d_v = d;
            p.codec.n_rot             = d;
            p.n_head_kv               = 1;
            p.n_tokens                = 12;
            p.base                    = RANDOM_BASES;
            p.x                       = x;
            p.how                     = ORTHONORMAL;
            add(p);
        }
    }
}
