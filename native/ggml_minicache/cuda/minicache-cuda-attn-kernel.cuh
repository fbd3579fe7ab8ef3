#pragma once

// The attention over a chunk of cells, for a tile of queries of one KV head.
//
// Entries are read once for all those queries: the rows of K and V of a tile of cells are copied to shared memory while the tile
// before is worked on, and unpacked there to f16; what tells which rows those are is read one tile earlier still. Scores
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

// what all warps share of the queries
template <int ROWS>
struct minicache_attn_rows {
    float max_score[ROWS];  // of the scores so far
    float sum[ROWS];        // of the weights, relative to it
    float max_value[ROWS];  // of the scores and the logarithms of V's magnitudes
    float rescale[ROWS];    // of the accumulators, by the last tile
    float scale[ROWS];      // of the queries
    float scale_code[ROWS];
    int   head[ROWS];
    int   token[ROWS];
};

// What follows is no member of the block's state: that is to stay in registers, and these in one copy.

// Scores of a tile's entries, or of those with base b where bases are given, without the op's scale: the product of keys
// [tile][ld_k] and queries [ROWS][ld_q] over n numbers.
template <int ROWS>
static __device__ __noinline__ void minicache_attn_multiply(const half * keys, int ld_k, int tile, const half * queries, int ld_q,
    int n, const float * scale, const int32_t * bases, int b, float * scores) {
    typedef ggml_cuda_mma::tile<16, 8, float> matrix_c;

    for (int m = threadIdx.y; m < tile / 16; m += MINICACHE_ATTN_WARPS) {
        matrix_c c[ROWS / 8];
#pragma unroll 2
        for (int i = 0; i < n; i += 16) {
            ggml_cuda_mma::tile<16, 8, half2> x;
            ggml_cuda_mma::load_ldmatrix(x, (const half2 *) (keys + m * 16 * ld_k + i), ld_k / 2);
#pragma unroll
            for (int j = 0; j < ROWS / 8; ++j) {
                ggml_cuda_mma::tile<8, 8, half2> y;
                ggml_cuda_mma::load_ldmatrix(y, (const half2 *) (queries + j * 8 * ld_q + i), ld_q / 2);
                ggml_cuda_mma::mma(c[j], x, y);
            }
        }
#pragma unroll
        for (int j = 0; j < ROWS / 8; ++j) {
#pragma unroll
            for (int l = 0; l < matrix_c::ne; ++l) {
                const int at = m * 16 + matrix_c::get_i(l);
                const int r  = j * 8 + matrix_c::get_j(l);
                if (!bases || bases[at] == b) {
                    scores[at * (ROWS + 1) + r] = c[j].x[l] * scale[r];
                }
            }
        }
    }
}

// The tile joins the softmax: scores to weights, magnitudes of V included.
template <int ROWS>
static __device__ __noinline__ void minicache_attn_soften(const minicache_cuda_attn & a, const minicache_attn_plan & plan,
    minicache_attn_rows<ROWS> & rows, int stream, int n_row, const int32_t * cell, const float * mag_k, const float * log_v,
    const float * scores, half * weights) {
    for (int r = threadIdx.y; r < ROWS; r += MINICACHE_ATTN_WARPS) {
        float x[MINICACHE_ATTN_TILE / WARP_SIZE];
        float top_score = rows.max_score[r];
        float top_value = rows.max_value[r];

        const float slope = r < n_row ? a.slope(rows.head[r]) : 0.0f;
#pragma unroll
        for (int i = 0; i < MINICACHE_ATTN_TILE / WARP_SIZE; ++i) {
            const int c = i * WARP_SIZE + threadIdx.x;
            x[i]        = -INFINITY;
            if (c < plan.tile && cell[c] >= 0 && r < n_row) {
                const float bias = a.bias(stream, rows.token[r], cell[c]);
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
            const float before = rows.max_score[r] == -INFINITY ? 0.0f : expf(rows.max_score[r] - top_score);
            rows.rescale[r]    = rows.max_value[r] == -INFINITY ? 0.0f : expf(rows.max_value[r] - top_value);
            rows.sum[r]        = rows.sum[r] * before + sum;
            rows.max_score[r]  = top_score;
            rows.max_value[r]  = top_value;
        }
    }
    __syncthreads();
}

// WIDE: tiles of 16 numbers of V, or of its code, for each warp, see minicache_attn_plan; ROWS: queries, 8 or 16
template <bool CODED, int WIDE, int ROWS>
struct minicache_attn_block {
    typedef ggml_cuda_mma::tile<16, 8, half2> matrix_a;
    typedef ggml_cuda_mma::tile<8, 8, half2>  matrix_b;
    typedef ggml_cuda_mma::tile<16, 8, float> matrix_c;

    typedef minicache_attn_rows<ROWS> row_state;

    static const int COLUMNS    = ROWS / 8;
    static const int WIDE_EXACT = CODED && WIDE > 2 ? WIDE / 2 : WIDE;
    static const int WIDE_CODE  = CODED ? WIDE : 1;

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
    char *  raw_rows;

    int32_t * cells;  // [3][MINICACHE_ATTN_CELL][tile]
    int32_t * exact;  // cells that wait, two tiles of them

    row_state &           rows;
    uint32_t *            ballots;  // [warps]
    minicache_code_unit * units_k;
    minicache_code_unit * units_v;

    matrix_c acc[WIDE_EXACT][COLUMNS];
    matrix_c acc_code[WIDE_CODE][COLUMNS];

    // Of the tile that is worked on: which cells, -1 for none, and how they enter. Two tiles of shared entries take turns, a
    // third has exact ones.
    int32_t * cell;
    int32_t * base;
    float *   mag_k;
    float *   log_v;
    char *    raw_k;
    char *    raw_v;

    // this thread's cell of the tile to come
    int   next_state;
    int   next_base;
    float next_bias;  // of the first token
    float next_mag_k;
    float next_mag_v;

    int  n_exact    = 0;
    bool has_query  = false;  // q_code is for entries of query_base
    int  query_base = 0;

    __device__ void use(int tile) {
        cell  = cells + tile * MINICACHE_ATTN_CELL * plan.tile;
        base  = cell + plan.tile;
        mag_k = (float *) (base + plan.tile);
        log_v = mag_k + plan.tile;
        raw_k = raw_rows + (tile & 1) * plan.raw;
        raw_v = raw_k + plan.tile * plan.raw_k;
    }

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
                rows.scale[r] = top;
            }
        }
    }

    __device__ void begin() {
        load_queries();
        if (thread() < ROWS) {
            rows.head[thread()]      = head(thread());
            rows.token[thread()]     = token(thread());
            rows.max_score[thread()] = -INFINITY;
            rows.max_value[thread()] = -INFINITY;
            rows.sum[thread()]       = 0.0f;
        }
        if (CODED) {
            // rows without a query stay so
            for (int i = thread(); i < ROWS * plan.ld_q_code; i += MINICACHE_ATTN_WARPS * WARP_SIZE) {
                q_code[i] = __float2half(0.0f);
            }
            if (thread() < ROWS) {
                rows.scale_code[thread()] = 0.0f;
            }
            for (int u = thread(); u < a.dims.r_k / MINICACHE_CODE_UNIT; u += MINICACHE_ATTN_WARPS * WARP_SIZE) {
                units_k[u] = minicache_code_unit_at(a.shape.layout_k, u);
            }
            for (int u = thread(); u < a.dims.r_v / MINICACHE_CODE_UNIT; u += MINICACHE_ATTN_WARPS * WARP_SIZE) {
                units_v[u] = minicache_code_unit_at(a.shape.layout_v, u);
            }
        }
        __syncthreads();
    }

    // by a token after the tile's first one
    __device__ bool seen_later(int at) const {
        for (int t = token(0) + 1; t <= token(n_row - 1); ++t) {
            if (a.bias(stream, t, at) != -INFINITY) {
                return true;
            }
        }
        return false;
    }

    // What this thread's cell of the tile from cell_0 on holds: loaded, and not looked at before sort(), so that nothing waits.
    __device__ void look(int cell_0, int cell_1) {
        const int at = cell_0 + thread();
        next_state   = GGML_MINICACHE_CELL_EMPTY;
        next_base    = 0;
        next_bias    = -INFINITY;
        if (thread() < plan.tile && at < cell_1) {
            next_state = a.state(stream, at);
            next_bias  = a.bias(stream, token(0), at);
            if (CODED) {
                next_base = a.base(stream, at);
            }
        }
    }

    // After look(): the shared cells of the tile are noted and their rows on their way, the exact ones wait. False where
    // no cell is shared.
    __device__ bool sort(int tile, int cell_0) {
        use(tile);
        const int  at     = cell_0 + thread();
        const bool used   = next_state != GGML_MINICACHE_CELL_EMPTY && (next_bias != -INFINITY || seen_later(at));
        const bool merged = used && next_state == GGML_MINICACHE_CELL_MERGED;
        const bool waits  = used && !merged;

        if (thread() < plan.tile) {
            cell[thread()] = merged ? at : -1;
            if (CODED) {
                base[thread()] = next_base;
            } else if (merged) {
                next_mag_k = a.magnitude(0, stream, head_kv, at);
                next_mag_v = a.magnitude(2, stream, head_kv, at);
            }
        }
        vote(waits);
        const bool any = __syncthreads_or(merged);

        int before = n_exact;
        for (int w = 0; w < MINICACHE_ATTN_WARPS; ++w) {
            before += w < (int) threadIdx.y ? __popc(ballots[w]) : 0;
            n_exact += __popc(ballots[w]);
        }
        if (waits) {
            exact[before + __popc(ballots[threadIdx.y] & ((1u << threadIdx.x) - 1))] = at;
        }
        for (int c = threadIdx.y; any && c < plan.tile; c += MINICACHE_ATTN_WARPS) {
            if (cell[c] >= 0) {
                minicache_stage_row(a.k.row(stream, head_kv, cell[c]), a.dims.bytes_k, raw_k + c * plan.raw_k);
                minicache_stage_row(a.v.row(stream, head_kv, cell[c]), a.dims.bytes_v, raw_v + c * plan.raw_v);
            }
        }
        __pipeline_commit();
        __syncthreads();
        return any;
    }

    // the tile's rows are there for all threads
    __device__ void arrive(int tile) {
        use(tile);
        if (!CODED && thread() < plan.tile && cell[thread()] >= 0) {
            mag_k[thread()] = next_mag_k;
            log_v[thread()] = next_mag_v > 0.0f ? logf(next_mag_v) : -INFINITY;
        }
        __pipeline_wait_prior(0);
        __syncthreads();
    }

    // where a row is among the staged ones
    __device__ int staged(const minicache_cuda_rows & from, int c, int stride) const {
        return c * stride + (int) ((uintptr_t) from.row(stream, head_kv, cell[c]) & 2);
    }

    // K and V of the tile's shared entries
    __device__ void read_shared() {
        if (!CODED) {
            for (int c = threadIdx.y; c < plan.tile; c += MINICACHE_ATTN_WARPS) {
                const bool there = cell[c] >= 0;
                minicache_read_row(there ? raw_k + staged(a.k, c, plan.raw_k) : nullptr, a.k.type, a.dims.d_k, k + c * plan.ld_k);
                minicache_read_row(there ? raw_v + staged(a.v, c, plan.raw_v) : nullptr, a.v.type, a.dims.d_v, v + c * plan.ld_v);
            }
            __syncthreads();
            return;
        }
        // until scores and weights are there, their places tell where the staged rows are
        int32_t * rows_k = (int32_t *) scores;
        int32_t * rows_v = rows_k + plan.tile;
        if (thread() < plan.tile) {
            const int c = thread();
            rows_k[c] = rows_v[c] = -1;
            if (cell[c] >= 0) {
                rows_k[c] = staged(a.k, c, plan.raw_k);
                rows_v[c] = staged(a.v, c, plan.raw_v);
                mag_k[c]  = expf(a.log_magnitude(0, head_kv, raw_k + rows_k[c]));
                log_v[c]  = a.log_magnitude(2, head_kv, raw_v + rows_v[c]);
            }
        }
        __syncthreads();
        minicache_read_units(raw_k, rows_k, plan.tile, units_k, a.dims.r_k / MINICACHE_CODE_UNIT, k, plan.ld_k);
        minicache_read_units(raw_v, rows_v, plan.tile, units_v, a.dims.r_v / MINICACHE_CODE_UNIT, v, plan.ld_v);
        __syncthreads();
    }

    // the first of the exact entries that wait to the tile
    __device__ void read_exact(int n) {
        use(2);
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
            // what is left, a tile at most, moves up
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
            found = table.base[group * plan.n_base + e] == b ? e : found;
        }
        if (found >= 0) {
            const int64_t entry = group * plan.n_base + found;
            const int64_t first = (entry * a.dims.n_head_kv + head_kv) * plan.n_row_tile * ROWS + row_0;
            const int     n     = a.dims.r_k / 8;
            for (int i = thread(); i < ROWS * n; i += MINICACHE_ATTN_WARPS * WARP_SIZE) {
                const int r = i / n;
                ((int4 *) (q_code + r * plan.ld_q_code))[i % n] =
                    ((const int4 *) (table.query + (first + r) * a.dims.r_k))[i % n];
            }
            if (thread() < ROWS) {
                rows.scale_code[thread()] = table.scale[first + thread()];
            }
        } else {
            float * scratch = (float *) raw_k;
            minicache_turn_angles(a, b, scratch + a.dims.d_k);
            for (int r = 0; r < n_row; ++r) {
                minicache_turn_query(
                    a, head_kv, a.query(stream, head(r), token(r)), scratch, q_code + r * plan.ld_q_code, rows.scale_code + r);
            }
        }
        has_query  = true;
        query_base = b;
        __syncthreads();
    }

    // one base of the tile after the other; most tiles have one
    __device__ void score_codes() {
        bool waits = thread() < plan.tile && cell[thread()] >= 0;
        while (true) {
            vote(waits);
            __syncthreads();
            int first = -1;
            for (int w = MINICACHE_ATTN_WARPS - 1; w >= 0; --w) {
                first = ballots[w] ? w * WARP_SIZE + __ffs(ballots[w]) - 1 : first;
            }
            if (first < 0) {
                return;
            }
            const int b = base[first];
            load_code_query(b, cell[first]);
            minicache_attn_multiply<ROWS>(
                k, plan.ld_k, plan.tile, q_code, plan.ld_q_code, a.dims.r_k, rows.scale_code, base, b, scores);
            waits = waits && base[thread()] != b;
            __syncthreads();
        }
    }

    __device__ void rescale(matrix_c (&x)[COLUMNS]) const {
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j) {
#pragma unroll
            for (int l = 0; l < matrix_c::ne; ++l) {
                x[j].x[l] *= rows.rescale[j * 8 + matrix_c::get_j(l)];
            }
        }
    }

    __device__ void accumulate(matrix_c (&x)[COLUMNS], int m) const {
#pragma unroll 2
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

    // the first n numbers of V
    template <int N>
    __device__ void accumulate_all(matrix_c (&x)[N][COLUMNS], int n) const {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const int m = threadIdx.y + i * MINICACHE_ATTN_WARPS;
            rescale(x[i]);
            if (m * 16 < n) {
                accumulate(x[i], m);
            }
        }
    }

    // the tile joins the softmax
    __device__ void update(bool code) {
        if (code) {
            score_codes();
        } else {
            minicache_attn_multiply<ROWS>(k, plan.ld_k, plan.tile, q, plan.ld_q, a.dims.d_k, rows.scale, nullptr, 0, scores);
            __syncthreads();
        }
        minicache_attn_soften<ROWS>(a, plan, rows, stream, n_row, cell, mag_k, log_v, scores, weights);
        accumulate_all(acc, code ? 0 : a.dims.d_v);
        if (CODED) {
            accumulate_all(acc_code, code ? a.dims.r_v : 0);
        }
        __syncthreads();
    }

    // Each step sorts the tile to come and attends to the one before it; exact entries are attended to by the tile, and those
    // that are left at the end.
    __device__ void attend(int cell_0, int cell_1) {
        look(cell_0, cell_1);
        bool any  = false;
        int  tile = 1;
        for (int at = cell_0 - plan.tile; at < cell_1 || n_exact > 0; at += plan.tile, tile ^= 1) {
            const int next     = at + plan.tile;
            bool      any_next = false;
            if (any) {
                arrive(tile);
            }
            if (next < cell_1) {
                any_next = sort(tile ^ 1, next);
                look(next + plan.tile, cell_1);
            }
            const bool exact_too = n_exact >= plan.tile || (next >= cell_1 && n_exact > 0);
#pragma unroll 1
            for (int kind = any ? 0 : 1; kind < (exact_too ? 2 : 1); ++kind) {
                if (kind == 0) {
                    use(tile);
                    read_shared();
                } else {
                    read_exact(minicache_min(n_exact, plan.tile));
                }
                update(CODED && kind == 0);
            }
            any = any_next;
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
            x[0]      = rows.max_score[thread()];
            x[1]      = rows.sum[thread()];
            x[2]      = rows.max_value[thread()];
            x[3]      = 0.0f;
        }
        write_all(acc, a.dims.d_v, [&](int r, int at, float x) { partial(r)[4 + at] = x; });
        if (CODED) {
            write_all(acc_code, a.dims.r_v,
                [&](int r, int at, float x) { partial(r)[4 + a.dims.d_v + minicache_code_placed(at)] = x; });
        }
    }

    template <int N, typename F>
    __device__ void write_all(const matrix_c (&x)[N][COLUMNS], int n, const F & write_one) const {
#pragma unroll
        for (int i = 0; i < N; ++i) {
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) {
#pragma unroll
                for (int l = 0; l < matrix_c::ne; ++l) {
                    const int at = (threadIdx.y + i * MINICACHE_ATTN_WARPS) * 16 + matrix_c::get_i(l);
                    const int r  = j * 8 + matrix_c::get_j(l);
                    if (r < n_row && at < n) {
                        write_one(r, at, x[i][j].x[l]);
                    }
                }
            }
        }
    }
};

template <bool CODED, int WIDE, int ROWS>
static __global__ void __launch_bounds__(MINICACHE_ATTN_WARPS * WARP_SIZE)
    minicache_attn_kernel(const MINICACHE_PARAMETER minicache_cuda_attn a, const MINICACHE_PARAMETER minicache_attn_plan plan,
        const MINICACHE_PARAMETER minicache_query_table table, float * partials) {
    MINICACHE_SHARED(shared);

    typedef minicache_attn_block<CODED, WIDE, ROWS> block;

    __shared__ typename block::row_state rows;
    __shared__ uint32_t                  ballots[MINICACHE_ATTN_WARPS];
    __shared__ minicache_code_unit       units_k[32];
    __shared__ minicache_code_unit       units_v[32];

    int32_t * cells    = (int32_t *) (shared + plan.at_cells);
    const int split    = blockIdx.x / plan.n_row_tile;
    const int row_tile = blockIdx.x % plan.n_row_tile;
    const int row_0    = row_tile * ROWS;

    block b = {
        a,
        plan,
        table,
        (int) blockIdx.z,
        (int) blockIdx.y,
        row_0,
        minicache_min(ROWS, plan.n_row - row_0),
        (half *) shared,
        (half *) (shared + plan.at_v),
        (half *) (shared + plan.at_q),
        (half *) (shared + plan.at_q_code),
        (half *) (shared + plan.at_p),
        (float *) (shared + plan.at_scores),
        shared + plan.at_raw,
        cells,
        cells + 3 * MINICACHE_ATTN_CELL * plan.tile,
        rows,
        ballots,
        units_k,
        units_v,
    };
    const int cell_0 = split * plan.chunk;

    b.begin();
    b.attend(cell_0, minicache_min(a.dims.n_kv, cell_0 + plan.chunk));
    b.write(partials, split);
}
