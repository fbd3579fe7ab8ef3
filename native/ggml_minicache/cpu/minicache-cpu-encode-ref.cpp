#include "minicache-cpu-encode.h"

// The specification of encoding: one head of one token at a time, in double. Parallel over tokens.

// Work memory of one thread, in doubles: [n_angle] cosines and sines, [n_layer*d] unit vectors, [n_layer*d] decoded vectors, [r]
// coefficients, [r] coefficients as they are restored.
static int64_t ref_work(const minicache_encode & e) { return e.n_angle() + 2 * (e.n_layer * e.d_max + e.r_max); }

// Makes x a unit vector, zeros for a zero vector, and returns its length. In double no finite float32 vector overflows, and no
// denormal one vanishes.
static double normalize(double * x, int64_t d) {
    double sum = 0.0;
    for (int64_t i = 0; i < d; ++i) {
        sum += x[i] * x[i];
    }
    const double length = sqrt(sum);
    for (int64_t i = 0; i < d; ++i) {
        x[i] = length > 0.0 ? x[i] / length : 0.0;
    }
    return length;
}

size_t minicache_cpu_encode_ref_work_size(const ggml_tensor * op, int n_threads) {
    const minicache_encode e(op);

    return n_threads * (ref_work(e) * sizeof(double) + e.r_max);
}

void minicache_cpu_encode_ref(const ggml_compute_params * params, ggml_tensor * dst) {
    const minicache_encode e(dst);

    auto *   work   = (double *) params->wdata + params->ith * ref_work(e);
    double * u      = work + e.n_angle();
    double * u_hat  = u + e.n_layer * e.d_max;
    double * z      = u_hat + e.n_layer * e.d_max;
    double * coef   = z + e.r_max;
    auto *   levels = (uint8_t *) ((double *) params->wdata + params->nth * ref_work(e)) + params->ith * e.r_max;

    minicache_code_angles angles(e.p.shape, e.codec->data, work);

    // the levels of the coefficients z at a scale, and what is lost
    const auto quantize = [&](const minicache_code_head & head, float scale) {
        double lost = 0.0;
        int    c    = 0;
        for (int i = 0; i < MINICACHE_CODE_WIDTHS; ++i) {
            const int width = minicache_code_width(i);
            for (const int end = c + MINICACHE_CODE_UNIT * head.layout.n_unit[i]; c < end; ++c) {
                levels[c] = (uint8_t) minicache_code_level((float) (z[c] / scale), width);
                coef[c]   = levels[c] - 0.5 * ((1 << width) - 1);
                lost += (z[c] - scale * coef[c]) * (z[c] - scale * coef[c]) / head.gain[c];
            }
        }
        return lost;
    };

    const auto encode_head = [&](const minicache_code_head & head, const double * length, uint8_t * row) {
        for (int64_t c = 0; c < head.r; ++c) {
            z[c] = 0.0;
            for (int64_t j = 0; j < head.n(); ++j) {
                z[c] += (double) GGML_CPU_FP16_TO_FP32(head.dec[j * head.r + c]) * head.weight[j] * u[j];
            }
            z[c] *= head.gain[c];
        }
        int    best  = MINICACHE_CODE_NO_SCALE;
        double least = quantize(head, minicache_code_scale(best));
        for (int i = 0; i < MINICACHE_CODE_SCALES; ++i) {
            const double lost = quantize(head, minicache_code_scale(i));
            if (lost < least) {
                best  = i;
                least = lost;
            }
        }
        quantize(head, minicache_code_scale(best));
        minicache_code_write(head.layout, levels, row);

        for (int64_t j = 0; j < head.n(); ++j) {
            u_hat[j] = 0.0;
            for (int64_t i = 0; i < head.r; ++i) {
                u_hat[j] += (double) GGML_CPU_FP16_TO_FP32(head.dec[j * head.r + i]) * coef[i];
            }
        }

        const auto sums = [&](int side) {
            minicache_encode_sums s = { 0.0, 0.0 };
            for (int64_t j = side * head.d; j < (side + 1) * head.d; ++j) {
                s.x += head.weight[j] * u[j] * u[j];
                s.x_hat += head.weight[j] * u_hat[j] * u_hat[j];
            }
            return s;
        };
        const auto error = [&](int side, double scale) {
            double sum = 0.0;
            for (int64_t j = side * head.d; j < (side + 1) * head.d; ++j) {
                const double difference = u[j] - scale * u_hat[j];
                sum += difference * difference;
            }
            return sum;
        };
        return minicache_encode_magnitudes(head, length, row, sums, error);
    };

    for (int64_t t = params->ith; t < e.n_tokens; t += params->nth) {
        angles.set(e.base(t));

        for (int64_t h = 0; h < e.n_head_kv; ++h) {
            double length[MINICACHE_CODE_LAYERS];

            const minicache_code_head head_k = minicache_code_head_k(e.p.shape, e.codec->data, h);
            for (int side = 0; side < e.n_layer; ++side) {
                double * u_side = u + side * e.d_k;
                std::copy_n(e.k(side, t, h), e.d_k, u_side);
                minicache_turn(e.p.shape, angles.cosines(), angles.sines(), true, u_side);
                length[side] = normalize(u_side, e.d_k);
            }
            e.distances(dst, t)[h] = encode_head(head_k, length, e.row_k(head_k, t));

            const minicache_code_head head_v = minicache_code_head_v(e.p.shape, e.codec->data, h);
            for (int side = 0; side < e.n_layer; ++side) {
                double * u_side = u + side * e.d_v;
                std::copy_n(e.v(side, t, h), e.d_v, u_side);
                length[side] = normalize(u_side, e.d_v);
            }
            e.distances(dst, t)[e.n_head_kv + h] = encode_head(head_v, length, e.row_v(head_v, t));
        }
    }
}
