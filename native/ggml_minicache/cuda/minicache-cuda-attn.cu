#include "minicache-cuda-attn.cuh"

#include "fattn.cuh"
#include "minicache-cuda-attn-kernel.cuh"
#include "minicache-cuda.cuh"

#include <cmath>

// The attention op. In decode it makes the table of turned queries, attends in chunks, and combines the chunks. For prompts it
// restores K and V to f16 and calls ggml-cuda's own flash attention, if that supports the shape. All scratch memory comes from
// ggml-cuda's pool, and nothing waits for the device.

// A batch is a prompt if it has more tokens than DECODE_TOKENS, and so many queries on a KV head that restoring each entry once
// for all of them pays. In decode nothing is restored.
static const int DECODE_TOKENS = 8;
static const int RESTORE_ROWS  = 64;

minicache_cuda_attn minicache_cuda_attn_of(const ggml_tensor * dst) {
    const bool coded = ggml_minicache_get_op(dst) == GGML_MINICACHE_OP_ATTN_CODE;

    const ggml_tensor * q     = dst->src[0];
    const ggml_tensor * k     = dst->src[1];
    const ggml_tensor * mag   = dst->src[3];
    const ggml_tensor * mask  = dst->src[7];
    const ggml_tensor * index = dst->src[8];

    const auto data     = [](const ggml_tensor * x) { return x ? x->data : nullptr; };
    const auto row_size = [](const ggml_tensor * x) { return (int32_t) ggml_row_size(x->type, x->ne[0]); };

    minicache_cuda_attn a = {};
    if (coded) {
        const auto params = minicache_cuda_params<ggml_minicache_attn_code_params>(dst);

        a.p           = params.attn;
        a.shape       = params.shape;
        a.at          = minicache_codec_offsets_of(a.shape);
        a.codec       = (const char *) mag->data;
        a.cells_bases = index->nb[2] / sizeof(int32_t);
    } else {
        a.p = minicache_cuda_params<ggml_minicache_attn_params>(dst);
    }
    a.dims.d_k       = (int32_t) q->ne[0];
    a.dims.d_v       = (int32_t) dst->ne[0];
    a.dims.r_k       = coded ? a.shape.r_k : a.dims.d_k;
    a.dims.r_v       = coded ? a.shape.r_v : a.dims.d_v;
    a.dims.bytes_k   = coded ? a.shape.row_k : row_size(dst->src[1]);
    a.dims.bytes_v   = coded ? a.shape.row_v : row_size(dst->src[2]);
    a.dims.n_tps     = (int32_t) q->ne[1];
    a.dims.n_head    = (int32_t) q->ne[2];
    a.dims.n_head_kv = coded ? a.shape.n_head_kv : (int32_t) k->ne[1];
    a.dims.n_gqa     = a.dims.n_head / a.dims.n_head_kv;
    a.dims.n_kv      = (int32_t) k->ne[2];
    a.dims.n_stream  = (int32_t) q->ne[3];
    a.dims.coded     = coded;

    a.q      = minicache_cuda_rows_of(q);
    a.k      = minicache_cuda_rows_of(k);
    a.v      = minicache_cuda_rows_of(dst->src[2]);
    a.pool_k = minicache_cuda_rows_of(dst->src[4]);
    a.pool_v = minicache_cuda_rows_of(dst->src[5]);

    if (!coded && mag) {
        a.mag = (const char *) mag->data;
        for (int i = 0; i < 3; ++i) {
            a.mag_nb[i] = mag->nb[i + 1];
        }
    }
    a.kv_cur       = (const float *) data(dst->src[6]);
    a.mask         = (const char *) data(mask);
    a.mask_token   = mask ? mask->nb[1] : 0;
    a.mask_stream  = mask ? mask->nb[3] : 0;
    a.cells        = (const int32_t *) data(index);
    a.cells_stream = index ? index->nb[1] / sizeof(int32_t) : 0;
    a.sinks        = (const float *) data(dst->src[9]);

    a.n_head_log2 = 1u << (uint32_t) floor(log2((double) a.dims.n_head));
    a.m0          = powf(2.0f, -a.p.max_bias / (float) a.n_head_log2);
    a.m1          = powf(2.0f, -(a.p.max_bias / 2.0f) / (float) a.n_head_log2);
    return a;
}

//
// combining the chunks
//
// A row's results over the chunks are brought under one maximum.

static __global__ void __launch_bounds__(MINICACHE_ATTN_WARPS * WARP_SIZE)
    combine_kernel(const MINICACHE_PARAMETER minicache_cuda_attn a, const int n_split, const float * partials, char * dst,
        const int64_t nb_head, const int64_t nb_token, const int64_t nb_stream) {
    MINICACHE_SHARED(shared);

    __shared__ float warps[3][MINICACHE_ATTN_WARPS];  // maxima and sums of the warps

    const int THREADS = MINICACHE_ATTN_WARPS * WARP_SIZE;
    const int thread  = threadIdx.y * WARP_SIZE + threadIdx.x;
    const int token   = blockIdx.x;
    const int head    = blockIdx.y;
    const int stream  = blockIdx.z;
    const int n       = minicache_attn_partial(a.dims);

    const minicache_cuda_head head_v = a.dims.coded ? a.head_v(head / a.dims.n_gqa) : minicache_cuda_head{};
    const int                 n_acc  = a.dims.d_v + head_v.r;

    float * acc     = (float *) shared;  // [n_acc]
    float * factors = acc + n_acc;       // [n_split]

    const float * x = partials + (((int64_t) stream * a.dims.n_head + head) * a.dims.n_tps + token) * n_split * n;

    float max_score = a.sinks ? a.sinks[head] : -INFINITY;
    float max_value = -INFINITY;
    for (int i = thread; i < n_split; i += THREADS) {
        max_score = fmaxf(max_score, x[i * n]);
        max_value = fmaxf(max_value, x[i * n + 2]);
    }
    max_score = warp_reduce_max(max_score);
    max_value = warp_reduce_max(max_value);
    if (threadIdx.x == 0) {
        warps[0][threadIdx.y] = max_score;
        warps[1][threadIdx.y] = max_value;
    }
    __syncthreads();
    for (int w = 0; w < MINICACHE_ATTN_WARPS; ++w) {
        max_score = fmaxf(max_score, warps[0][w]);
        max_value = fmaxf(max_value, warps[1][w]);
    }
    float sum = 0.0f;
    for (int i = thread; i < n_split; i += THREADS) {
        factors[i] = x[i * n + 2] == -INFINITY ? 0.0f : expf(x[i * n + 2] - max_value);
        sum += x[i * n] == -INFINITY ? 0.0f : x[i * n + 1] * expf(x[i * n] - max_score);
    }
    sum = warp_reduce_sum(sum);
    if (threadIdx.x == 0) {
        warps[2][threadIdx.y] = sum;
    }
    __syncthreads();
    sum = a.sinks ? expf(a.sinks[head] - max_score) : 0.0f;
    for (int w = 0; w < MINICACHE_ATTN_WARPS; ++w) {
        sum += warps[2][w];
    }
    for (int j = thread; j < n_acc; j += THREADS) {
        float s = 0.0f;
#pragma unroll 8
        for (int i = 0; i < n_split; ++i) {
            s += factors[i] * x[i * n + 4 + j];
        }
        acc[j] = s;
    }
    __syncthreads();

    const float norm = sum > 0.0f && max_value != -INFINITY ? expf(max_value - max_score) / sum : 0.0f;

    float * out = (float *) (dst + stream * nb_stream + token * nb_token + head * nb_head);
    if (!a.dims.coded) {
        for (int j = thread; j < a.dims.d_v; j += THREADS) {
            out[j] = norm * acc[j];
        }
        return;
    }
    const float * code = acc + a.dims.d_v;
    for (int j = threadIdx.y; j < a.dims.d_v; j += MINICACHE_ATTN_WARPS) {
        float s = 0.0f;
        for (int c = 2 * threadIdx.x; c < head_v.r; c += 2 * WARP_SIZE) {
            const float2 y = __half22float2(((const half2 *) (head_v.decoder + j * head_v.r))[c / 2]);
            s += y.x * code[c] + y.y * code[c + 1];
        }
        s = warp_reduce_sum(s);
        if (threadIdx.x == 0) {
            out[j] = norm * (acc[j] + s);
        }
    }
}

//
// decode
//

typedef void (*attn_kernel_t)(const minicache_cuda_attn, const minicache_attn_schedule, const minicache_query_table, float *);

template <bool CODED, int WIDE>
static attn_kernel_t attn_kernel_of_rows(int rows) {
    return rows == 8 ? minicache_attn_kernel<CODED, WIDE, 8> : minicache_attn_kernel<CODED, WIDE, 16>;
}

// The widest have 8 queries only, as minicache_attn_schedule_of() says.
static attn_kernel_t attn_kernel(bool coded, const minicache_attn_schedule & schedule) {
    if (!coded) {
        return schedule.wide == 2 ? attn_kernel_of_rows<false, 2>(schedule.rows) :
               schedule.wide == 4 ? attn_kernel_of_rows<false, 4>(schedule.rows) :
                                    minicache_attn_kernel<false, 8, 8>;
    }
    return schedule.wide == 2 ? attn_kernel_of_rows<true, 2>(schedule.rows) :
           schedule.wide == 4 ? attn_kernel_of_rows<true, 4>(schedule.rows) :
           schedule.wide == 8 ? attn_kernel_of_rows<true, 8>(schedule.rows) :
                                minicache_attn_kernel<true, 16, 8>;
}

static void attend(ggml_backend_cuda_context & ctx, const minicache_cuda_attn & a, ggml_tensor * dst) {
    const dim3                  threads(WARP_SIZE, MINICACHE_ATTN_WARPS);
    const minicache_attn_dims & d      = a.dims;
    const attn_kernel_t         kernel = attn_kernel(d.coded, minicache_attn_schedule_of(d, 1));

    // Blocks beyond one wave would make the rest wait for them, so there are chunks for one wave.
    const int resident = minicache_cuda_resident_blocks(kernel, threads, minicache_attn_schedule_of(d, 1).shared);
    const int n_sm     = ggml_cuda_info().devices[ctx.device].nsm;

    const minicache_attn_schedule schedule = minicache_attn_schedule_of(d, resident * n_sm);

    const int64_t n_partial = (int64_t) d.n_stream * d.n_head * d.n_tps * schedule.n_split * minicache_attn_partial(d);
    const int64_t n_span    = d.coded ? (int64_t) d.n_stream * schedule.n_span : 0;
    const int64_t n_query   = n_span * schedule.n_base * d.n_head_kv * schedule.n_row_tile * schedule.rows;

    ggml_cuda_pool_alloc<float>   partials(ctx.pool(), n_partial);
    ggml_cuda_pool_alloc<int32_t> n_base(ctx.pool());
    ggml_cuda_pool_alloc<int32_t> bases(ctx.pool());
    ggml_cuda_pool_alloc<float>   scales(ctx.pool());
    ggml_cuda_pool_alloc<half>    queries(ctx.pool());

    minicache_query_table table = {};
    if (d.coded) {
        table.n_base = n_base.alloc(n_span);
        table.base   = bases.alloc(n_span * schedule.n_base);
        table.scale  = scales.alloc(n_query);
        table.query  = queries.alloc(n_query * d.r_k + 8);  // 8 more, so that it is never empty
        minicache_cuda_query_table(a, schedule, table, n_sm, ctx.stream());
    }
    // Tiles of queries that read the same entries are neighbours. They are in the first dimension, because a grid's second one
    // may be too small for them.
    minicache_cuda_launch(kernel, dim3(schedule.n_split * schedule.n_row_tile, d.n_head_kv, d.n_stream), threads, schedule.shared,
        ctx.stream(), a, schedule, table, partials.get());

    const size_t shared = (minicache_attn_partial(d) + schedule.n_split) * sizeof(float);
    minicache_cuda_launch(combine_kernel, dim3(d.n_tps, d.n_head, d.n_stream), threads, shared, ctx.stream(), a, schedule.n_split,
        (const float *) partials.get(), (char *) dst->data, (int64_t) dst->nb[1], (int64_t) dst->nb[2], (int64_t) dst->nb[3]);
}

//
// prompts
//

// The op as ggml-cuda's flash attention takes it, with K and V as f16 rows, heads one after the other. This object holds the
// tensors.
struct flash_attn_view {
    ggml_tensor q;
    ggml_tensor k;
    ggml_tensor v;
    ggml_tensor op;

    flash_attn_view(const minicache_cuda_attn & a, const ggml_tensor * dst) : q(*dst->src[0]), op(*dst) {
        k = rows(*dst->src[1], a.dims.d_k, a.dims);
        v = rows(*dst->src[2], a.dims.d_v, a.dims);

        const float params[3] = { a.p.scale, a.p.max_bias, a.p.softcap };

        op.op = GGML_OP_FLASH_ATTN_EXT;
        memset(op.op_params, 0, sizeof(op.op_params));
        memcpy(op.op_params, params, sizeof(params));
        ggml_prec_set_acc(&op, GGML_PREC_F32);  // as llama.cpp's graphs do
        memset(op.src, 0, sizeof(op.src));
        op.src[0] = &q;
        op.src[1] = &k;
        op.src[2] = &v;
        op.src[3] = dst->src[7];
        op.src[4] = dst->src[9];
    }

  private:
    static ggml_tensor rows(ggml_tensor x, int64_t d, const minicache_attn_dims & dims) {
        const int64_t ne[4] = { d, dims.n_kv, dims.n_head_kv, dims.n_stream };

        x.type      = GGML_TYPE_F16;
        x.op        = GGML_OP_NONE;
        x.view_src  = nullptr;
        x.view_offs = 0;
        size_t nb   = sizeof(half);
        for (int i = 0; i < 4; ++i) {
            x.ne[i] = ne[i];
            x.nb[i] = nb;
            nb *= ne[i];
        }
        return x;
    }
};

// Restored K and V are zeros for empty cells, so there has to be a mask that hides them.
static bool restores(const minicache_cuda_attn & a, int device, const flash_attn_view & view) {
    return a.dims.n_tps > DECODE_TOKENS && a.dims.n_tps * a.dims.n_gqa >= RESTORE_ROWS && a.mask &&
           minicache_cuda_restore_fits(a.dims) && ggml_cuda_flash_attn_ext_supported(device, &view.op);
}

void minicache_cuda_attn_forward(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const minicache_cuda_attn a = minicache_cuda_attn_of(dst);

    flash_attn_view view(a, dst);
    if (!restores(a, ctx.device, view)) {
        attend(ctx, a, dst);
        return;
    }
    const int64_t n = (int64_t) a.dims.n_kv * a.dims.n_head_kv * a.dims.n_stream;

    ggml_cuda_pool_alloc<half> k(ctx.pool(), n * a.dims.d_k);
    ggml_cuda_pool_alloc<half> v(ctx.pool(), n * a.dims.d_v);
    minicache_cuda_restore(a, k.get(), v.get(), ctx.stream());

    view.k.data = k.get();
    view.v.data = v.get();
    ggml_cuda_flash_attn_ext(ctx, &view.op);
}

bool minicache_cuda_attn_supported(const ggml_tensor * dst) {
    const minicache_cuda_attn a = minicache_cuda_attn_of(dst);

    const auto reads = [](const ggml_tensor * x) { return !x || minicache_cuda_has_rows_of(x->type); };

    return minicache_attn_fits(a.dims) && a.p.reference == 0 && (a.dims.coded || (reads(dst->src[1]) && reads(dst->src[2]))) &&
           reads(dst->src[4]) && reads(dst->src[5]) && dst->src[0]->nb[0] == sizeof(float);
}
