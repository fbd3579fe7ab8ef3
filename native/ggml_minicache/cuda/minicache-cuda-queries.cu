#include "minicache-cuda-launch.cuh"
#include "minicache-cuda-turn.cuh"
#include "mma.cuh"

// The table of turned queries: the distinct bases of a span of cells, in the order of their first cells, and for each of them all
// queries of a KV head, as one matrix product with K's decoder. Bases that do not fit are left to the attention, which turns
// queries one at a time.

using ggml_cuda_mma::load_generic;
using ggml_cuda_mma::load_ldmatrix;
using ggml_cuda_mma::load_ldmatrix_trans;
using ggml_cuda_mma::mma;
using ggml_cuda_mma::tile;

static const int THREADS = MINICACHE_ATTN_WARPS * WARP_SIZE;

struct query_table_shape {
    int32_t slice;       // coefficients whose part of the decoder is in shared memory at a time
    int32_t ld_decoder;  // numbers from one row to the next
    int32_t ld_q;
    int32_t at_q;  // offsets in bytes
    int32_t at_angles;
    int32_t shared;
};

static query_table_shape query_table_shape_of(const minicache_attn_dims & d, int rows) {
    query_table_shape s;
    s.slice = d.r_k;
    do {
        s.ld_decoder = s.slice + 8;
        s.ld_q       = d.d_k + 8;
        s.at_q       = 2 * d.d_k * s.ld_decoder;
        s.at_angles  = s.at_q + 2 * rows * s.ld_q;
        s.shared     = s.at_angles + 4 * d.d_k;
        // whole tiles for all warps
        s.slice -= s.slice % 64 ? s.slice % 64 : 64;
    } while (s.shared > MINICACHE_ATTN_SHARED && s.slice > 0);
    s.slice = s.ld_decoder - 8;
    return s;
}

// Whether any token sees the cell.
static __device__ bool is_seen(const minicache_cuda_attn & a, int stream, int cell) {
    for (int t = 0; t < a.dims.n_tps; ++t) {
        if (a.bias(stream, t, cell) != -INFINITY) {
            return true;
        }
    }
    return false;
}

// Finds the bases of those cells of the span that any query sees, `most` at most. All threads get them; returns their number.
static __device__ int find_bases(const minicache_cuda_attn & a, int stream, int span, int most, int32_t * bases) {
    const int HALVES = MINICACHE_ATTN_SPAN / THREADS;

    __shared__ uint32_t ballots[HALVES * MINICACHE_ATTN_WARPS];

    const int thread = threadIdx.y * WARP_SIZE + threadIdx.x;
    bool      waits[HALVES];
    int32_t   base[HALVES];
    for (int h = 0; h < HALVES; ++h) {
        const int cell = span * MINICACHE_ATTN_SPAN + h * THREADS + thread;
        waits[h]       = cell < a.dims.n_kv && a.state(stream, cell) == GGML_MINICACHE_CELL_MERGED && is_seen(a, stream, cell);
        base[h]        = waits[h] ? a.base(stream, cell) : 0;
    }
    int n = 0;
    while (n < most) {
        for (int h = 0; h < HALVES; ++h) {
            const uint32_t bits = __ballot_sync(0xFFFFFFFF, waits[h]);
            if (threadIdx.x == 0) {
                ballots[h * MINICACHE_ATTN_WARPS + threadIdx.y] = bits;
            }
        }
        __syncthreads();
        int first = -1;
        for (int w = HALVES * MINICACHE_ATTN_WARPS - 1; w >= 0; --w) {
            first = ballots[w] ? w * WARP_SIZE + __ffs(ballots[w]) - 1 : first;
        }
        __syncthreads();
        if (first < 0) {
            break;
        }
        bases[n] = a.base(stream, span * MINICACHE_ATTN_SPAN + first);
        for (int h = 0; h < HALVES; ++h) {
            waits[h] = waits[h] && base[h] != bases[n];
        }
        ++n;
    }
    return n;
}

// The whole block: makes the table's entries for one span of cells.
//   N_MATRIX     tiles of 16 coefficients for each warp
//   head         the KV head's K
//   slice_there  the slice of the decoder that is in shared memory, -1 for none
template <int ROWS, int N_MATRIX>
static __device__ __forceinline__ void add_span(const minicache_cuda_attn & a, const minicache_attn_schedule & schedule,
    const query_table_shape & shape, const minicache_query_table & table, const minicache_cuda_head & head, int span,
    int & slice_there, char * shared) {
    const int COLUMNS = ROWS / 8;

    const int head_kv = blockIdx.y;
    const int stream  = blockIdx.z;
    const int thread  = threadIdx.y * WARP_SIZE + threadIdx.x;
    const int n_pair  = minicache_turn_pairs(a.shape);

    half *  decoder = (half *) shared;  // [d_k][slice], padded
    half *  q       = (half *) (shared + shape.at_q);
    float * angles  = (float *) (shared + shape.at_angles);

    __shared__ float tops[MINICACHE_ATTN_WARPS][ROWS];

    int32_t   bases[MINICACHE_ATTN_BASES];
    const int n_base = find_bases(a, stream, span, schedule.n_base, bases);

    const int64_t first = (int64_t) stream * schedule.n_span + span;
    if (head_kv == 0 && thread == 0) {
        table.n_base[first] = n_base;
        for (int e = 0; e < n_base; ++e) {
            table.base[first * schedule.n_base + e] = bases[e];
        }
    }
    for (int e = 0; e < n_base; ++e) {
        minicache_turn_angles(a, bases[e], angles);
        __syncthreads();

        for (int row_tile = 0; row_tile < schedule.n_row_tile; ++row_tile) {
            float scale[ROWS / MINICACHE_ATTN_WARPS];
#pragma unroll
            for (int k = 0; k < ROWS / MINICACHE_ATTN_WARPS; ++k) {
                const int     row = threadIdx.y + k * MINICACHE_ATTN_WARPS;
                const int     at  = row_tile * ROWS + row;
                const float * x   = at < schedule.n_row ?
                                        a.query(stream, head_kv * a.dims.n_gqa + at % a.dims.n_gqa, at / a.dims.n_gqa) :
                                        nullptr;
                float         top = 0.0f;
                for (int i = threadIdx.x; x && i < a.dims.d_k; i += WARP_SIZE) {
                    top = fmaxf(top, fabsf(x[i]));
                }
                top      = warp_reduce_max(top);
                scale[k] = top;
                for (int i = threadIdx.x; i < a.dims.d_k; i += WARP_SIZE) {
                    const float y =
                        top > 0.0f ? minicache_turned(a.shape.rope, n_pair, angles, angles + n_pair, 1, x, i) / top : 0.0f;
                    q[row * shape.ld_q + i] = __float2half(y);
                }
            }
            __syncthreads();

            tile<16, 8, float> z[N_MATRIX][COLUMNS];

            for (int slice = 0; slice * shape.slice < head.r; ++slice) {
                const int c_0 = slice * shape.slice;
                const int n   = minicache_min(shape.slice, head.r - c_0);
                if (slice != slice_there) {
                    __syncthreads();
                    const half * from = head.decoder + c_0;
                    for (int i = threadIdx.y; i < a.dims.d_k; i += MINICACHE_ATTN_WARPS) {
                        for (int c = threadIdx.x; c < n / 2; c += WARP_SIZE) {
                            ((half2 *) (decoder + i * shape.ld_decoder))[c] = ((const half2 *) (from + i * head.r))[c];
                        }
                    }
                    slice_there = slice;
                    __syncthreads();
                }
#pragma unroll
                for (int k = 0; k < N_MATRIX; ++k) {
                    const int m = (threadIdx.y + k * MINICACHE_ATTN_WARPS) * 16 - c_0;
                    if (m < 0 || m >= n) {
                        continue;
                    }
                    for (int i = 0; i < a.dims.d_k; i += 16) {
                        tile<16, 8, half2> x;
                        load_ldmatrix_trans(x, (const half2 *) (decoder + i * shape.ld_decoder + m), shape.ld_decoder / 2);
#pragma unroll
                        for (int j = 0; j < COLUMNS; ++j) {
                            tile<8, 8, half2> y;
                            load_ldmatrix(y, (const half2 *) (q + j * 8 * shape.ld_q + i), shape.ld_q / 2);
                            mma(z[k][j], x, y);
                        }
                    }
                }
            }

            // the largest coefficient of each query
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) {
#pragma unroll
                for (int l = 0; l < 2; ++l) {
                    float top = 0.0f;
#pragma unroll
                    for (int k = 0; k < N_MATRIX; ++k) {
                        top = fmaxf(top, fmaxf(fabsf(z[k][j].x[l]), fabsf(z[k][j].x[l + 2])));
                    }
                    for (int lanes = 4; lanes < WARP_SIZE; lanes *= 2) {
                        top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFF, top, lanes));
                    }
                    if (threadIdx.x < 4) {
                        tops[threadIdx.y][j * 8 + tile<16, 8, float>::get_j(l)] = top;
                    }
                }
            }
            __syncthreads();

            const int64_t entry = first * schedule.n_base + e;
            const int64_t out   = (entry * a.dims.n_head_kv + head_kv) * schedule.n_row_tile * ROWS + row_tile * ROWS;

            const auto top_of = [&](int row) {
                float top = 0.0f;
                for (int w = 0; w < MINICACHE_ATTN_WARPS; ++w) {
                    top = fmaxf(top, tops[w][row]);
                }
                return top;
            };
#pragma unroll
            for (int k = 0; k < ROWS / MINICACHE_ATTN_WARPS; ++k) {
                if (threadIdx.x == 0) {
                    const int row          = threadIdx.y + k * MINICACHE_ATTN_WARPS;
                    table.scale[out + row] = scale[k] * top_of(row);
                }
            }
#pragma unroll
            for (int k = 0; k < N_MATRIX; ++k) {
#pragma unroll
                for (int j = 0; j < COLUMNS; ++j) {
#pragma unroll
                    for (int l = 0; l < 4; ++l) {
                        const int c   = (threadIdx.y + k * MINICACHE_ATTN_WARPS) * 16 + tile<16, 8, float>::get_i(l);
                        const int row = j * 8 + tile<16, 8, float>::get_j(l);
                        if (c < head.r) {
                            const float top = top_of(row);

                            table.query[(out + row) * a.dims.r_k + minicache_code_place(c)] =
                                __float2half(top > 0.0f ? z[k][j].x[l] / top : 0.0f);
                        }
                    }
                }
            }
            __syncthreads();
        }
    }
}

// Each block takes one span after the other, so that it reads the decoder only once if that fits into shared memory.
template <int ROWS, int N_MATRIX>
static __global__ void __launch_bounds__(MINICACHE_ATTN_WARPS * WARP_SIZE) query_table_kernel(
    const MINICACHE_PARAMETER minicache_cuda_attn a, const MINICACHE_PARAMETER minicache_attn_schedule schedule,
    const MINICACHE_PARAMETER query_table_shape shape, const MINICACHE_PARAMETER minicache_query_table table) {
    MINICACHE_SHARED(shared);

    const minicache_cuda_head head = a.head_k(blockIdx.y);

    int slice_there = -1;
    for (int span = blockIdx.x; span < schedule.n_span; span += gridDim.x) {
        add_span<ROWS, N_MATRIX>(a, schedule, shape, table, head, span, slice_there, shared);
    }
}

void minicache_cuda_query_table(const minicache_cuda_attn & a, const minicache_attn_schedule & schedule,
    const minicache_query_table & table, int n_sm, cudaStream_t stream) {
    const query_table_shape shape = query_table_shape_of(a.dims, schedule.rows);
    const dim3              threads(WARP_SIZE, MINICACHE_ATTN_WARPS);
    const int               half   = MINICACHE_ATTN_CODE / 2;
    const int               most   = MINICACHE_ATTN_CODE / 16 / MINICACHE_ATTN_WARPS;
    const auto              kernel = a.dims.r_k > half  ? query_table_kernel<8, most> :
                                     schedule.rows == 8 ? query_table_kernel<8, most / 2> :
                                                          query_table_kernel<16, most / 2>;

    const int n_block = n_sm * minicache_cuda_resident_blocks(kernel, threads, shape.shared);
    const int n       = minicache_max(1, minicache_min(schedule.n_span, n_block / (a.dims.n_head_kv * a.dims.n_stream)));

    minicache_cuda_launch(
        kernel, dim3(n, a.dims.n_head_kv, a.dims.n_stream), threads, shape.shared, stream, a, schedule, shape, table);
}
