#pragma once

// What the scalar and the vectorised encoding share: the op's operands by name, and how magnitudes are chosen.

#include "minicache-cpu-code.h"
#include "minicache-cpu.h"
#include "simd-mappings.h"

#include <algorithm>
#include <cfloat>

struct minicache_encode {
    explicit minicache_encode(const ggml_tensor * dst) :
        p(minicache_params<ggml_minicache_encode_params>(dst)), codec(dst->src[0]), code_k(dst->src[1]), code_v(dst->src[2]),
        n_layer(p.shape.n_layer), n_tokens(dst->ne[1]), n_head_kv(p.shape.n_head_kv), d_k(p.shape.d_k), d_v(p.shape.d_v),
        d_max(std::max(d_k, d_v)), r_max(std::max(p.shape.r_k, p.shape.r_v)), rows((const int64_t *) dst->src[3]->data),
        bases((const int32_t *) dst->src[4]->data), kv(dst->src + 5) {}

    const ggml_minicache_encode_params p;

    const ggml_tensor * codec;
    const ggml_tensor * code_k;
    const ggml_tensor * code_v;

    const int64_t n_layer;
    const int64_t n_tokens;
    const int64_t n_head_kv;
    const int64_t d_k;
    const int64_t d_v;
    const int64_t d_max;
    const int64_t r_max;

    int64_t n_angle() const { return 2 * minicache_turn_pairs(p.shape); }

    int32_t base(int64_t token) const { return bases[token]; }

    // the code rows of a head's K and V
    uint8_t * row_k(const minicache_code_head & head, int64_t token) const { return row(code_k, token) + head.row; }

    uint8_t * row_v(const minicache_code_head & head, int64_t token) const { return row(code_v, token) + head.row; }

    // the token's distances: of K for each KV head, then of V
    float * distances(ggml_tensor * dst, int64_t token) const { return (float *) ((char *) dst->data + token * dst->nb[1]); }

    // one layer's K or V of a token
    const float * k(int side, int64_t token, int64_t head_kv) const { return layer(side, token) + head_kv * d_k; }

    const float * v(int side, int64_t token, int64_t head_kv) const {
        return layer(side, token) + n_head_kv * d_k + head_kv * d_v;
    }

  private:
    const int64_t *             rows;
    const int32_t *             bases;
    ggml_tensor * const * const kv;  // of each layer

    const float * layer(int side, int64_t token) const {
        return (const float *) ((const char *) kv[side]->data + token * kv[side]->nb[1]);
    }

    uint8_t * row(const ggml_tensor * code, int64_t token) const {
        const int64_t n_cells = code->ne[1];
        return (uint8_t *) code->data + rows[token] / n_cells * code->nb[2] + rows[token] % n_cells * code->nb[1];
    }
};

struct minicache_encode_sums {
    double x;      // Σ w*u², w the weights
    double x_hat;  // Σ w*û²
};

// Writes each layer's magnitude as a byte of `row`, from the lengths of the layers' vectors. Returns the squared error of what
// is then restored, relative to the squared length and averaged over the layers, at most 1.
//   sums(side)          minicache_encode_sums of a layer
//   error(side, scale)  |u - scale*û|² of a layer
template <typename Sums, typename Error>
static inline float minicache_encode_magnitudes(
    const minicache_code_head & head, const double * length, uint8_t * row, const Sums & sums, const Error & error) {
    const int n_layer = (int) head.n_layer();

    double mean = 0.0;
    for (int side = 0; side < n_layer; ++side) {
        const minicache_encode_sums s = sums(side);

        const double mag = s.x_hat > 0.0 ? sqrt(s.x / s.x_hat) * length[side] : 0.0;

        row[side] = minicache_code_mag((float) std::min(mag, (double) FLT_MAX), head.mag[2 * side], head.mag[2 * side + 1]);
        if (length[side] != 0.0) {
            mean += error(side, head.magnitude(row, side) / length[side]) / n_layer;
        }
    }
    if (n_layer % 2 != 0) {
        row[n_layer] = 0;
    }
    return mean < 1.0 ? (float) mean : 1.0f;  // 1 for NaN too
}
