#include "minicache-code-unit.h"
#include "minicache-cuda-attn-schedule.h"
#include "minicache-cuda-launch.cuh"
#include "minicache-cuda.cuh"
#include "minicache-turn.h"

#include <cfloat>

// The encode op: a block encodes all layers' K, or V, of one KV head, for a tile of tokens. Products with the decoder are in
// float32, because levels are rounded from them, and a code is made once and read for as long as its token is in the cache.

static const int WARPS   = 4;
static const int THREADS = WARPS * WARP_SIZE;

struct encode_args {
    minicache_code_shape    shape;
    minicache_codec_offsets at;

    const char *    kv[MINICACHE_CODE_LAYERS];
    int64_t         kv_token;  // in bytes
    const char *    codec;
    char *          code[2];  // K, V
    int64_t         code_cell[2];
    int64_t         code_stream[2];
    int64_t         n_cells;
    const int64_t * rows;
    const int32_t * bases;
    float *         out;
    int32_t         n_tokens;
};

// what one block of threads works on
struct encode_part {
    minicache_code_layout layout;

    int           is_v;
    int           d;
    int           r;
    int           n_layer;
    int           first;   // where the head begins in a token's row, in numbers
    int           code;    // where its code row begins in a token's row of those, in bytes
    const float * mag;     // [n_layer][2]
    const float * weight;  // [n_layer*d]
    const float * gain;    // [r]
    const half *  decoder;

    __device__ encode_part(const encode_args & a, int i) {
        const int                   n    = a.shape.n_head_kv;
        const int                   head = i % n;
        const minicache_head_layout at   = minicache_codec_head(a.shape, a.codec, i / n, head);

        layout  = at.layout;
        is_v    = i / n;
        d       = is_v ? a.shape.d_v : a.shape.d_k;
        r       = minicache_code_size(layout);
        n_layer = a.shape.n_layer;
        first   = is_v ? a.shape.d_k * n + head * d : head * d;
        code    = at.row;
        mag     = (const float *) (a.codec + a.at.mag) + (head * 2 + is_v) * n_layer * 2;
        weight  = (const float *) (a.codec + (is_v ? a.at.weight_v : a.at.weight_k)) + head * n_layer * d;
        gain    = (const float *) (a.codec + (is_v ? a.at.gain_v : a.at.gain_k)) + at.coef;
        decoder = (const half *) (a.codec + (is_v ? a.at.dec_v : a.at.dec_k)) + (int64_t) n_layer * d * at.coef;
    }

    __device__ uint8_t * row(const encode_args & a, int token) const {
        const int64_t at = a.rows[token];
        return (uint8_t *) a.code[is_v] + at / a.n_cells * a.code_stream[is_v] + at % a.n_cells * a.code_cell[is_v] + code;
    }
};

// One warp: computes all layers' unit vectors, zeros for a zero vector, and their lengths. The numbers are first divided by the
// largest one, so that no square of a finite number overflows, and not all of them vanish.
static __device__ void unit_vectors(const encode_args & a, const encode_part & part, int token, const float * angles,
    float * scratch, float * u, double * length) {
    const int n_pair = part.is_v ? 0 : minicache_turn_pairs(a.shape);

    for (int side = 0; side < part.n_layer; ++side) {
        const float * x = (const float *) (a.kv[side] + token * a.kv_token) + part.first;
        float *       y = scratch + side * part.d;

        float top = 0.0f;
        for (int i = threadIdx.x; i < part.d; i += WARP_SIZE) {
            top = fmaxf(top, fabsf(x[i]));
        }
        top = warp_reduce_max(top);
        for (int i = threadIdx.x; i < part.d; i += WARP_SIZE) {
            y[i] = top > 0.0f ? x[i] / top : 0.0f;
        }
        __syncwarp();
        float sum = 0.0f;
        for (int i = threadIdx.x; i < part.d; i += WARP_SIZE) {
            const float z        = minicache_turned(a.shape.rope, n_pair, angles, angles + n_pair, 1, y, i);
            u[side * part.d + i] = z;
            sum += z * z;
        }
        sum = warp_reduce_sum(sum);

        const float norm = sqrtf(sum);
        for (int i = threadIdx.x; i < part.d; i += WARP_SIZE) {
            u[side * part.d + i] = norm > 0.0f ? u[side * part.d + i] / norm : 0.0f;
        }
        if (threadIdx.x == 0) {
            length[side] = (double) top * norm;
        }
        __syncwarp();
    }
}

// One warp: what coefficients z lose at a scale.
static __device__ float lost_at(const encode_part & part, const uint8_t * widths, const float * z, float scale) {
    float lost = 0.0f;
    for (int c = threadIdx.x; c < part.r; c += WARP_SIZE) {
        const float half_top = 0.5f * (float) ((1 << widths[c]) - 1);
        const float away     = z[c] - scale * ((float) minicache_code_level(z[c] / scale, widths[c]) - half_top);
        lost += away * away / part.gain[c];
    }
    return warp_reduce_sum(lost);
}

// One warp: quantizes coefficients z to levels, at the scale that loses least, and replaces them by what those stand for.
static __device__ void quantize(const encode_part & part, const uint8_t * widths, float * z, uint8_t * levels) {
    float best  = minicache_code_scale(MINICACHE_CODE_NO_SCALE);
    float least = lost_at(part, widths, z, best);
    for (int i = 0; i < MINICACHE_CODE_SCALES; ++i) {
        const float lost = lost_at(part, widths, z, minicache_code_scale(i));
        if (lost < least) {
            best  = minicache_code_scale(i);
            least = lost;
        }
    }
    for (int c = threadIdx.x; c < part.r; c += WARP_SIZE) {
        const int level = minicache_code_level(z[c] / best, widths[c]);
        levels[c]       = (uint8_t) level;
        z[c]            = (float) level - 0.5f * (float) ((1 << widths[c]) - 1);
    }
}

// One warp: does what minicache_encode_magnitudes() does on the CPU.
static __device__ void write_magnitudes(
    const encode_part & part, const float * u, const float * u_hat, const double * length, uint8_t * row, float * distance) {
    float error = 0.0f;
    for (int side = 0; side < part.n_layer; ++side) {
        const float * w  = part.weight + side * part.d;
        const float * x  = u + side * part.d;
        const float * y  = u_hat + side * part.d;
        float         xx = 0.0f;
        float         yy = 0.0f;
        for (int i = threadIdx.x; i < part.d; i += WARP_SIZE) {
            xx += w[i] * x[i] * x[i];
            yy += w[i] * y[i] * y[i];
        }
        xx = warp_reduce_sum(xx);
        yy = warp_reduce_sum(yy);

        const double  mag     = yy > 0.0f ? sqrt((double) xx / yy) * length[side] : 0.0;
        const float * range   = part.mag + 2 * side;
        const float   largest = mag < (double) FLT_MAX ? (float) mag : FLT_MAX;
        const uint8_t q       = minicache_code_mag(largest, range[0], range[1]);
        if (threadIdx.x == 0) {
            row[side] = q;
        }
        if (length[side] == 0.0) {
            continue;
        }
        const float scale = (float) (minicache_code_mag_value(q, range[0], range[1]) / length[side]);
        float       sum   = 0.0f;
        for (int i = threadIdx.x; i < part.d; i += WARP_SIZE) {
            const float difference = x[i] - scale * y[i];
            sum += difference * difference;
        }
        error += warp_reduce_sum(sum) / (float) part.n_layer;
    }
    if (threadIdx.x == 0) {
        if (part.n_layer % 2 != 0) {
            row[part.n_layer] = 0;
        }
        *distance = error < 1.0f ? error : 1.0f;  // 1 for NaN too
    }
}

struct encode_writer {
    const uint8_t * levels;
    uint16_t *      upper;
    uint16_t *      lower;

    template <int UPPER, int LOWER>
    __device__ void operator()() const {
        minicache_unit_write<UPPER, LOWER>(levels, upper, lower);
    }
};

template <int TOKENS>
static __global__ void __launch_bounds__(THREADS) encode_kernel(const encode_args a) {
    MINICACHE_SHARED(shared);

    const encode_part part(a, blockIdx.y);

    const int token_0 = blockIdx.x * TOKENS;
    const int n_token = min(TOKENS, a.n_tokens - token_0);
    const int thread  = threadIdx.y * WARP_SIZE + threadIdx.x;
    const int d       = part.n_layer * part.d;
    const int r       = part.r;

    __shared__ double lengths[TOKENS][MINICACHE_CODE_LAYERS];

    float *   u      = (float *) shared;                       // [TOKENS][n_layer*d]
    float *   u_hat  = u + TOKENS * d;                         // the same: first weighted, then decoded
    float *   coef   = u_hat + TOKENS * d;                     // [TOKENS][r]
    float *   angles = coef + TOKENS * r;                      // [WARPS][d]
    uint8_t * levels = (uint8_t *) (angles + WARPS * part.d);  // [TOKENS][r]
    uint8_t * widths = levels + TOKENS * r;                    // [r]

    for (int t = threadIdx.y; t < n_token; t += WARPS) {
        float *   turns  = angles + threadIdx.y * part.d;
        const int n_pair = part.is_v ? 0 : minicache_turn_pairs(a.shape);
        for (int i = threadIdx.x; i < n_pair; i += WARP_SIZE) {
            minicache_turn_angle(a.bases[token_0 + t], ((const float *) (a.codec + a.at.freq))[i], turns + i, turns + n_pair + i);
        }
        __syncwarp();
        unit_vectors(a, part, token_0 + t, turns, u_hat + t * d, u + t * d, lengths[t]);
        for (int i = threadIdx.x; i < d; i += WARP_SIZE) {
            u_hat[t * d + i] = part.weight[i] * u[t * d + i];
        }
    }
    for (int i = thread + n_token * d; i < TOKENS * d; i += THREADS) {
        u_hat[i] = 0.0f;
    }
    __syncthreads();

    for (int c = thread; c < r; c += THREADS) {
        widths[c] = (uint8_t) minicache_code_unit_at(part.layout, c / MINICACHE_CODE_UNIT).width;

        float z[TOKENS] = { 0.0f };
        for (int i = 0; i < d; ++i) {
            const float x = __half2float(part.decoder[i * r + c]);
#pragma unroll
            for (int t = 0; t < TOKENS; ++t) {
                z[t] += x * u_hat[t * d + i];
            }
        }
#pragma unroll
        for (int t = 0; t < TOKENS; ++t) {
            coef[t * r + c] = part.gain[c] * z[t];
        }
    }
    __syncthreads();

    for (int t = threadIdx.y; t < TOKENS; t += WARPS) {
        quantize(part, widths, coef + t * r, levels + t * r);
    }
    __syncthreads();

    for (int i = thread; i < d; i += THREADS) {
        const half2 * x = (const half2 *) (part.decoder + i * r);

        float y[TOKENS] = { 0.0f };
        for (int c = 0; c < r; c += 2) {
            const float2 z = __half22float2(x[c / 2]);
#pragma unroll
            for (int t = 0; t < TOKENS; ++t) {
                y[t] += z.x * coef[t * r + c] + z.y * coef[t * r + c + 1];
            }
        }
#pragma unroll
        for (int t = 0; t < TOKENS; ++t) {
            u_hat[t * d + i] = y[t];
        }
    }
    __syncthreads();

    const int n_unit = r / MINICACHE_CODE_UNIT;
    for (int i = thread; i < n_token * n_unit; i += THREADS) {
        const int                 t    = i / n_unit;
        const minicache_code_unit unit = minicache_code_unit_at(part.layout, i % n_unit);
        uint8_t *                 row  = part.row(a, token_0 + t);
        minicache_unit_dispatch(unit.width, encode_writer{ levels + t * r + i % n_unit * MINICACHE_CODE_UNIT,
                                                (uint16_t *) (row + unit.upper), (uint16_t *) (row + unit.lower) });
    }
    for (int t = threadIdx.y; t < n_token; t += WARPS) {
        float * distance = a.out + (int64_t) (token_0 + t) * 2 * a.shape.n_head_kv + blockIdx.y;
        write_magnitudes(part, u + t * d, u_hat + t * d, lengths[t], part.row(a, token_0 + t), distance);
    }
}

static size_t encode_shared(const minicache_code_shape & shape, int n_tokens) {
    const int d = std::max(shape.d_k, shape.d_v);
    const int n = shape.n_layer * d;
    const int r = std::max(shape.r_k, shape.r_v);
    return sizeof(float) * (2 * n_tokens * n + n_tokens * r + WARPS * d) + (n_tokens + 1) * r;
}

// The tokens of a tile: as many as a block has shared memory for, 8 at most; 0 if a single pair is too long.
static int encode_tokens(const minicache_code_shape & shape) {
    int n = 8;
    while (n >= 2 && encode_shared(shape, n) > MINICACHE_ATTN_SHARED) {
        n /= 2;
    }
    return n >= 2 ? n : 0;
}

void minicache_cuda_encode_forward(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    encode_args a = {};
    a.shape       = minicache_cuda_params<ggml_minicache_encode_params>(dst).shape;
    a.at          = minicache_codec_offsets_of(a.shape);
    for (int side = 0; side < a.shape.n_layer; ++side) {
        a.kv[side] = (const char *) dst->src[5 + side]->data;
    }
    a.kv_token = dst->src[5]->nb[1];
    a.codec    = (const char *) dst->src[0]->data;
    for (int is_v = 0; is_v < 2; ++is_v) {
        const ggml_tensor * code = dst->src[1 + is_v];
        a.code[is_v]             = (char *) code->data;
        a.code_cell[is_v]        = code->nb[1];
        a.code_stream[is_v]      = code->nb[2];
    }
    a.n_cells  = dst->src[1]->ne[1];
    a.rows     = (const int64_t *) dst->src[3]->data;
    a.bases    = (const int32_t *) dst->src[4]->data;
    a.out      = (float *) dst->data;
    a.n_tokens = (int32_t) dst->ne[1];

    const int  n      = encode_tokens(a.shape);
    const auto kernel = n == 8 ? encode_kernel<8> : n == 4 ? encode_kernel<4> : encode_kernel<2>;
    minicache_cuda_launch(kernel, dim3((a.n_tokens + n - 1) / n, 2 * a.shape.n_head_kv), dim3(WARP_SIZE, WARPS),
        encode_shared(a.shape, n), ctx.stream(), a);
}

bool minicache_cuda_encode_supported(const ggml_tensor * op) {
    const auto params = minicache_cuda_params<ggml_minicache_encode_params>(op);
    return params.reference == 0 && encode_tokens(params.shape) > 0;
}
