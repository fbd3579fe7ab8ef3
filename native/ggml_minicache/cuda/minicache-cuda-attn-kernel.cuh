#pragma once

// The attention over a chunk of cells, for a tile of queries of one KV head.
//
// Entries are read once for all those queries: rows of K and V of a tile of cells are unpacked to f16 in shared memory, scores
// are the product of the tile with the queries on tensor cores, the softmax is the online one (Milakov and Gimelshein 2018,
// arXiv 1805.02867), and the weights' product with V goes to accumulators in registers, dimensions by queries. Coded and exact
// entries have each their queries and accumulator, under one softmax; merged entries and exact ones share both.
//
// Weights are f16 in that product, so they are taken relative to the largest of score and magnitude together, apart from their
// sum, which is relative to the largest score: neither can overflow, whatever the magnitudes.

#include "minicache-cuda-attn.cuh"
#include "minicache-cuda-launch.cuh"
#include "minicache-cuda-turn.cuh"
#include "mma.cuh"

// WIDE: tiles of 16 numbers of V for each warp; ROWS: queries, 8 or 16
template <bool CODED, int WIDE, int ROWS>
struct minicache_attn_block {
    typedef ggml_cuda_mma::tile<16, 8, half2> matrix_a;
    typedef ggml_cuda_mma::tile<8, 8, half2>  matrix_b;
    typedef ggml_cuda_mma::tile<16, 8, float> matrix_c;

    static const int COLUMNS = ROWS / 8;

    // what all warps share
    struct row_state {
        float max_score[ROWS];  // of the scores so far
        float sum[ROWS];        // of the weights, relative to it
        float max_value[ROWS];  // of the scores and the logarithms of V's magnitudes
        float rescale[ROWS];    // of the accumulators, by the last tile
        float scale[ROWS];      // of the queries
        float scale_code[ROWS];
    };

    const minicache_cuda_attn &   a;
    const minicache_attn_plan &   plan;
    const minicache_query_table & table;

    const int stream;
    const int head_kv;
    const int row_0;
    const int n_row;

    half *  k;
    half *  v;
    half *  q;
    half *  q_code;
    half *  weights;
    float * scores;
    char *  raw_k;
    char *  raw_v;

    // of the tile: what is read, -1 for none, and how it enters
    int32_t * cell;
    int32_t * base;
    float *   mag_k;
    float *   log_v;
    int32_t * exact;  // cells that wait, two tiles of them

    row_state *           rows;
    uint32_t *            ballots;  // [warps]
    minicache_code_unit * units_k;
    minicache_code_unit * units_v;

    matrix_c acc[WIDE][COLUMNS];
    matrix_c acc_code[CODED ? WIDE : 1][COLUMNS];

    int  n_exact    = 0;
    bool has_query  = false;  // q_code is for entries of query_base
    int  query_base = 0;

    __device__ int thread() const { return threadIdx.y * WARP_SIZE + threadIdx.x; }

    __device__ int row_of_head(int r) const { return (row_0 + r) % a.dims.n_gqa; }

    __device__ int head(int r) const { return head_kv * a.dims.n_gqa + row_of_head(r); }

    __device__ int token(int r) const { return (row_0 + r) / a.dims.n_gqa; }

    // one bit for each thread, to all warps' words; all threads see them after the next barrier
    __device__ void vote(bool yes) {
        const uint32_t bits = __ballot_sync(0xFFFFFFFF, yes);
        if (threadIdx.x == 0) {
            ballots[threadIdx.y] = bits;
        }
    }

    // queries in the layer's own basis, each with an absolute value of 1 at most
    __device__ void load_queries() {
        for (int r = threadIdx.y; r < ROWS; r += MINICACHE_ATTN_WARPS) {
            const float * x   = r < n_row ? a.query(stream, head(r), token(r)) : nullptr;
            float         top = 0.0f;
            for (int i = threadIdx.x; x && i < a.dims.d_k; i += WARP_SIZE) {
                top = fmaxf(top, fabsf(x[i]));
            }
            top = warp_reduce_max(top);
            for (int i = threadIdx.x; i < a.dims.d_k; i += WARP_SIZE) {
                q[r * plan.ld_q + i] = __float2half(top > 0.0f ? x[i] / top : 0.0f);
            }
            if (threadIdx.x == 0) {
                rows->scale[r] = top;
            }
        }
    }

    __device__ void begin() {
        load_queries();
        if (thread() < ROWS) {
            rows->max_score[thread()] = -INFINITY;
            rows->max_value[thread()] = -INFINITY;
            rows->sum[thread()]       = 0.0f;
        }
        if (CODED) {
            for (int u = thread(); u < a.dims.r_k / MINICACHE_CODE_UNIT; u += MINICACHE_ATTN_WARPS * WARP_SIZE) {
                units_k[u] = minicache_code_unit_at(a.shape.layout_k, u);
            }
            for (int u = thread(); u < a.dims.r_v / MINICACHE_CODE_UNIT; u += MINICACHE_ATTN_WARPS * WARP_SIZE) {
                units_v[u] = minicache_code_unit_at(a.shape.layout_v, u);
            }
        }
        __syncthreads();
    }

    __device__ bool seen(int at) const {
        if (!a.mask) {
            return true;
        }
        for (int t = token(0); t <= token(n_row - 1); ++t) {
            if (a.bias(stream, t, at) != -INFINITY) {
                return true;
            }
        }
        return false;
    }

    // cells [cell_0, cell_1) of a tile: those that are shared to `cell`, those that are exact to the ones that wait
    __device__ bool sort(int cell_0, int cell_1) {
        const int  at     = cell_0 + thread();
        const bool inside = thread() < plan.tile && at < cell_1;
        const int  state  = inside ? a.state(stream, at) : (int) GGML_MINICACHE_CELL_EMPTY;
        const bool used   = state != GGML_MINICACHE_CELL_EMPTY && seen(at);
        const bool merged = state == GGML_MINICACHE_CELL_MERGED;

        if (thread() < plan.tile) {
            cell[thread()] = used && merged ? at : -1;
            if (used && merged) {
                read_magnitudes(at);
            }
        }
        vote(used && !merged);
        const bool any = __syncthreads_or(used && merged);

        int before = n_exact;
        for (int w = 0; w < MINICACHE_ATTN_WARPS; ++w) {
            before += w < (int) threadIdx.y ? __popc(ballots[w]) : 0;
            n_exact += __popc(ballots[w]);
        }
        if (used && !merged) {
            exact[before + __popc(ballots[threadIdx.y] & ((1u << threadIdx.x) - 1))] = at;
        }
        __syncthreads();
        return any;
    }

    __device__ void read_magnitudes(int at) {
        if (CODED) {
            base[thread()]  = a.base(stream, at);
            mag_k[thread()] = expf(a.log_magnitude(0, head_kv, a.k.row(stream, head_kv, at)));
            log_v[thread()] = a.log_magnitude(2, head_kv, a.v.row(stream, head_kv, at));
        } else {
            const float m   = a.magnitude(2, stream, head_kv, at);
            mag_k[thread()] = a.magnitude(0, stream, head_kv, at);
            log_v[thread()] = m > 0.0f ? logf(m) : -INFINITY;
        }
    }

    // K and V of the tile's shared entries
    __device__ void read_shared() {
        for (int c = threadIdx.y; c < plan.tile; c += MINICACHE_ATTN_WARPS) {
            const int    at    = cell[c];
            const char * row_k = at >= 0 ? a.k.row(stream, head_kv, at) : nullptr;
            const char * row_v = at >= 0 ? a.v.row(stream, head_kv, at) : nullptr;
            if (!CODED) {
                minicache_read_row(row_k, a.k.type, a.dims.d_k, k + c * plan.ld_k);
                minicache_read_row(row_v, a.v.type, a.dims.d_v, v + c * plan.ld_v);
            } else if (at >= 0) {
                minicache_stage_row(row_k, a.dims.bytes_k, raw_k + c * plan.raw_k);
                minicache_stage_row(row_v, a.dims.bytes_v, raw_v + c * plan.raw_v);
            }
        }
        __syncthreads();
        if (CODED) {
            unpack(a.k, units_k, a.dims.r_k, raw_k, plan.raw_k, k, plan.ld_k);
            unpack(a.v, units_v, a.dims.r_v, raw_v, plan.raw_v, v, plan.ld_v);
            __syncthreads();
        }
    }

    __device__ void unpack(const minicache_cuda_rows & from, const minicache_code_unit * units, int r, const char * raw,
        int stride, half * out, int ld) const {
        for (int u = threadIdx.y; u < r / MINICACHE_CODE_UNIT; u += MINICACHE_ATTN_WARPS) {
            for (int c = threadIdx.x; c < plan.tile; c += WARP_SIZE) {
                half2 x[MINICACHE_CODE_UNIT / 2];
                if (cell[c] >= 0) {
                    const int shift = (uintptr_t) from.row(stream, head_kv, cell[c]) & 2;
                    minicache_read_unit(raw + c * stride + shift, units[u], x);
                } else {
#pragma unroll
                    for (int j = 0; j < MINICACHE_CODE_UNIT / 2; ++j) {
                        x[j] = __floats2half2_rn(0.0f, 0.0f);
                    }
                }
                int4 words[2];
                memcpy(words, x, sizeof(words));
                int4 * to = (int4 *) (out + c * ld + u * MINICACHE_CODE_UNIT);
                to[0]     = words[0];
                to[1]     = words[1];
            }
        }
    }

    // the first of the exact entries that wait to the tile
    __device__ void read_exact(int n) {
        if (thread() < plan.tile) {
            cell[thread()]  = thread() < n ? exact[thread()] : -1;
            mag_k[thread()] = 1.0f;
            log_v[thread()] = 0.0f;
        }
        __syncthreads();
        for (int c = threadIdx.y; c < plan.tile; c += MINICACHE_ATTN_WARPS) {
            if (cell[c] >= 0) {
                a.read_exact(stream, head_kv, cell[c], k + c * plan.ld_k, v + c * plan.ld_v);
            } else {
                minicache_read_row(nullptr, GGML_TYPE_F16, a.dims.d_k, k + c * plan.ld_k);
                minicache_read_row(nullptr, GGML_TYPE_F16, a.dims.d_v, v + c * plan.ld_v);
            }
        }
        if (thread() < plan.tile && n + thread() < n_exact) {
            // what is left moves up; it is less than a tile
            const int left  = exact[n + thread()];
            exact[thread()] = left;
        }
        n_exact -= n;
        __syncthreads();
    }

    // q_code for entries of a base that the cell's group may have in the table
    __device__ void load_code_query(int b, int at) {
        if (has_query && query_base == b) {
            return;
        }
        const int64_t group = (int64_t) stream * plan.n_group + at / MINICACHE_ATTN_GROUP;
        int           found = -1;
        for (int e = 0; e < table.n_base[group]; ++e) {
            found = table.base[group * MINICACHE_ATTN_BASES + e] == b ? e : found;
        }
        if (found >= 0) {
            const int64_t entry = group * MINICACHE_ATTN_BASES + found;
            const int64_t first = (entry * a.dims.n_head_kv + head_kv) * plan.n_row_tile * ROWS + row_0;
            const int     n     = a.dims.r_k / 8;
            for (int i = thread(); i < ROWS * n; i += MINICACHE_ATTN_WARPS * WARP_SIZE) {
                const int r = i / n;
                ((int4 *) (q_code + r * plan.ld_q_code))[i % n] =
                    ((const int4 *) (table.query + (first + r) * a.dims.r_k))[i % n];
            }
            if (thread() < ROWS) {
                rows->scale_code[thread()] = table.scale[first + thread()];
            }
        } else {
            float * scratch = (float *) raw_k;
            minicache_turn_angles(a, b, scratch + a.dims.d_k);
            for (int r = 0; r < ROWS; ++r) {
                const float * x = r < n_row ? a.query(stream, head(r), token(r)) : nullptr;
                minicache_turn_query(a, head_kv, x, scratch, q_code + r * plan.ld_q_code, rows->scale_code + r);
            }
        }
        has_query  = true;
        query_base = b;
        __syncthreads();
    }

    // scores of the tile's entries, or of those with base b, without the op's scale
    __device__ void multiply(const half * queries, int ld, const float * scale, int n, bool one_base, int b) {
        for (int m = threadIdx.y; m < plan.tile / 16; m += MINICACHE_ATTN_WARPS) {
            matrix_c c[COLUMNS];
            for (int i = 0; i < n; i += 16) {
                matrix_a x;
                ggml_cuda_mma::load_ldmatrix(x, (const half2 *) (k + m * 16 * plan.ld_k + i), plan.ld_k / 2);
#pragma unroll
                for (int j = 0; j < COLUMNS; ++j) {
                    matrix_b y;
                    ggml_cuda_mma::load_ldmatrix(y, (const half2 *) (queries + j * 8 * ld + i), ld / 2);
                    ggml_cuda_mma::mma(c[j], x, y);
                }
            }
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) {
#pragma unroll
                for (int l = 0; l < matrix_c::ne; ++l) {
                    const int at = m * 16 + matrix_c::get_i(l);
                    const int r  = j * 8 + matrix_c::get_j(l);
                    if (!one_base || base[at] == b) {
                        scores[at * (ROWS + 1) + r] = c[j].x[l] * scale[r];
                    }
                }
            }
        }
    }

    // one base of the tile after the other; most tiles have one
    __device__ void score_codes() {
        bool waits = thread() < plan.tile && cell[thread()] >= 0;
        while (true) {
            vote(waits);
            __syncthreads();
            int first = -1;
            for (int w = plan.tile / WARP_SIZE - 1; w >= 0; --w) {
                first = ballots[w] ? w * WARP_SIZE + __ffs(ballots[w]) - 1 : first;
            }
            if (first < 0) {
                return;
            }
            const int b = base[first];
            load_code_query(b, cell[first]);
            multiply(q_code, plan.ld_q_code, rows->scale_code, a.dims.r_k, true, b);
            waits = waits && base[thread()] != b;
            __syncthreads();
        }
    }

    // scores to weights, magnitudes of V included
    __device__ void soften() {
        for (int r = threadIdx.y; r < ROWS; r += MINICACHE_ATTN_WARPS) {
            float x[MINICACHE_ATTN_TILE / WARP_SIZE];
            float top_score = rows->max_score[r];
            float top_value = rows->max_value[r];

            const float slope = r < n_row ? a.slope(head(r)) : 0.0f;
#pragma unroll
            for (int i = 0; i < MINICACHE_ATTN_TILE / WARP_SIZE; ++i) {
                const int c = i * WARP_SIZE + threadIdx.x;
                x[i]        = -INFINITY;
                if (c < plan.tile && cell[c] >= 0 && r < n_row) {
                    const float bias = a.bias(stream, token(r), cell[c]);
                    if (bias != -INFINITY) {
                        x[i]      = a.score(scores[c * (ROWS + 1) + r] * mag_k[c], slope * bias);
                        top_score = fmaxf(top_score, x[i]);
                        top_value = fmaxf(top_value, x[i] + log_v[c]);
                    }
                }
            }
            top_score = warp_reduce_max(top_score);
            top_value = warp_reduce_max(top_value);

            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < MINICACHE_ATTN_TILE / WARP_SIZE; ++i) {
                const int c = i * WARP_SIZE + threadIdx.x;
                if (c < plan.tile) {
                    const bool some = x[i] != -INFINITY;
                    sum += some ? expf(x[i] - top_score) : 0.0f;
                    weights[r * plan.ld_p + c] =
                        __float2half(some && top_value != -INFINITY ? expf(x[i] + log_v[c] - top_value) : 0.0f);
                }
            }
            sum = warp_reduce_sum(sum);
            if (threadIdx.x == 0) {
                const float before = rows->max_score[r] == -INFINITY ? 0.0f : expf(rows->max_score[r] - top_score);
                rows->rescale[r]   = rows->max_value[r] == -INFINITY ? 0.0f : expf(rows->max_value[r] - top_value);
                rows->sum[r]       = rows->sum[r] * before + sum;
                rows->max_score[r] = top_score;
                rows->max_value[r] = top_value;
            }
        }
        __syncthreads();
    }

    __device__ void rescale(matrix_c (&x)[COLUMNS]) const {
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j) {
#pragma unroll
            for (int l = 0; l < matrix_c::ne; ++l) {
                x[j].x[l] *= rows->rescale[j * 8 + matrix_c::get_j(l)];
            }
        }
    }

    __device__ void accumulate(matrix_c (&x)[COLUMNS], int m) const {
        for (int c = 0; c < plan.tile; c += 16) {
            matrix_a values;
            ggml_cuda_mma::load_ldmatrix_trans(values, (const half2 *) (v + c * plan.ld_v + m * 16), plan.ld_v / 2);
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) {
                matrix_b w;
                ggml_cuda_mma::load_ldmatrix(w, (const half2 *) (weights + j * 8 * plan.ld_p + c), plan.ld_p / 2);
                ggml_cuda_mma::mma(x[j], values, w);
            }
        }
    }

    // the tile joins the softmax
    __device__ void update(bool code) {
        if (code) {
            score_codes();
        } else {
            multiply(q, plan.ld_q, rows->scale, a.dims.d_k, false, 0);
            __syncthreads();
        }
        soften();
#pragma unroll
        for (int i = 0; i < WIDE; ++i) {
            const int m = threadIdx.y + i * MINICACHE_ATTN_WARPS;
            rescale(acc[i]);
            if (!code && m * 16 < a.dims.d_v) {
                accumulate(acc[i], m);
            }
            if (CODED) {
                rescale(acc_code[CODED ? i : 0]);
                if (code && m * 16 < a.dims.r_v) {
                    accumulate(acc_code[CODED ? i : 0], m);
                }
            }
        }
        __syncthreads();
    }

    __device__ void attend(int cell_0, int cell_1) {
        for (int at = cell_0; at < cell_1; at += plan.tile) {
            if (sort(at, minicache_min(cell_1, at + plan.tile))) {
                read_shared();
                update(CODED);
            }
            if (n_exact >= plan.tile) {
                read_exact(plan.tile);
                update(false);
            }
        }
        if (n_exact > 0) {
            read_exact(n_exact);
            update(false);
        }
    }

    // maxima, sums and accumulators of this chunk
    __device__ void write(float * partials, int split) const {
        const int n = minicache_attn_partial(a.dims);

        const auto partial = [&](int r) {
            return partials +
                   ((((int64_t) stream * a.dims.n_head + head(r)) * a.dims.n_tps + token(r)) * plan.n_split + split) * n;
        };
        if (thread() < n_row) {
            float * x = partial(thread());
            x[0]      = rows->max_score[thread()];
            x[1]      = rows->sum[thread()];
            x[2]      = rows->max_value[thread()];
            x[3]      = 0.0f;
        }
#pragma unroll
        for (int i = 0; i < WIDE; ++i) {
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) {
#pragma unroll
                for (int l = 0; l < matrix_c::ne; ++l) {
                    const int at = (threadIdx.y + i * MINICACHE_ATTN_WARPS) * 16 + matrix_c::get_i(l);
                    const int r  = j * 8 + matrix_c::get_j(l);
                    if (r < n_row && at < a.dims.d_v) {
                        partial(r)[4 + at] = acc[i][j].x[l];
                    }
                    if (CODED && r < n_row && at < a.dims.r_v) {
                        partial(r)[4 + a.dims.d_v + minicache_code_placed(at)] = acc_code[CODED ? i : 0][j].x[l];
                    }
                }
            }
        }
    }
};

template <bool CODED, int WIDE, int ROWS>
static __global__ void __launch_bounds__(MINICACHE_ATTN_WARPS * WARP_SIZE) minicache_attn_kernel(
    const minicache_cuda_attn a, const minicache_attn_plan plan, const minicache_query_table table, float * partials) {
    MINICACHE_SHARED(shared);

    typedef minicache_attn_block<CODED, WIDE, ROWS> block;

    __shared__ typename block::row_state rows;
    __shared__ uint32_t                  ballots[MINICACHE_ATTN_WARPS];
    __shared__ minicache_code_unit       units_k[32];
    __shared__ minicache_code_unit       units_v[32];

    int32_t * cells    = (int32_t *) (shared + plan.at_cells);
    const int row_tile = blockIdx.y % plan.n_row_tile;
    const int row_0    = row_tile * ROWS;

    block b = {
        a,
        plan,
        table,
        (int) blockIdx.z,
        (int) blockIdx.y / plan.n_row_tile,
        row_0,
        minicache_min(ROWS, plan.n_row - row_0),
        (half *) shared,
        (half *) (shared + plan.at_v),
        (half *) (shared + plan.at_q),
        (half *) (shared + plan.at_q_code),
        (half *) (shared + plan.at_p),
        (float *) (shared + plan.at_scores),
        shared + plan.at_raw,
        shared + plan.at_raw + plan.tile * plan.raw_k,
        cells,
        cells + plan.tile,
        (float *) (cells + 2 * plan.tile),
        (float *) (cells + 3 * plan.tile),
        cells + 4 * plan.tile,
        &rows,
        ballots,
        units_k,
        units_v,
    };
    const int cell_0 = blockIdx.x * plan.chunk;

    b.begin();
    b.attend(cell_0, minicache_min(a.dims.n_kv, cell_0 + plan.chunk));
    b.write(partials, blockIdx.x);
}
