#include "minicache-cpu-attn.h"

#include <algorithm>

// The specification of the attention: one query at a time, scores first, then the weighted sum, in double. Parallel over
// (stream, head, token).

// work memory of one thread, in doubles
static int64_t ref_work(const minicache_attn & a) {
    const int64_t row = std::max(a.d_k, a.r_k) + std::max(a.d_v, a.r_v);
    return a.n_kv + a.d_v + std::max(a.d_k, a.d_v) + 2 * minicache_turn_pairs(a.shape) + (row + 1) / 2;
}

size_t minicache_cpu_attn_ref_work_size(const ggml_tensor * op, int n_threads) {
    return n_threads * ref_work(minicache_attn(op)) * sizeof(double);
}

static double dot(const float * a, const double * b, int64_t n) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; ++i) {
        sum += a[i] * b[i];
    }
    return sum;
}

static void decode(const minicache_code_head & head, int side, const uint8_t * row, float * coef, double * out) {
    minicache_code_coefficients(head.layout, row, coef);
    for (int64_t i = 0; i < head.d; ++i) {
        out[i] = 0.0;
        for (int64_t c = 0; c < head.r; ++c) {
            out[i] += (double) GGML_CPU_FP16_TO_FP32(head.decoder(side)[i * head.r + c]) * coef[c];
        }
    }
}

void minicache_cpu_attn_ref(const ggml_compute_params * params, ggml_tensor * dst) {
    const minicache_attn a(dst);

    double * const scores = (double *) params->wdata + params->ith * ref_work(a);
    double * const sum    = scores + a.n_kv;
    double * const entry  = sum + a.d_v;  // K or V, without magnitudes
    double * const turns  = entry + std::max(a.d_k, a.d_v);
    float * const  row_k  = (float *) (turns + 2 * minicache_turn_pairs(a.shape));
    float * const  row_v  = row_k + std::max(a.d_k, a.r_k);

    minicache_code_angles angles(a.shape, a.coded ? a.codec->data : nullptr, turns);

    const auto read = [&](bool is_v, int64_t s, int64_t h, int64_t cell, int32_t state) {
        if (a.coded && state == GGML_MINICACHE_CELL_MERGED) {
            if (is_v) {
                const minicache_code_head code = a.head_v(h);
                decode(code, a.p.side, a.code_v(code, s, cell), row_v, entry);
                return;
            }
            // R(b)û: the kernel turns the query back instead, so the two ways check each other
            const minicache_code_head code = a.head_k(h);
            decode(code, a.p.side, a.code_k(code, s, cell), row_k, entry);
            angles.set(a.bases(s)[cell]);
            minicache_turn(a.shape, angles.cosines(), angles.sines(), false, entry);
            return;
        }
        if (state == GGML_MINICACHE_CELL_MERGED) {
            a.read_merged(s, h, cell, row_k, row_v);
        } else {
            a.read_exact(s, h, cell, state, row_k, row_v);
        }
        std::copy_n(is_v ? row_v : row_k, is_v ? a.d_v : a.d_k, entry);
    };

    const auto magnitude = [&](minicache_mag which, int64_t s, int64_t h, int64_t cell) {
        if (!a.coded) {
            return a.magnitude(which, s, h, cell);
        }
        const minicache_code_head code = which == MINICACHE_MAG_K ? a.head_k(h) : a.head_v(h);
        return code.magnitude(which == MINICACHE_MAG_K ? a.code_k(code, s, cell) : a.code_v(code, s, cell), a.p.side);
    };

    for (int64_t ir = params->ith; ir < a.n_stream * a.n_head * a.n_tps; ir += params->nth) {
        const int64_t i      = ir % a.n_tps;
        const int64_t head   = ir / a.n_tps % a.n_head;
        const int64_t s      = ir / a.n_tps / a.n_head;
        const int64_t head_k = head / a.n_gqa;

        const ggml_fp16_t * mask  = a.mask_row(s, i);
        const float         slope = a.slope(head);

        double score_max = a.sinks ? ((const float *) a.sinks->data)[head] : -INFINITY;

        for (int64_t cell = 0; cell < a.n_kv; ++cell) {
            const float bias = mask ? slope * GGML_CPU_FP16_TO_FP32(mask[cell]) : 0.0f;
            if (a.state(s, cell) == GGML_MINICACHE_CELL_EMPTY || bias == -INFINITY) {
                scores[cell] = -INFINITY;
                continue;
            }
            read(false, s, head_k, cell, a.state(s, cell));
            const bool  merged = a.state(s, cell) == GGML_MINICACHE_CELL_MERGED;
            const float mag_k  = merged ? magnitude(MINICACHE_MAG_K, s, head_k, cell) : 1.0f;

            scores[cell] = a.score((float) dot(a.query(s, head, i), entry, a.d_k), mag_k, bias);
            score_max    = scores[cell] > score_max ? scores[cell] : score_max;
        }

        double total = a.sinks ? exp(((const float *) a.sinks->data)[head] - score_max) : 0.0;
        for (int64_t j = 0; j < a.d_v; ++j) {
            sum[j] = 0.0;
        }
        for (int64_t cell = 0; cell < a.n_kv; ++cell) {
            if (scores[cell] == -INFINITY) {
                continue;
            }
            read(true, s, head_k, cell, a.state(s, cell));
            const bool   merged = a.state(s, cell) == GGML_MINICACHE_CELL_MERGED;
            const float  mag_v  = merged ? magnitude(MINICACHE_MAG_V, s, head_k, cell) : 1.0f;
            const double weight = exp(scores[cell] - score_max);

            total += weight;
            for (int64_t j = 0; j < a.d_v; ++j) {
                sum[j] += weight * mag_v * entry[j];
            }
        }

        auto * out = (float *) ((char *) dst->data + s * dst->nb[3] + i * dst->nb[2] + head * dst->nb[1]);
        for (int64_t j = 0; j < a.d_v; ++j) {
            out[j] = total > 0.0 ? (float) (sum[j] / total) : 0.0f;
        }
    }
}
