#include "minicache-cpu-attn.h"

// The specification of the attention: one query at a time, scores first, then the weighted sum, in double. Parallel over
// (stream, head, token).

size_t minicache_cpu_attn_ref_work_size(const ggml_tensor * op, int n_threads) {
    const minicache_attn a(op);

    return n_threads * (a.n_kv * sizeof(double) + (a.d_k + a.d_v) * sizeof(float) + a.d_v * sizeof(double));
}

static double dot(const float * a, const float * b, int64_t n) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; ++i) {
        sum += (double) a[i] * b[i];
    }
    return sum;
}

void minicache_cpu_attn_ref(const ggml_compute_params * params, ggml_tensor * dst) {
    const minicache_attn a(dst);

    const size_t work   = minicache_cpu_attn_ref_work_size(dst, 1);
    auto *       scores = (double *) ((char *) params->wdata + params->ith * work);
    double *     sum    = scores + a.n_kv;
    auto *       k      = (float *) (sum + a.d_v);
    float *      v      = k + a.d_k;

    const auto read = [&](int64_t s, int64_t h, int64_t cell, int32_t state) {
        if (state == GGML_MINICACHE_CELL_MERGED) {
            a.read_merged(s, h, cell, k, v);
        } else {
            a.read_exact(s, h, cell, state, k, v);
        }
    };

    for (int64_t ir = params->ith; ir < a.n_stream * a.n_head * a.n_tps; ir += params->nth) {
        const int64_t i      = ir % a.n_tps;
        const int64_t head   = ir / a.n_tps % a.n_head;
        const int64_t s      = ir / a.n_tps / a.n_head;
        const int64_t head_k = head / a.n_gqa;

        const int32_t *     cells = a.cells(s);
        const ggml_fp16_t * mask  = a.mask_row(s, i);
        const float         slope = a.slope(head);

        double score_max = a.sinks ? ((const float *) a.sinks->data)[head] : -INFINITY;

        for (int64_t cell = 0; cell < a.n_kv; ++cell) {
            const float bias = mask ? slope * GGML_CPU_FP16_TO_FP32(mask[cell]) : 0.0f;
            if (cells[cell] == GGML_MINICACHE_CELL_EMPTY || bias == -INFINITY) {
                scores[cell] = -INFINITY;
                continue;
            }
            read(s, head_k, cell, cells[cell]);
            const bool  merged = cells[cell] == GGML_MINICACHE_CELL_MERGED;
            const float mag_k  = merged ? a.magnitude(MINICACHE_MAG_K, s, head_k, cell) : 1.0f;

            scores[cell] = a.score((float) dot(a.query(s, head, i), k, a.d_k), mag_k, bias);
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
            read(s, head_k, cell, cells[cell]);
            const bool   merged = cells[cell] == GGML_MINICACHE_CELL_MERGED;
            const float  mag_v  = merged ? a.magnitude(MINICACHE_MAG_V, s, head_k, cell) : 1.0f;
            const double weight = exp(scores[cell] - score_max);

            total += weight;
            for (int64_t j = 0; j < a.d_v; ++j) {
                sum[j] += weight * mag_v * v[j];
            }
        }

        auto * out = (float *) ((char *) dst->data + s * dst->nb[3] + i * dst->nb[2] + head * dst->nb[1]);
        for (int64_t j = 0; j < a.d_v; ++j) {
            out[j] = total > 0.0 ? (float) (sum[j] / total) : 0.0f;
        }
    }
}
