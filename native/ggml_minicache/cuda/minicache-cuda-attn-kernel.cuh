#pragma once

// The attention kernel: a chunk of cells for a tile of queries of one KV head.
//
// Entries are read once for all those queries. The rows of K and V of a tile of cells are copied to shared memory while the
// tile before it is worked on, and are unpacked to f16 there; which rows those are is read one tile earlier still. Scores are
// the product of the tile and the queries on tensor cores, the softmax is an online one (Milakov and Gimelshein 2018, arXiv
// 1805.02867), and the product of the weights and V goes to accumulators in registers, dimensions by queries. Coded entries and
// exact entries have their own queries and accumulators under one softmax; merged entries share those of the exact ones.
//
// Weights are f16 in that product, so they are relative to the largest of score and magnitude together, while their sum is
// relative to the largest score. Neither can overflow, whatever the magnitudes.
//
// The struct is long because all of it has to stay in registers: cut in two, the parts would have to refer to each other.

#include "minicache-cuda-attn-tile.cuh"
#include "minicache-cuda-attn.cuh"
#include "minicache-cuda-launch.cuh"
#include "minicache-cuda-turn.cuh"
#include "mma.cuh"

// The state of one block of threads.
//   WIDE  tiles of 16 numbers of V, or of its code, for each warp, see minicache_attn_schedule
//   ROWS  queries, 8 or 16
template <bool CODED, int WIDE, int ROWS>
struct minicache_attn_block {
    typedef ggml_cuda_mma::tile<16, 8, half2> matrix_a;
    typedef ggml_cuda_mma::tile<8, 8, half2>  matrix_b;
    typedef ggml_cuda_mma::tile<16, 8, float> matrix_c;

    typedef minicache_attn_rows<ROWS> row_state;

    static const int COLUMNS    = ROWS / 8;
    static const int WIDE_EXACT = CODED && WIDE > 2 ? WIDE / 2 : WIDE;
    static const int WIDE_CODE  = CODED ? WIDE : 1;

    const minicache_cuda_attn &     a;
    const minicache_attn_schedule & schedule;
    const minicache_query_table &   table;

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
    int32_t * exact;  // cells of exact entries that wait, up to two tiles of them

    row_state &           rows;
    uint32_t *            ballots;  // [warps]
    minicache_cuda_head & head_k;   // of coded entries; in shared memory, because registers are scarce
    minicache_cuda_head & head_v;
    minicache_code_unit * units_k;
    minicache_code_unit * units_v;

    matrix_c acc[WIDE_EXACT][COLUMNS];
    matrix_c acc_code[WIDE_CODE][COLUMNS];

    // The tile that is worked on: its cells, -1 for none, with their bases and magnitudes. Two tiles of shared entries take
    // turns, and a third one is for exact entries.
    int32_t * cell;
    int32_t * base;
    float *   mag_k;
    float *   log_v;
    char *    raw_k;
    char *    raw_v;

    // this thread's cell of the next tile
    int   next_state;
    int   next_base;
    float next_bias;  // the first token's
    float next_mag_k;
    float next_mag_v;

    int  n_exact    = 0;
    bool has_query  = false;  // q_code holds the queries for entries of query_base
    int  query_base = 0;

    __device__ void use(int tile) {
        cell  = cells + tile * MINICACHE_ATTN_CELL * schedule.tile;
        base  = cell + schedule.tile;
        mag_k = (float *) (base + schedule.tile);
        log_v = mag_k + schedule.tile;
        raw_k = raw_rows + (tile & 1) * schedule.raw;
        raw_v = raw_k + schedule.tile * schedule.raw_k;
    }

    __device__ int thread() const { return threadIdx.y * WARP_SIZE + threadIdx.x; }

    __device__ int row_of_head(int r) const { return (row_0 + r) % a.dims.n_gqa; }

    __device__ int head(int r) const { return head_kv * a.dims.n_gqa + row_of_head(r); }

    __device__ int token(int r) const { return (row_0 + r) / a.dims.n_gqa; }

    // Each thread gives one bit; all threads see all warps' words after the next barrier.
    __device__ void vote(bool yes) {
        const uint32_t bits = __ballot_sync(0xFFFFFFFF, yes);
        if (threadIdx.x == 0) {
            ballots[threadIdx.y] = bits;
        }
    }

    // Loads the queries in the layer's own coordinates, each divided so that no number is above 1.
    __device__ void load_queries() {
        for (int r = threadIdx.y; r < ROWS; r += MINICACHE_ATTN_WARPS) {
            const float * x   = r < n_row ? a.query(stream, head(r), token(r)) : nullptr;
            float         top = 0.0f;
            for (int i = threadIdx.x; x && i < a.dims.d_k; i += WARP_SIZE) {
                top = fmaxf(top, fabsf(x[i]));
            }
            top = warp_reduce_max(top);
            for (int i = threadIdx.x; i < a.dims.d_k; i += WARP_SIZE) {
                q[r * schedule.ld_q + i] = __float2half(top > 0.0f ? x[i] / top : 0.0f);
            }
            if (threadIdx.x == 0) {
                rows.scale[r] = top;
            }
        }
    }

    // One warp.
    __device__ void load_head(const minicache_cuda_head & from, minicache_cuda_head & head, minicache_code_unit * units) {
        if (threadIdx.x == 0) {
            head = from;
        }
        for (int i = threadIdx.x; i < from.r / MINICACHE_CODE_UNIT; i += WARP_SIZE) {
            units[i] = minicache_code_unit_at(from.layout, i);
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
            // rows without a query stay zero
            for (int i = thread(); i < ROWS * schedule.ld_q_code; i += MINICACHE_ATTN_WARPS * WARP_SIZE) {
                q_code[i] = __float2half(0.0f);
            }
            if (thread() < ROWS) {
                rows.scale_code[thread()] = 0.0f;
            }
            if (threadIdx.y == 0) {
                load_head(a.head_k(head_kv), head_k, units_k);
            } else if (threadIdx.y == 1) {
                load_head(a.head_v(head_kv), head_v, units_v);
            }
        }
        __syncthreads();
    }

    // Whether a token after the tile's first one sees the cell.
    __device__ bool seen_later(int at) const {
        for (int t = token(0) + 1; t <= token(n_row - 1); ++t) {
            if (a.bias(stream, t, at) != -INFINITY) {
                return true;
            }
        }
        return false;
    }

    // Loads what this thread's cell of the tile from cell_0 on holds. Nothing looks at it before sort(), so that nothing waits.
    __device__ void look(int cell_0, int cell_1) {
        const int at = cell_0 + thread();
        next_state   = GGML_MINICACHE_CELL_EMPTY;
        next_base    = 0;
        next_bias    = -INFINITY;
        if (thread() < schedule.tile && at < cell_1) {
            next_state = a.state(stream, at);
            next_bias  = a.bias(stream, token(0), at);
            if (CODED) {
                next_base = a.base(stream, at);
            }
        }
    }

    // After look(): notes the tile's shared cells and starts to copy their rows; exact entries are put aside. Returns false if no
    // cell is shared.
    __device__ bool sort(int tile, int cell_0) {
        use(tile);
        const int  at     = cell_0 + thread();
        const bool used   = next_state != GGML_MINICACHE_CELL_EMPTY && (next_bias != -INFINITY || seen_later(at));
        const bool merged = used && next_state == GGML_MINICACHE_CELL_MERGED;
        const bool waits  = used && !merged;

        if (thread() < schedule.tile) {
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
        for (int c = threadIdx.y; any && c < schedule.tile; c += MINICACHE_ATTN_WARPS) {
            if (cell[c] >= 0) {
                minicache_stage_row(row(a.k, head_k, c), CODED ? head_k.bytes : a.dims.bytes_k, raw_k + c * schedule.raw_k);
                minicache_stage_row(row(a.v, head_v, c), CODED ? head_v.bytes : a.dims.bytes_v, raw_v + c * schedule.raw_v);
            }
        }
        __pipeline_commit();
        __syncthreads();
        return any;
    }

    // Waits until the tile's rows are there for all threads.
    __device__ void arrive(int tile) {
        use(tile);
        if (!CODED && thread() < schedule.tile && cell[thread()] >= 0) {
            mag_k[thread()] = next_mag_k;
            log_v[thread()] = next_mag_v > 0.0f ? logf(next_mag_v) : -INFINITY;
        }
        __pipeline_wait_prior(0);
        __syncthreads();
    }

    // The row of the tile's cell c in the cache.
    __device__ const char * row(const minicache_cuda_rows & from, const minicache_cuda_head & head, int c) const {
        return CODED ? head.code(from, stream, cell[c]) : from.row(stream, head_kv, cell[c]);
    }

    // Where a row of the cache, that of the tile's cell c, begins among the staged rows, in bytes.
    __device__ static int staged(const char * row, int c, int stride) { return c * stride + (int) ((uintptr_t) row & 2); }

    // Unpacks K and V of the tile's shared entries.
    __device__ void read_shared() {
        if (!CODED) {
            for (int c = threadIdx.y; c < schedule.tile; c += MINICACHE_ATTN_WARPS) {
                const bool there = cell[c] >= 0;
                minicache_read_row(there ? raw_k + staged(row(a.k, head_k, c), c, schedule.raw_k) : nullptr, a.k.type, a.dims.d_k,
                    k + c * schedule.ld_k);
                minicache_read_row(there ? raw_v + staged(row(a.v, head_v, c), c, schedule.raw_v) : nullptr, a.v.type, a.dims.d_v,
                    v + c * schedule.ld_v);
            }
            __syncthreads();
            return;
        }
        // the space of scores and weights, which are not there yet, holds where the staged rows begin
        int32_t * rows_k = (int32_t *) scores;
        int32_t * rows_v = rows_k + schedule.tile;
        if (thread() < schedule.tile) {
            const int c = thread();
            rows_k[c] = rows_v[c] = -1;
            if (cell[c] >= 0) {
                rows_k[c] = staged(row(a.k, head_k, c), c, schedule.raw_k);
                rows_v[c] = staged(row(a.v, head_v, c), c, schedule.raw_v);
                mag_k[c]  = expf(a.log_magnitude(0, head_kv, raw_k + rows_k[c]));
                log_v[c]  = a.log_magnitude(2, head_kv, raw_v + rows_v[c]);
            }
        }
        __syncthreads();
        minicache_read_units(raw_k, rows_k, schedule.tile, units_k, head_k.r / MINICACHE_CODE_UNIT, k, schedule.ld_k);
        minicache_read_units(raw_v, rows_v, schedule.tile, units_v, head_v.r / MINICACHE_CODE_UNIT, v, schedule.ld_v);
        __syncthreads();
    }

    // Takes the first n of the exact entries that wait into the tile.
    __device__ void read_exact(int n) {
        use(2);
        if (thread() < schedule.tile) {
            cell[thread()]  = thread() < n ? exact[thread()] : -1;
            mag_k[thread()] = 1.0f;
            log_v[thread()] = 0.0f;
        }
        __syncthreads();
        for (int c = threadIdx.y; c < schedule.tile; c += MINICACHE_ATTN_WARPS) {
            if (cell[c] >= 0) {
                a.read_exact(stream, head_kv, cell[c], k + c * schedule.ld_k, v + c * schedule.ld_v);
            } else {
                minicache_read_row(nullptr, GGML_TYPE_F16, a.dims.d_k, k + c * schedule.ld_k);
                minicache_read_row(nullptr, GGML_TYPE_F16, a.dims.d_v, v + c * schedule.ld_v);
            }
        }
        if (thread() < schedule.tile && n + thread() < n_exact) {
            // the rest, a tile at most, moves up
            const int left  = exact[n + thread()];
            exact[thread()] = left;
        }
        n_exact -= n;
        __syncthreads();
    }

    // Sets q_code for entries of base b: from the table, if the span of the cell `at` has the base there, else by turning
    // queries.
    __device__ void load_code_query(int b, int at) {
        if (has_query && query_base == b) {
            return;
        }
        const int64_t span  = (int64_t) stream * schedule.n_span + at / MINICACHE_ATTN_SPAN;
        int           found = -1;
        for (int e = 0; e < table.n_base[span]; ++e) {
            found = table.base[span * schedule.n_base + e] == b ? e : found;
        }
        if (found >= 0) {
            const int64_t entry = span * schedule.n_base + found;
            const int64_t first = (entry * a.dims.n_head_kv + head_kv) * schedule.n_row_tile * ROWS + row_0;
            const int     n     = head_k.r / 8;
            for (int i = thread(); i < ROWS * n; i += MINICACHE_ATTN_WARPS * WARP_SIZE) {
                const int r = i / n;
                ((int4 *) (q_code + r * schedule.ld_q_code))[i % n] =
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
                    a, head_k, a.query(stream, head(r), token(r)), scratch, q_code + r * schedule.ld_q_code, rows.scale_code + r);
            }
        }
        has_query  = true;
        query_base = b;
        __syncthreads();
    }

    // Scores coded entries, one base of the tile after the other. Most tiles have one base.
    __device__ void score_codes() {
        bool waits = thread() < schedule.tile && cell[thread()] >= 0;
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
                k, schedule.ld_k, schedule.tile, q_code, schedule.ld_q_code, head_k.r, rows.scale_code, base, b, scores);
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
        for (int c = 0; c < schedule.tile; c += 16) {
            matrix_a values;
            ggml_cuda_mma::load_ldmatrix_trans(values, (const half2 *) (v + c * schedule.ld_v + m * 16), schedule.ld_v / 2);
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) {
                matrix_b w;
                ggml_cuda_mma::load_ldmatrix(w, (const half2 *) (weights + j * 8 * schedule.ld_p + c), schedule.ld_p / 2);
                ggml_cuda_mma::mma(x[j], values, w);
            }
        }
    }

    // acc = acc*rescale + weights*V, for the first n numbers of V.
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

    // Adds the tile to the result.
    __device__ void update(bool code) {
        if (code) {
            score_codes();
        } else {
            minicache_attn_multiply<ROWS>(
                k, schedule.ld_k, schedule.tile, q, schedule.ld_q, a.dims.d_k, rows.scale, nullptr, 0, scores);
            __syncthreads();
        }
        minicache_attn_soften<ROWS>(a, schedule, rows, stream, n_row, cell, mag_k, log_v, scores, weights);
        accumulate_all(acc, code ? 0 : a.dims.d_v);
        if (CODED) {
            accumulate_all(acc_code, code ? head_v.r : 0);
        }
        __syncthreads();
    }

    // Each step sorts the next tile and attends to the one before it. Exact entries are attended to when there is a full tile of
    // them, and at the end.
    __device__ void attend(int cell_0, int cell_1) {
        look(cell_0, cell_1);
        bool any  = false;
        int  tile = 1;
        for (int at = cell_0 - schedule.tile; at < cell_1 || n_exact > 0; at += schedule.tile, tile ^= 1) {
            const int next     = at + schedule.tile;
            bool      any_next = false;
            if (any) {
                arrive(tile);
            }
            if (next < cell_1) {
                any_next = sort(tile ^ 1, next);
                look(next + schedule.tile, cell_1);
            }
            const bool exact_too = n_exact >= schedule.tile || (next >= cell_1 && n_exact > 0);
#pragma unroll 1
            for (int kind = any ? 0 : 1; kind < (exact_too ? 2 : 1); ++kind) {
                if (kind == 0) {
                    use(tile);
                    read_shared();
                } else {
                    read_exact(minicache_min(n_exact, schedule.tile));
                }
                update(CODED && kind == 0);
            }
            any = any_next;
        }
    }

    // Writes the maxima, sums and accumulators of this chunk.
    __device__ void write(float * partials, int split) const {
        const int n = minicache_attn_partial(a.dims);

        const auto partial = [&](int r) {
            return partials +
                   ((((int64_t) stream * a.dims.n_head + head(r)) * a.dims.n_tps + token(r)) * schedule.n_split + split) * n;
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
            write_all(
                acc_code, head_v.r, [&](int r, int at, float x) { partial(r)[4 + a.dims.d_v + minicache_code_placed(at)] = x; });
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
static __global__ void __launch_bounds__(MINICACHE_ATTN_WARPS * WARP_SIZE) minicache_attn_kernel(
    const MINICACHE_PARAMETER minicache_cuda_attn a, const MINICACHE_PARAMETER minicache_attn_schedule schedule,
    const MINICACHE_PARAMETER minicache_query_table table, float * partials) {
    MINICACHE_SHARED(shared);

    typedef minicache_attn_block<CODED, WIDE, ROWS> block;

    __shared__ typename block::row_state rows;
    __shared__ uint32_t                  ballots[MINICACHE_ATTN_WARPS];
    __shared__ minicache_cuda_head       head_k;
    __shared__ minicache_cuda_head       head_v;
    __shared__ minicache_code_unit       units_k[MINICACHE_ATTN_CODE / MINICACHE_CODE_UNIT];
    __shared__ minicache_code_unit       units_v[MINICACHE_ATTN_CODE / MINICACHE_CODE_UNIT];

    int32_t * cells    = (int32_t *) (shared + schedule.at_cells);
    const int split    = blockIdx.x / schedule.n_row_tile;
    const int row_tile = blockIdx.x % schedule.n_row_tile;
    const int row_0    = row_tile * ROWS;

    block b = {
        a,
        schedule,
        table,
        (int) blockIdx.z,
        (int) blockIdx.y,
        row_0,
        minicache_min(ROWS, schedule.n_row - row_0),
        (half *) shared,
        (half *) (shared + schedule.at_v),
        (half *) (shared + schedule.at_q),
        (half *) (shared + schedule.at_q_code),
        (half *) (shared + schedule.at_p),
        (float *) (shared + schedule.at_scores),
        shared + schedule.at_raw,
        cells,
        cells + 3 * MINICACHE_ATTN_CELL * schedule.tile,
        rows,
        ballots,
        head_k,
        head_v,
        units_k,
        units_v,
    };
    const int cell_0 = split * schedule.chunk;

    b.begin();
    b.attend(cell_0, minicache_min(a.dims.n_kv, cell_0 + schedule.chunk));
    b.write(partials, split);
}
