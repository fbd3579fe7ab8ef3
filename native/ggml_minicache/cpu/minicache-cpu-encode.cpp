#include "minicache-cpu-encode.h"

#include "ggml-cpu.h"
#include "minicache-cpu-kernels.h"

// One KV head's K or V at a time, for a tile of tokens: both products with the decoder are the attention's inner loops.
//
// Parallel over (K or V, KV head) and, where those are fewer than the threads, over chunks of the tokens. A token's tile does
// not depend on the number of threads, so neither does its code.

static const int64_t TILE = 8;  // tokens

struct encode_plan {
    encode_plan(const minicache_encode & e, int n_threads) :
        n_head(2 * e.n_head_kv), n_tile((e.n_tokens + TILE - 1) / TILE),
        n_chunk(std::max<int64_t>(1, std::min(n_tile, (n_threads + n_head - 1) / n_head))),
        tiles((n_tile + n_chunk - 1) / n_chunk), d(e.n_layer * e.d_max), r(minicache_padded(e.r_max)), n_angle(e.n_angle()) {}

    const int64_t n_head;  // K and V
    const int64_t n_tile;
    const int64_t n_chunk;
    const int64_t tiles;  // in a chunk
    const int64_t d;      // numbers of all layers
    const int64_t r;      // padded
    const int64_t n_angle;

    // doubles, floats, bytes, as their alignment wants it
    size_t scratch_bytes() const {
        const size_t n = (n_angle + TILE * d) * sizeof(double) + (d * r + TILE * (2 * d + r)) * sizeof(float) + r;
        return (n + sizeof(double) - 1) / sizeof(double) * sizeof(double);
    }
};

size_t minicache_cpu_encode_work_size(const ggml_tensor * op, int n_threads) {
    return n_threads * encode_plan(minicache_encode(op), n_threads).scratch_bytes();
}

struct encode_tile {
    encode_tile(const minicache_encode & e, const encode_plan & plan, char * scratch) :
        e(e), u((double *) scratch + plan.n_angle), dec((float *) (u + TILE * plan.d)), y(dec + plan.d * plan.r),
        u_hat(y + TILE * plan.d), coef(u_hat + TILE * plan.d), levels((uint8_t *) (coef + TILE * plan.r)),
        angles(e.p.shape, e.codec->data, (double *) scratch) {}

    const minicache_encode & e;

    bool                is_v;
    int64_t             head_kv;
    minicache_code_head head;
    int64_t             r;  // padded

    double *  u;       // [TILE][n_layer*d]  unit vectors
    float *   dec;     // [n_layer*d][r]
    float *   y;       // [TILE][n_layer*d]  weighted
    float *   u_hat;   // [TILE][n_layer*d]  decoded
    float *   coef;    // [TILE][r]
    uint8_t * levels;  // [r]
    double    length[TILE][MINICACHE_CODE_LAYERS];

    minicache_code_angles angles;

    void begin(int64_t i_head) {
        is_v    = i_head >= e.n_head_kv;
        head_kv = i_head % e.n_head_kv;
        head    = is_v ? minicache_code_head_v(e.p.shape, e.codec->data, head_kv) :
                         minicache_code_head_k(e.p.shape, e.codec->data, head_kv);
        r       = minicache_padded(head.r);
        for (int64_t i = 0; i < head.n(); ++i) {
            ggml_cpu_fp16_to_fp32(head.dec + i * head.r, dec + i * r, head.r);
            std::fill(dec + i * r + head.r, dec + (i + 1) * r, 0.0f);
        }
    }

    void encode(ggml_tensor * dst, int64_t token_0, int64_t n) {
        const int64_t d = head.n();

        for (int64_t t = 0; t < n; ++t) {
            read(token_0 + t, u + t * d, length[t]);
            for (int64_t i = 0; i < d; ++i) {
                y[t * d + i] = (float) (head.weight[i] * u[t * d + i]);
            }
        }
        std::fill(coef, coef + n * r, 0.0f);
        minicache_accumulate(coef, r, n, y, d, dec, d, r);

        for (int64_t t = 0; t < n; ++t) {
            quantize(coef + t * r);
            minicache_code_write(head.layout, levels, row(token_0 + t));
        }
        minicache_scores(coef, n, dec, (int) d, r, u_hat, d);

        for (int64_t t = 0; t < n; ++t) {
            e.distances(dst, token_0 + t)[is_v * e.n_head_kv + head_kv] =
                minicache_encode_magnitudes(head, u + t * d, u_hat + t * d, length[t], row(token_0 + t));
        }
    }

  private:
    uint8_t * row(int64_t token) const { return is_v ? e.row_v(token, head_kv) : e.row_k(token, head_kv); }

    void read(int64_t token, double * x, double * lengths) {
        if (!is_v) {
            angles.set(e.base(token));
        }
        for (int side = 0; side < head.n_layer(); ++side) {
            double * x_side = x + side * head.d;
            lengths[side]   = is_v ? e.unit_v(side, token, head_kv, x_side) : e.unit_k(side, token, head_kv, angles, x_side);
        }
    }

    // projections to levels, and to what those stand for
    void quantize(float * z) {
        int c = 0;
        for (int i = 0; i < MINICACHE_CODE_WIDTHS; ++i) {
            const int   width = minicache_code_width(i);
            const float half  = 0.5f * (float) ((1 << width) - 1);
            for (const int end = c + MINICACHE_CODE_UNIT * head.layout.n_unit[i]; c < end; ++c) {
                levels[c] = (uint8_t) minicache_code_level(head.gain[c] * z[c], width);
                z[c]      = (float) levels[c] - half;
            }
        }
    }
};

void minicache_cpu_encode(const ggml_compute_params * params, ggml_tensor * dst) {
    const minicache_encode e(dst);
    const encode_plan      plan(e, params->nth);

    encode_tile tile(e, plan, (char *) params->wdata + params->ith * plan.scratch_bytes());

    for (int64_t it = params->ith; it < plan.n_head * plan.n_chunk; it += params->nth) {
        tile.begin(it / plan.n_chunk);

        const int64_t first = it % plan.n_chunk * plan.tiles * TILE;
        const int64_t last  = std::min(e.n_tokens, first + plan.tiles * TILE);
        for (int64_t t = first; t < last; t += TILE) {
            tile.encode(dst, t, std::min(TILE, last - t));
        }
    }
}
