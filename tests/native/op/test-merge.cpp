#include "ggml-backend.h"
#include "ggml-minicache.h"
#include "test-case.h"

#include <algorithm>
#include <cmath>

static const double PI      = 3.14159265358979323846;
static const double MAG_MAX = 65504.0;

// how the two vectors of a head are related
enum relation {
    RANDOM,
    PARALLEL,
    NEAR_PARALLEL,
    OPPOSITE,
    NEAR_OPPOSITE,
    ZERO_A,
    ZERO_B,
    ZERO_BOTH,
    DENORMAL,
    HUGE_BOTH,
    HUGE_AND_TINY,
    ONE_NUMBER,
    LARGE_MAGNITUDE,
    N_RELATIONS,
};

struct head_result {
    std::vector<double> direction;
    double              mag_a;
    double              mag_b;
    double              distance;
};

static double norm_of(const std::vector<double> & x) {
    double sum = 0.0;
    for (const double value : x) {
        sum += value * value;
    }
    return sqrt(sum);
}

// Eqs. 3 and 4 of the paper, with the angle from its tangent (Kahan), which is exact to rounding at both ends, unlike arccos.
static head_result merge(const float * a, const float * b, int d, double t) {
    std::vector<double> u_a(a, a + d);
    std::vector<double> u_b(b, b + d);

    const double norm_a = norm_of(u_a);
    const double norm_b = norm_of(u_b);

    head_result r = { std::vector<double>(d, 0.0), std::min(norm_a, MAG_MAX), std::min(norm_b, MAG_MAX), 0.0 };

    for (int i = 0; i < d; ++i) {
        u_a[i] = norm_a > 0.0 ? u_a[i] / norm_a : 0.0;
        u_b[i] = norm_b > 0.0 ? u_b[i] / norm_b : 0.0;
    }
    if (norm_a == 0.0 || norm_b == 0.0) {
        r.direction = norm_a > 0.0 ? u_a : u_b;
        return r;
    }
    std::vector<double> sum(d);
    std::vector<double> difference(d);
    for (int i = 0; i < d; ++i) {
        sum[i]        = u_a[i] + u_b[i];
        difference[i] = u_a[i] - u_b[i];
    }
    const double omega = 2.0 * atan2(norm_of(difference), norm_of(sum));

    r.distance = omega / PI;
    if (PI - omega < 1e-3) {
        r.direction = u_a;
        r.distance  = 1.0;
        return r;
    }
    for (int i = 0; i < d; ++i) {
        r.direction[i] = omega < 1e-3 ? (1.0 - t) * u_a[i] + t * u_b[i] :
                                        (sin((1.0 - t) * omega) * u_a[i] + sin(t * omega) * u_b[i]) / sin(omega);
    }
    return r;
}

class test_merge : public test_case {
  public:
    test_merge(int d_k, int d_v, int n_head_kv, int n_tokens, float t, relation rel, int n_threads, bool average) :
        p{ d_k, d_v, n_head_kv, t, average }, n_tokens(n_tokens), rel(rel), threads(n_threads) {}

    const char * op() const override { return "MERGE"; }

    std::string vars() const override {
        return var_list()
            .add("d_k", p.d_k)
            .add("d_v", p.d_v)
            .add("n_head_kv", p.n_head_kv)
            .add("n_tokens", n_tokens)
            .add("t", p.t)
            .add("relation", (int) rel)
            .add("threads", threads)
            .add("average", p.average)
            .str();
    }

    double max_nmse() const override { return 1e-12; }  // one rounding to f32

    int n_threads() const override { return threads; }

    size_t bytes() const override { return ggml_nbytes(kv_a) + ggml_nbytes(kv_b) + ggml_nbytes(out); }

    void build(ggml_context * ctx, ggml_cgraph * gf, bool) override {
        kv_a = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, (int64_t) (p.d_k + p.d_v) * p.n_head_kv, n_tokens);
        kv_b = ggml_dup_tensor(ctx, kv_a);
        out  = ggml_minicache_merge(ctx, kv_a, kv_b, p);
        ggml_build_forward_expand(gf, out);
    }

    void initialize(rng_t & rng) override {
        a = random_floats(rng, ggml_nelements(kv_a));
        b = random_floats(rng, ggml_nelements(kv_b));
        for (int head = 0; head < n_tokens * p.n_head_kv; ++head) {
            const int token = head / p.n_head_kv;
            const int first = token * (p.d_k + p.d_v) * p.n_head_kv;
            relate(rng, first + head % p.n_head_kv * p.d_k, p.d_k);
            relate(rng, first + p.n_head_kv * p.d_k + head % p.n_head_kv * p.d_v, p.d_v);
        }
        set_rows(kv_a, a);
        set_rows(kv_b, b);
    }

    double error() const override {
        const std::vector<float> x = get_rows(out);

        double worst = 0.0;
        for (int i = 0; i < n_tokens; ++i) {
            for (int h = 0; h < p.n_head_kv; ++h) {
                worst = std::max(worst, head_error(x, i, h, 0));
                if (p.d_v > 0) {
                    worst = std::max(worst, head_error(x, i, h, 1));
                }
            }
        }
        return worst;
    }

  private:
    const ggml_minicache_merge_params p;
    const int                         n_tokens;
    const relation                    rel;
    const int                         threads;

    ggml_tensor * kv_a;
    ggml_tensor * kv_b;
    ggml_tensor * out;

    std::vector<float> a;
    std::vector<float> b;

    void scale(std::vector<float> & x, int first, int d, float factor) {
        for (int i = first; i < first + d; ++i) {
            x[i] *= factor;
        }
    }

    // b = sign*factor*a, turned by about `angle`
    void align(rng_t & rng, int first, int d, float factor, float angle) {
        const float turn = angle * std::normal_distribution<float>()(rng);
        for (int i = first; i < first + d; ++i) {
            b[i] = factor * (a[i] + (i == first ? turn : 0.0f));
        }
    }

    void relate(rng_t & rng, int first, int d) {
        if (d == 0) {
            return;
        }
        switch (rel) {
            case RANDOM:
            case N_RELATIONS:
                break;
            case PARALLEL:
                align(rng, first, d, 3.0f, 0.0f);
                break;
            case NEAR_PARALLEL:
                align(rng, first, d, 0.5f, powf(10.0f, -random_int(rng, 1, 7)));
                break;
            case OPPOSITE:
                align(rng, first, d, -2.0f, 0.0f);
                break;
            case NEAR_OPPOSITE:
                align(rng, first, d, -1.0f, powf(10.0f, -random_int(rng, 1, 7)));
                break;
            case ZERO_A:
                scale(a, first, d, 0.0f);
                break;
            case ZERO_B:
                scale(b, first, d, 0.0f);
                break;
            case ZERO_BOTH:
                scale(a, first, d, 0.0f);
                scale(b, first, d, 0.0f);
                break;
            case DENORMAL:
                scale(a, first, d, 1e-40f);
                scale(b, first, d, chance(rng, 0.5) ? 1e-40f : 1.0f);
                break;
            case HUGE_BOTH:
                scale(a, first, d, 1e30f);
                scale(b, first, d, 1e36f);
                break;
            case HUGE_AND_TINY:
                scale(a, first, d, 1e30f);
                scale(b, first, d, 1e-30f);
                break;
            case ONE_NUMBER:
                scale(a, first + 1, d - 1, 0.0f);
                scale(b, first, d - 1, 0.0f);
                break;
            case LARGE_MAGNITUDE:
                scale(a, first, d, 65504.0f / sqrtf((float) d));
                scale(b, first, d, 70000.0f);
                break;
        }
    }

    // side: 0 for K, 1 for V
    double head_error(const std::vector<float> & x, int token, int head, int side) const {
        const int     d      = side == 0 ? p.d_k : p.d_v;
        const int     n_embd = (p.d_k + p.d_v) * p.n_head_kv;
        const int     first  = side * p.d_k * p.n_head_kv + head * d;
        const float * row    = x.data() + (size_t) token * (n_embd + 6 * p.n_head_kv);
        const float * mags   = row + n_embd + 2 * side * p.n_head_kv + head;

        const float * x_a = &a[(size_t) token * n_embd + first];
        const float * x_b = &b[(size_t) token * n_embd + first];

        head_result e = merge(x_a, x_b, d, p.t);
        if (p.average) {
            e.mag_a = 1.0;
            e.mag_b = 1.0;
            for (int i = 0; i < d; ++i) {
                e.direction[i] = 0.5 * x_a[i] + 0.5 * x_b[i];
            }
        }

        const std::vector<float> direction(e.direction.begin(), e.direction.end());

        const float mag_a    = mags[0];
        const float mag_b    = mags[p.n_head_kv];
        const float distance = row[n_embd + (4 + side) * p.n_head_kv + head];

        if (!close(mag_a, e.mag_a) || !close(mag_b, e.mag_b) || !(fabs(distance - e.distance) <= 1e-6)) {
            return INFINITY;
        }
        return nmse(row + first, direction.data(), d);
    }

    // within float32's precision, which is absolute for denormal numbers
    static bool close(double x, double expected) { return fabs(x - expected) <= 1e-6 * expected + 2e-45; }
};

void add_merge_cases(test_cases & cases, bool perf) {
    const auto add = [&](int d_k, int d_v, int n_head_kv, int n_tokens, float t, relation rel, int threads,
                         bool average = false) {
        cases.push_back(std::make_unique<test_merge>(d_k, d_v, n_head_kv, n_tokens, t, rel, threads, average));
    };
    if (perf) {
        for (const int n_tokens : { 1, 32, 512 }) {
            add(128, 128, 8, n_tokens, 0.6f, RANDOM, 1);
        }
        return;
    }
    for (int rel = RANDOM; rel < N_RELATIONS; ++rel) {
        for (const float t : { 0.0f, 0.3f, 0.6f, 1.0f }) {
            add(64, 64, 2, 9, t, (relation) rel, 1);
        }
        add(80, 32, 3, 5, 0.6f, (relation) rel, 2);
        add(80, 32, 3, 5, 0.6f, (relation) rel, 2, true);
    }
    for (const int d : { 1, 2, 7, 8, 32, 80, 96, 128, 256, 576 }) {
        add(d, d, 2, 3, 0.6f, RANDOM, 1);
    }
    for (const int threads : { 1, 2, 3, 4 }) {
        for (const int n_tokens : { 1, 2, 7, 33 }) {
            add(64, 32, 5, n_tokens, 0.6f, RANDOM, threads);
        }
    }
    add(64, 0, 2, 7, 0.6f, RANDOM, 1);
}
