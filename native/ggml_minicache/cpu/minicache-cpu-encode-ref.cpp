#include "minicache-cpu-encode.h"

// The specification of encoding: one head of one token at a time, in double. Parallel over tokens.

// memory of one thread, in doubles: [n_angle] cosines and sines, [n_layer*d] unit vectors, as many decoded ones, [r] coefficients
static int64_t ref_work(const minicache_encode & e) { return e.n_angle() + 2 * e.n_layer * e.d_max + e.r_max; }

size_t minicache_cpu_encode_ref_work_size(const ggml_tensor * op, int n_threads) {
    const minicache_encode e(op);

    return n_threads * (ref_work(e) * sizeof(double) + e.r_max);
}

void minicache_cpu_encode_ref(const ggml_compute_params * params, ggml_tensor * dst) {
    const minicache_encode e(dst);

    auto *   work   = (double *) params->wdata + params->ith * ref_work(e);
    double * u      = work + e.n_angle();
    double * u_hat  = u + e.n_layer * e.d_max;
    double * coef   = u_hat + e.n_layer * e.d_max;
    auto *   levels = (uint8_t *) ((double *) params->wdata + params->nth * ref_work(e)) + params->ith * e.r_max;

    minicache_code_angles angles(e.p.shape, e.codec->data, work);

    const auto encode_head = [&](const minicache_code_head & head, const double * length, uint8_t * row) {
        int c = 0;
        for (int i = 0; i < MINICACHE_CODE_WIDTHS; ++i) {
            const int width = minicache_code_width(i);
            for (const int end = c + MINICACHE_CODE_UNIT * head.layout.n_unit[i]; c < end; ++c) {
                double z = 0.0;
                for (int64_t j = 0; j < head.n(); ++j) {
                    z += (double) GGML_CPU_FP16_TO_FP32(head.dec[j * head.r + c]) * head.weight[j] * u[j];
                }
                levels[c] = (uint8_t) minicache_code_level((float) (head.gain[c] * z), width);
                coef[c]   = levels[c] - 0.5 * ((1 << width) - 1);
            }
        }
        minicache_code_write(head.layout, levels, row);

        for (int64_t j = 0; j < head.n(); ++j) {
            u_hat[j] = 0.0;
            for (int64_t i = 0; i < head.r; ++i) {
                u_hat[j] += (double) GGML_CPU_FP16_TO_FP32(head.dec[j * head.r + i]) * coef[i];
            }
        }
        return minicache_encode_magnitudes(head, u, u_hat, length, row);
    };

    for (int64_t t = params->ith; t < e.n_tokens; t += params->nth) {
        angles.set(e.base(t));

        for (int64_t h = 0; h < e.n_head_kv; ++h) {
            double length[MINICACHE_CODE_LAYERS];

            const minicache_code_head head_k = minicache_code_head_k(e.p.shape, e.codec->data, h);
            for (int side = 0; side < e.n_layer; ++side) {
                length[side] = e.unit_k(side, t, h, angles, u + side * head_k.d);
            }
            e.distances(dst, t)[h] = encode_head(head_k, length, e.row_k(t, h));

            const minicache_code_head head_v = minicache_code_head_v(e.p.shape, e.codec->data, h);
            for (int side = 0; side < e.n_layer; ++side) {
                length[side] = e.unit_v(side, t, h, u + side * head_v.d);
            }
            e.distances(dst, t)[e.n_head_kv + h] = encode_head(head_v, length, e.row_v(t, h));
        }
    }
}
