#include "minicache-cpu-attn.h"
#include "minicache-cpu-simd.h"
#include "vec.h"

#include <algorithm>

// One pass over the cache per KV head, for a tile of tokens times all query heads of that KV head, so that each row is
// read and converted once for all of them. Entries are gathered into blocks of merged and of exact ones; a block gives its
// scores, one online softmax update (Milakov and Gimelshein 2018, arXiv 1805.02867) and its weighted sum. Merged and exact
// entries have their own query and their own accumulator (DESIGN 6), here in the same basis.
//
// Parallel over (stream, KV head, tile of tokens) and, where that is fewer than the threads, over chunks of the cells, whose
// partial results are combined at the end.

static const int     BLOCK     = 64;   // entries in a block
static const int64_t MAX_ROWS  = 64;   // queries in a tile
static const int64_t MIN_CHUNK = 256;  // cells that are worth a chunk of their own

// how the op is cut into pieces of work
struct attn_plan {
    attn_plan(const minicache_attn & a, int n_threads) :
        tile(std::min(a.n_tps, std::max<int64_t>(1, MAX_ROWS / a.n_gqa))), n_tile((a.n_tps + tile - 1) / tile),
        n_item(a.n_stream * a.n_head_kv * n_tile),
        n_chunk(n_item >= n_threads ? 1 : std::max<int64_t>(1, std::min((n_threads + n_item - 1) / n_item, a.n_kv / MIN_CHUNK))),
        rows(tile * a.n_gqa), d_k(minicache_padded(a.d_k)), d_v(minicache_padded(a.d_v)) {}

    const int64_t tile;  // tokens
    const int64_t n_tile;
    const int64_t n_item;  // (stream, KV head, tile)
    const int64_t n_chunk;
    const int64_t rows;  // queries in a whole tile
    const int64_t d_k;   // padded
    const int64_t d_v;

    int64_t scratch_floats() const { return rows * (d_k + 2 * d_v + 2 + BLOCK) + BLOCK * (d_k + d_v) + rows * BLOCK; }

    // maximum, sum and accumulator of each row
    int64_t partial_floats() const { return n_chunk == 1 ? 0 : rows * (2 + d_v); }

    int64_t n_partial() const { return n_chunk == 1 ? 0 : n_item * n_chunk; }
};

size_t minicache_cpu_attn_work_size(const ggml_tensor * op, int n_threads) {
    const attn_plan plan(minicache_attn(op), n_threads);

    return sizeof(float) * (n_threads * plan.scratch_floats() + plan.n_partial() * plan.partial_floats());
}

// entries on their way to the kernel
struct entry_block {
    int     n = 0;
    int64_t cell[BLOCK];
    float   mag_k[BLOCK];
    float   mag_v[BLOCK];
};

// the queries of one KV head for a tile of tokens, row = token*n_gqa + head in the group
struct attn_tile {
    attn_tile(const minicache_attn & a, const attn_plan & plan, float * scratch) : a(a), d_k(plan.d_k), d_v(plan.d_v) {
        q          = scratch;
        acc_merged = q + plan.rows * d_k;
        acc_exact  = acc_merged + plan.rows * d_v;
        row_max    = acc_exact + plan.rows * d_v;
        row_sum    = row_max + plan.rows;
        scores     = row_sum + plan.rows;
        k          = scores + plan.rows * BLOCK;
        v          = k + BLOCK * d_k;
        bias       = v + BLOCK * d_v;
        std::fill(k, k + BLOCK * (d_k + d_v), 0.0f);
    }

    const minicache_attn & a;

    const int64_t d_k;
    const int64_t d_v;

    int64_t stream;
    int64_t head_kv;
    int64_t token_0;
    int64_t n_token;
    int64_t n_row;

    float * q;           // [rows][d_k]; merged and exact entries share a basis, so one query serves both
    float * acc_merged;  // [rows][d_v]
    float * acc_exact;   // [rows][d_v]
    float * row_max;     // [rows]
    float * row_sum;     // [rows]
    float * scores;      // [rows][BLOCK]
    float * k;           // [BLOCK][d_k]
    float * v;           // [BLOCK][d_v]
    float * bias;        // [tokens][BLOCK]

    void begin(int64_t s, int64_t h, int64_t i0, int64_t n) {
        stream  = s;
        head_kv = h;
        token_0 = i0;
        n_token = n;
        n_row   = n * a.n_gqa;

        for (int64_t r = 0; r < n_row; ++r) {
            const float * x = a.query(s, h * a.n_gqa + r % a.n_gqa, i0 + r / a.n_gqa);
            std::copy(x, x + a.d_k, q + r * d_k);
            std::fill(q + r * d_k + a.d_k, q + (r + 1) * d_k, 0.0f);
        }
        std::fill(acc_merged, acc_merged + n_row * d_v, 0.0f);
        std::fill(acc_exact, acc_exact + n_row * d_v, 0.0f);
        std::fill(row_max, row_max + n_row, -INFINITY);
        std::fill(row_sum, row_sum + n_row, 0.0f);
    }

    bool sees(int64_t cell) const {
        for (int64_t i = 0; i < n_token; ++i) {
            const ggml_fp16_t * mask = a.mask_row(stream, token_0 + i);
            if (!mask || mask[cell] != 0xFC00) {  // -inf in f16
                return true;
            }
        }
        return false;
    }

    void attend(int64_t cell_0, int64_t cell_1) {
        const int32_t * cells = a.cells(stream);

        entry_block merged;
        entry_block exact;

        for (int64_t cell = cell_0; cell < cell_1; ++cell) {
            if (cells[cell] == GGML_MINICACHE_CELL_EMPTY || !sees(cell)) {
                continue;
            }
            entry_block & block   = cells[cell] == GGML_MINICACHE_CELL_MERGED ? merged : exact;
            block.cell[block.n++] = cell;

            if (merged.n == BLOCK) {
                flush_merged(merged);
            }
            if (exact.n == BLOCK) {
                flush_exact(exact);
            }
        }
        flush_merged(merged);
        flush_exact(exact);
    }

    void flush_merged(entry_block & block) {
        for (int c = 0; c < block.n; ++c) {
            a.read_merged(stream, head_kv, block.cell[c], k + c * d_k, v + c * d_v);
            block.mag_k[c] = a.magnitude(MINICACHE_MAG_K, stream, head_kv, block.cell[c]);
            block.mag_v[c] = a.magnitude(MINICACHE_MAG_V, stream, head_kv, block.cell[c]);
        }
        update(block, acc_merged);
    }

    void flush_exact(entry_block & block) {
        const int32_t * cells = a.cells(stream);
        for (int c = 0; c < block.n; ++c) {
            a.read_exact(stream, head_kv, block.cell[c], cells[block.cell[c]], k + c * d_k, v + c * d_v);
            block.mag_k[c] = 1.0f;
            block.mag_v[c] = 1.0f;
        }
        update(block, acc_exact);
    }

    // the block in k and v joins the softmax, its weighted sum goes to acc
    void update(entry_block & block, float * acc) {
        if (block.n == 0) {
            return;
        }
        minicache_scores(q, n_row, k, block.n, d_k, scores, BLOCK);

        for (int64_t i = 0; i < n_token; ++i) {
            const ggml_fp16_t * mask = a.mask_row(stream, token_0 + i);
            for (int c = 0; c < block.n; ++c) {
                bias[i * BLOCK + c] = mask ? GGML_CPU_FP16_TO_FP32(mask[block.cell[c]]) : 0.0f;
            }
        }
        for (int64_t r = 0; r < n_row; ++r) {
            softmax_row(block, r);
        }
        minicache_accumulate(acc, n_row, scores, BLOCK, v, block.n, d_v);
        block.n = 0;
    }

    // scores of one row to weights, magnitudes of V included
    void softmax_row(const entry_block & block, int64_t r) {
        const float   slope = a.slope(head_kv * a.n_gqa + r % a.n_gqa);
        const float * b     = bias + r / a.n_gqa * BLOCK;
        float *       s     = scores + r * BLOCK;

        float max = row_max[r];
        if (a.p.softcap == 0.0f) {
            for (int c = 0; c < block.n; ++c) {
                s[c] = a.p.scale * s[c] * block.mag_k[c] + slope * b[c];
                max  = std::max(max, s[c]);
            }
        } else {
            for (int c = 0; c < block.n; ++c) {
                s[c] = a.score(s[c], block.mag_k[c], slope * b[c]);
                max  = std::max(max, s[c]);
            }
        }
        if (max == -INFINITY) {
            std::fill(s, s + block.n, 0.0f);
            return;
        }
        if (max > row_max[r]) {
            raise_max(r, max);
        }
        row_sum[r] += (float) ggml_vec_soft_max_f32(block.n, s, s, max);
        for (int c = 0; c < block.n; ++c) {
            s[c] *= block.mag_v[c];
        }
    }

    void raise_max(int64_t r, float max) {
        const float factor = expf(row_max[r] - max);
        row_max[r]         = max;
        row_sum[r] *= factor;
        minicache_rescale(acc_merged + r * d_v, factor, d_v);
        minicache_rescale(acc_exact + r * d_v, factor, d_v);
    }

    // Σ of row r in the layer's own basis, unnormalised
    void decode_row(int64_t r, float * out) const {
        for (int64_t j = 0; j < d_v; ++j) {
            out[j] = acc_merged[r * d_v + j] + acc_exact[r * d_v + j];
        }
    }
};

static void write_row(
    const minicache_attn & a, ggml_tensor * dst, const attn_tile & tile, int64_t r, float max, float sum, const float * acc) {
    const int64_t head = tile.head_kv * a.n_gqa + r % a.n_gqa;
    const int64_t i    = tile.token_0 + r / a.n_gqa;

    float factor = 1.0f;
    if (a.sinks) {
        const float sink     = ((const float *) a.sinks->data)[head];
        const float max_sink = std::max(max, sink);
        factor               = expf(max - max_sink);
        sum                  = sum * factor + expf(sink - max_sink);
    }
    const float norm = sum > 0.0f ? factor / sum : 0.0f;

    auto * out = (float *) ((char *) dst->data + tile.stream * dst->nb[3] + i * dst->nb[2] + head * dst->nb[1]);
    for (int64_t j = 0; j < a.d_v; ++j) {
        out[j] = norm * acc[j];
    }
}

// the chunks of each row under one maximum
static void combine(const attn_plan & plan, const float * partials, int64_t r, float * max, float * sum, float * acc) {
    *max = -INFINITY;
    *sum = 0.0f;
    std::fill(acc, acc + plan.d_v, 0.0f);

    for (int64_t c = 0; c < plan.n_chunk; ++c) {
        *max = std::max(*max, partials[c * plan.partial_floats() + r * (2 + plan.d_v)]);
    }
    if (*max == -INFINITY) {
        return;
    }
    for (int64_t c = 0; c < plan.n_chunk; ++c) {
        const float * x      = partials + c * plan.partial_floats() + r * (2 + plan.d_v);
        const float   factor = expf(x[0] - *max);
        *sum += factor * x[1];
        for (int64_t j = 0; j < plan.d_v; ++j) {
            acc[j] += factor * x[2 + j];
        }
    }
}

void minicache_cpu_attn(const ggml_compute_params * params, ggml_tensor * dst) {
    const minicache_attn a(dst);
    const attn_plan      plan(a, params->nth);

    auto *  work     = (float *) params->wdata;
    float * partials = work + params->nth * plan.scratch_floats();

    attn_tile tile(a, plan, work + params->ith * plan.scratch_floats());

    const auto begin = [&](int64_t item) {
        const int64_t i0 = item % plan.n_tile * plan.tile;
        tile.begin(item / plan.n_tile / a.n_head_kv, item / plan.n_tile % a.n_head_kv, i0, std::min(plan.tile, a.n_tps - i0));
    };

    const int64_t chunk = (a.n_kv + plan.n_chunk - 1) / plan.n_chunk;

    for (int64_t it = params->ith; it < plan.n_item * plan.n_chunk; it += params->nth) {
        begin(it / plan.n_chunk);

        const int64_t cell_0 = it % plan.n_chunk * chunk;
        tile.attend(cell_0, std::min(a.n_kv, cell_0 + chunk));

        for (int64_t r = 0; r < tile.n_row; ++r) {
            if (plan.n_chunk == 1) {
                tile.decode_row(r, tile.acc_merged + r * plan.d_v);
                write_row(a, dst, tile, r, tile.row_max[r], tile.row_sum[r], tile.acc_merged + r * plan.d_v);
            } else {
                float * x = partials + it * plan.partial_floats() + r * (2 + plan.d_v);
                x[0]      = tile.row_max[r];
                x[1]      = tile.row_sum[r];
                tile.decode_row(r, x + 2);
            }
        }
    }
    if (plan.n_chunk == 1) {
        return;
    }
    ggml_barrier(params->threadpool);

    for (int64_t item = params->ith; item < plan.n_item; item += params->nth) {
        begin(item);
        for (int64_t r = 0; r < tile.n_row; ++r) {
            float max;
            float sum;
            combine(plan, partials + item * plan.n_chunk * plan.partial_floats(), r, &max, &sum, tile.acc_merged);
            write_row(a, dst, tile, r, max, sum, tile.acc_merged);
        }
    }
}
