#include "minicache-cpu-encode.h"

#include "minicache-cpu-kernels-rows.h"

// The vectorised encoding, in float32: one KV head's K or V at a time, for a tile of tokens. Both products with the decoder use
// the attention's inner loops, with the decoder where it lies in memory.
//
// Parallel over the tiles of all heads. Each thread takes consecutive tiles, so that it finds a decoder in the cache again. No
// sum depends on the number of threads or of other tokens, and so a token's code does not either.

static const int64_t TILE = 12;  // tokens, a multiple of the rows that either product takes at a time

struct encode_schedule {
    explicit encode_schedule(const minicache_encode & e) :
        n_tile((e.n_tokens + TILE - 1) / TILE), n_item(2 * e.n_head_kv * n_tile), d(e.n_layer * e.d_max), r(e.r_max),
        n_angle(e.n_angle()) {}

    const int64_t n_tile;
    const int64_t n_item;  // tiles of all heads of K and V
    const int64_t d;       // numbers of all layers together
    const int64_t r;
    const int64_t n_angle;

    // doubles, then floats, then bytes, so that all are aligned
    size_t scratch_bytes() const {
        const size_t n = n_angle * (sizeof(double) + sizeof(float)) + (TILE * (3 * d + r) + r) * sizeof(float) + r;
        return (n + sizeof(double) - 1) / sizeof(double) * sizeof(double);
    }
};

size_t minicache_cpu_encode_work_size(const ggml_tensor * op, int n_threads) {
    return n_threads * encode_schedule(minicache_encode(op)).scratch_bytes();
}

// x *= factor
static void multiply(float * x, float factor, int64_t n) {
    const minicache_vec f = vec_set(factor);
    for (int64_t i = 0; i < n; i += MINICACHE_LANES) {
        vec_store_first(x + i, n - i, vec_mul(f, vec_load_first(x + i, n - i)));
    }
}

static float sum_of_squares(const float * x, int64_t n) {
    minicache_vec sum = vec_zero();
    for (int64_t i = 0; i < n; i += MINICACHE_LANES) {
        const minicache_vec y = vec_load_first(x + i, n - i);
        sum                   = vec_fma(y, y, sum);
    }
    return vec_sum(sum);
}

static float largest(const float * x, int64_t n) {
    minicache_vec top = vec_zero();
    for (int64_t i = 0; i < n; i += MINICACHE_LANES) {
        const minicache_vec y = vec_load_first(x + i, n - i);
        top                   = vec_max(vec_max(y, vec_mul(vec_set(-1.0f), y)), top);
    }
    return vec_top(top);
}

struct encode_tile {
    encode_tile(const minicache_encode & e, const encode_schedule & schedule, char * scratch) :
        e(e), cosines((float *) ((double *) scratch + schedule.n_angle)), sines(cosines + schedule.n_angle / 2),
        u(cosines + schedule.n_angle), y(u + TILE * schedule.d), u_hat(y + TILE * schedule.d), coef(u_hat + TILE * schedule.d),
        steps(coef + TILE * schedule.r), levels((uint8_t *) (steps + schedule.r)),
        angles(e.p.shape, e.codec->data, (double *) scratch) {
        for (int i = 0; i < MINICACHE_CODE_SCALES; ++i) {
            scales[i]   = minicache_code_scale(i);
            inverses[i] = 1.0f / scales[i];
        }
    }

    void encode(ggml_tensor * dst, int64_t i_head, int64_t token_0, int64_t n) {
        is_v    = i_head >= e.n_head_kv;
        head_kv = i_head % e.n_head_kv;
        head    = is_v ? minicache_code_head_v(e.p.shape, e.codec->data, head_kv) :
                         minicache_code_head_k(e.p.shape, e.codec->data, head_kv);

        const int64_t d = head.n();
        for (int64_t t = 0; t < n; ++t) {
            read(token_0 + t, u + t * d, y + t * d, length[t]);
        }
        for (int64_t c = 0; c < head.r; ++c) {
            steps[c] = 1.0f / head.gain[c];
        }
        std::fill(coef, coef + n * head.r, 0.0f);
        minicache_accumulate(coef, head.r, n, y, d, head.dec, d, head.r);

        for (int64_t t = 0; t < n; ++t) {
            quantize(coef + t * head.r);
            minicache_code_write(head.layout, levels, row(token_0 + t));
        }
        decode(n);

        for (int64_t t = 0; t < n; ++t) {
            e.distances(dst, token_0 + t)[is_v * e.n_head_kv + head_kv] =
                magnitudes(u + t * d, u_hat + t * d, length[t], row(token_0 + t));
        }
    }

  private:
    const minicache_encode & e;

    bool                is_v;
    int64_t             head_kv;
    minicache_code_head head;

    float *   cosines;  // [n_pair]
    float *   sines;
    float *   u;       // [TILE][n_layer*d]  unit vectors
    float *   y;       // [TILE][n_layer*d]  weighted
    float *   u_hat;   // [TILE][n_layer*d]  decoded
    float *   coef;    // [TILE][r]
    float *   steps;   // [r]  squares of the steps, relative to each other
    uint8_t * levels;  // [r]
    double    length[TILE][MINICACHE_CODE_LAYERS];

    float scales[MINICACHE_CODE_SCALES];
    float inverses[MINICACHE_CODE_SCALES];

    minicache_code_angles angles;

    uint8_t * row(int64_t token) const { return is_v ? e.row_v(head, token) : e.row_k(head, token); }

    // Reads a token's unit vectors, zeros for a zero vector, of K at its block-relative position, and multiplies them by the
    // weights.
    void read(int64_t token, float * x, float * weighted, double * lengths) {
        if (!is_v && angles.set(e.base(token))) {
            std::copy_n(angles.cosines(), minicache_turn_pairs(e.p.shape), cosines);
            std::copy_n(angles.sines(), minicache_turn_pairs(e.p.shape), sines);
        }
        for (int side = 0; side < head.n_layer(); ++side) {
            const float * in = is_v ? e.v(side, token, head_kv) : e.k(side, token, head_kv);
            lengths[side]    = unit(in, x + side * head.d);
        }
        for (int64_t i = 0; i < head.n(); i += MINICACHE_LANES) {
            const int64_t n = head.n() - i;
            vec_store_first(weighted + i, n, vec_mul(vec_load_first(head.weight + i, n), vec_load_first(x + i, n)));
        }
    }

    // Writes the unit vector of `in` to x, and returns its length. The numbers are first brought near 1 by a power of two, so
    // that no finite vector overflows and no denormal one vanishes. It takes two steps, as that power may be out of float32's
    // range.
    double unit(const float * in, float * x) const {
        int exponent;
        frexpf(largest(in, head.d), &exponent);
        std::copy_n(in, head.d, x);
        multiply(x, ldexpf(1.0f, -exponent / 2), head.d);
        multiply(x, ldexpf(1.0f, -exponent - -exponent / 2), head.d);
        if (!is_v) {
            minicache_turn(e.p.shape, cosines, sines, true, x);
        }
        const float sum = sum_of_squares(x, head.d);
        if (sum > 0.0f && sum < INFINITY) {
            multiply(x, 1.0f / sqrtf(sum), head.d);
            return ldexp(sqrt((double) sum), exponent);
        }
        std::fill(x, x + head.d, 0.0f);
        return sum == 0.0f ? 0.0 : NAN;
    }

    // Quantizes the projections z to levels, at the scale that loses least, and replaces them by the coefficients that those
    // stand for.
    void quantize(float * z) {
        for (int64_t c = 0; c < head.r; ++c) {
            z[c] *= head.gain[c];
        }
        const float inverse = 1.0f / best_scale(z);
        for_units([&](int64_t at, float top) { quantize_unit(inverse, top, z + at, levels + at); });
    }

    // Calls fn with the first coefficient of each unit and the largest level of its width.
    template <typename F>
    void for_units(const F & fn) const {
        int64_t at = 0;
        for (int i = 0; i < MINICACHE_CODE_WIDTHS; ++i) {
            for (int u = 0; u < head.layout.n_unit[i]; ++u, at += MINICACHE_CODE_UNIT) {
                fn(at, (float) ((1 << minicache_code_width(i)) - 1));
            }
        }
    }

    // The scale at which coefficients z lose least.
    float best_scale(const float * z) const {
        minicache_vec lost[MINICACHE_CODE_SCALES];
        for (minicache_vec & x : lost) {
            x = vec_zero();
        }
        for_units([&](int64_t at, float top) {
            for (int64_t c = at; c < at + MINICACHE_CODE_UNIT; c += MINICACHE_LANES) {
                add_losses(vec_load(z + c), vec_load(steps + c), top, lost);
            }
        });
        int   best  = MINICACHE_CODE_NO_SCALE;
        float least = vec_sum(lost[best]);
        for (int i = 0; i < MINICACHE_CODE_SCALES; ++i) {
            const float sum = vec_sum(lost[i]);
            if (sum < least) {
                best  = i;
                least = sum;
            }
        }
        return scales[best];
    }

    // Adds what some coefficients z lose at each scale.
    void add_losses(minicache_vec z, minicache_vec step, float top, minicache_vec (&lost)[MINICACHE_CODE_SCALES]) const {
        // a number below 2^22 is a whole one after this has been added to it
        const minicache_vec whole   = vec_set(12582912.0f);
        const minicache_vec half    = vec_set(0.5f * top);
        const minicache_vec largest = vec_set(top);
        for (int i = 0; i < MINICACHE_CODE_SCALES; ++i) {
            const minicache_vec x     = vec_min(vec_max(vec_fma(z, vec_set(inverses[i]), half), vec_zero()), largest);
            const minicache_vec level = vec_sub(vec_add(x, whole), whole);
            const minicache_vec away  = vec_fma(vec_set(scales[i]), vec_sub(half, level), z);
            lost[i]                   = vec_fma(vec_mul(away, away), step, lost[i]);
        }
    }

    // As minicache_code_level(), except for numbers midway between two levels.
    static void quantize_unit(float inverse, float top, float * MINICACHE_RESTRICT z, uint8_t * MINICACHE_RESTRICT level) {
        for (int c = 0; c < MINICACHE_CODE_UNIT; ++c) {
            const float x = inverse * z[c] + 0.5f * top;
            const float l = x > 0.0f ? x : 0.0f;  // 0 for NaN too
            const int   q = (int) ((l < top ? l : top) + 0.5f);
            level[c]      = (uint8_t) q;
            z[c]          = (float) q - 0.5f * top;
        }
    }

    void decode(int64_t n) {
        const int64_t d = head.n();
        for (int64_t i = 0; i < d; i += MINICACHE_BLOCK) {
            const int    n_row = (int) std::min<int64_t>(MINICACHE_BLOCK, d - i);
            const void * rows[MINICACHE_BLOCK];
            for (int c = 0; c < MINICACHE_BLOCK; ++c) {
                rows[c] = head.dec + (i + std::min(c, n_row - 1)) * head.r;
            }
            float x[TILE * MINICACHE_BLOCK];
            minicache_scores_rows<ggml_fp16_t>(coef, head.r, n, { rows, n_row, 0 }, head.r, x);
            for (int64_t t = 0; t < n; ++t) {
                std::copy_n(x + t * MINICACHE_BLOCK, n_row, u_hat + t * d + i);
            }
        }
    }

    float magnitudes(const float * x, const float * x_hat, const double * lengths, uint8_t * row) const {
        const auto sums = [&](int side) {
            minicache_vec sum     = vec_zero();
            minicache_vec sum_hat = vec_zero();
            for (int64_t i = 0; i < head.d; i += MINICACHE_LANES) {
                const int64_t       n = head.d - i;
                const minicache_vec w = vec_load_first(head.weight + side * head.d + i, n);
                const minicache_vec a = vec_load_first(x + side * head.d + i, n);
                const minicache_vec b = vec_load_first(x_hat + side * head.d + i, n);
                sum                   = vec_fma(vec_mul(w, a), a, sum);
                sum_hat               = vec_fma(vec_mul(w, b), b, sum_hat);
            }
            return minicache_encode_sums{ vec_sum(sum), vec_sum(sum_hat) };
        };
        const auto error = [&](int side, double scale) {
            const minicache_vec s   = vec_set(-(float) scale);
            minicache_vec       sum = vec_zero();
            for (int64_t i = 0; i < head.d; i += MINICACHE_LANES) {
                const int64_t       n = head.d - i;
                const minicache_vec a = vec_load_first(x + side * head.d + i, n);
                const minicache_vec b = vec_fma(s, vec_load_first(x_hat + side * head.d + i, n), a);
                sum                   = vec_fma(b, b, sum);
            }
            return (double) vec_sum(sum);
        };
        return minicache_encode_magnitudes(head, lengths, row, sums, error);
    }
};

void minicache_cpu_encode(const ggml_compute_params * params, ggml_tensor * dst) {
    const minicache_encode e(dst);
    const encode_schedule  schedule(e);

    encode_tile tile(e, schedule, (char *) params->wdata + params->ith * schedule.scratch_bytes());

    const int64_t end = schedule.n_item * (params->ith + 1) / params->nth;
    for (int64_t i = schedule.n_item * params->ith / params->nth; i < end; ++i) {
        const int64_t t = i % schedule.n_tile * TILE;
        tile.encode(dst, i / schedule.n_tile, t, std::min(TILE, e.n_tokens - t));
    }
}
