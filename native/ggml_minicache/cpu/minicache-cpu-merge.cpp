#include "minicache-cpu.h"
#include "minicache-math.h"

// Independent partial sums, which the compiler may keep in vector lanes without changing the order of additions.
static const int LANES = 8;

struct dot_sums {
    double aa;
    double bb;
    double ab;
};

static dot_sums dots(const float * a, const float * b, int64_t d) {
    double aa[LANES] = {};
    double bb[LANES] = {};
    double ab[LANES] = {};

    int64_t i = 0;
    for (; i + LANES <= d; i += LANES) {
        for (int j = 0; j < LANES; ++j) {
            const double x = a[i + j];
            const double y = b[i + j];
            aa[j] += x * x;
            bb[j] += y * y;
            ab[j] += x * y;
        }
    }
    for (int j = 0; i < d; ++i, ++j) {
        const double x = a[i];
        const double y = b[i];
        aa[j] += x * x;
        bb[j] += y * y;
        ab[j] += x * y;
    }

    dot_sums r = { 0.0, 0.0, 0.0 };
    for (int j = 0; j < LANES; ++j) {
        r.aa += aa[j];
        r.bb += bb[j];
        r.ab += ab[j];
    }
    return r;
}

// Merges one head of one token: writes its direction to e, and returns the blend.
static minicache_blend merge_head(const float * a, const float * b, float * e, int64_t d, const ggml_minicache_merge_params & p) {
    const dot_sums sums  = dots(a, b, d);
    const auto     slerp = minicache_blend_of(sums.aa, sums.bb, sums.ab, p.t);
    const auto     blend = p.average ? minicache_average_of(slerp) : slerp;

    for (int64_t i = 0; i < d; ++i) {
        e[i] = (float) (blend.w_a * a[i] + blend.w_b * b[i]);
    }
    return blend;
}

// Parallel over tokens.
void minicache_cpu_merge(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * kv_a = dst->src[0];
    const ggml_tensor * kv_b = dst->src[1];

    const auto p = minicache_params<ggml_minicache_merge_params>(dst);

    const int64_t n_head_kv = p.n_head_kv;
    const int64_t n_embd_k  = p.d_k * n_head_kv;
    const int64_t n_embd    = (p.d_k + p.d_v) * n_head_kv;

    for (int64_t i = params->ith; i < dst->ne[1]; i += params->nth) {
        const auto * a = (const float *) ((const char *) kv_a->data + i * kv_a->nb[1]);
        const auto * b = (const float *) ((const char *) kv_b->data + i * kv_b->nb[1]);
        auto *       e = (float *) ((char *) dst->data + i * dst->nb[1]);

        float * mag      = e + n_embd;
        float * distance = mag + 4 * n_head_kv;

        for (int64_t h = 0; h < n_head_kv; ++h) {
            const minicache_blend k = merge_head(a + h * p.d_k, b + h * p.d_k, e + h * p.d_k, p.d_k, p);

            const int64_t         iv = n_embd_k + h * p.d_v;
            const minicache_blend v  = merge_head(a + iv, b + iv, e + iv, p.d_v, p);

            mag[0 * n_head_kv + h]      = k.mag_a;
            mag[1 * n_head_kv + h]      = k.mag_b;
            mag[2 * n_head_kv + h]      = v.mag_a;
            mag[3 * n_head_kv + h]      = v.mag_b;
            distance[0 * n_head_kv + h] = k.distance;
            distance[1 * n_head_kv + h] = v.distance;
        }
    }
}
