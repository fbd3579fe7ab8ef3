#include "minicache-cpu-attn.h"

#include "ggml-cpu.h"
#include "minicache-cpu-simd.h"
#include "vec.h"

#include <algorithm>

// One pass over the cache per KV head, for a tile of tokens times all query heads of that KV head, so that each row is
// read and converted once for all of them. Entries are gathered into blocks of shared ones, merged or coded, and of exact
// ones; a block gives its scores, one online softmax update (Milakov and Gimelshein 2018, arXiv 1805.02867) and its weighted
// sum. Shared and exact entries have their own query and their own accumulator (DESIGN 6): for merged entries in the same
// basis, for coded ones in that of the code. There the query is turned back by the block's base and multiplied by K's decoder
// whenever the base changes, and the accumulator by V's decoder once.
//
// Parallel over (stream, KV head, tile of tokens) and, where that is fewer than the threads, over chunks of the cells, whose
// partial results are combined at the end.

static const int     BLOCK       = 64;   // entries in a block
static const int     OPEN_BLOCKS = 8;    // blocks of shared entries that are filled at a time
static const int64_t MAX_ROWS    = 64;   // queries in a tile
static const int64_t MIN_CHUNK   = 256;  // cells that are worth a chunk of their own

// The cosines and sines of a base, in float32. Where bases advance by the same step, those of the next are the product of
// the last ones and the step's; a fresh start from double now and then keeps the error below 1e-5.
class base_angles {
  public:
    static int64_t n_float(const minicache_code_shape & shape) { return 4 * (int64_t) minicache_code_n_pair(shape); }

    base_angles(const minicache_code_shape & shape, const void * codec, float * scratch) :
        freq(minicache_code_freq(shape, codec)), n(minicache_code_n_pair(shape)), cos_b(scratch), sin_b(cos_b + n),
        cos_step(sin_b + n), sin_step(cos_step + n) {}

    const float * cosines() const { return cos_b; }

    const float * sines() const { return sin_b; }

    void set(int32_t base) {
        const int64_t advance = (int64_t) base - at;
        if (advance == 0 && n_step < MAX_STEPS) {
            return;
        }
        at = base;
        if (advance == step && n_step < MAX_STEPS) {
            ++n_step;
            for (int i = 0; i < n; ++i) {
                const float c = cos_b[i] * cos_step[i] - sin_b[i] * sin_step[i];
                sin_b[i]      = cos_b[i] * sin_step[i] + sin_b[i] * cos_step[i];
                cos_b[i]      = c;
            }
            return;
        }
        turn(base, cos_b, sin_b);
        n_step = 0;
        if (advance != step) {
            step = advance;
            turn(step, cos_step, sin_step);
        }
    }

  private:
    static const int MAX_STEPS = 32;

    const float * freq;
    const int     n;
    float *       cos_b;
    float *       sin_b;
    float *       cos_step;
    float *       sin_step;
    int32_t       at     = 0;
    int64_t       step   = 0;
    int           n_step = MAX_STEPS;  // nothing is known yet

    void turn(int64_t position, float * c, float * s) const {
        for (int i = 0; i < n; ++i) {
            const double angle = (double) position * freq[i];
            c[i]               = (float) cos(angle);
            s[i]               = (float) sin(angle);
        }
    }
};

// how the op is cut into pieces of work
struct attn_plan {
    attn_plan(const minicache_attn & a, int n_threads) :
        tile(std::min(a.n_tps, std::max<int64_t>(1, MAX_ROWS / a.n_gqa))), n_tile((a.n_tps + tile - 1) / tile),
        n_item(a.n_stream * a.n_head_kv * n_tile),
        n_chunk(n_item >= n_threads ? 1 : std::max<int64_t>(1, std::min((n_threads + n_item - 1) / n_item, a.n_kv / MIN_CHUNK))),
        rows(tile * a.n_gqa), d_k(minicache_padded(a.d_k)), d_v(minicache_padded(a.d_v)), r_k(minicache_padded(a.r_k)),
        r_v(minicache_padded(a.r_v)), row_k(std::max(d_k, r_k)), row_v(std::max(d_v, r_v)),
        decoder(a.coded ? std::max(a.d_k * r_k, a.d_v * r_v) : 0), turned(a.coded ? rows * std::max(d_k, d_v) : 0),
        angles(base_angles::n_float(a.shape)) {}

    const int64_t tile;  // tokens
    const int64_t n_tile;
    const int64_t n_item;  // (stream, KV head, tile)
    const int64_t n_chunk;
    const int64_t rows;  // queries in a whole tile
    const int64_t d_k;   // padded, as the following
    const int64_t d_v;
    const int64_t r_k;
    const int64_t r_v;
    const int64_t row_k;  // the longest row of K
    const int64_t row_v;
    const int64_t decoder;
    const int64_t turned;
    const int64_t angles;

    int64_t scratch_floats() const {
        return rows * (d_k + r_k + d_v + r_v + 2 + 2 * BLOCK) + BLOCK * (row_k + row_v) + decoder + turned + angles;
    }

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
    int     n    = 0;
    int32_t base = 0;  // of all coded entries
    int64_t cell[BLOCK];
    float   mag_k[BLOCK];
    float   mag_v[BLOCK];
};

// Blocks of shared entries by their bases. A few are open at a time, as the cells of sequences that decode together lie in
// turns; the oldest gives way.
class shared_blocks {
  public:
    entry_block & current() { return blocks[i_current]; }

    // Makes the block of `base` the current one. False where there is none: then the oldest is, to be flushed and reused.
    bool select(int32_t base) {
        for (int i = 0; i < OPEN_BLOCKS; ++i) {
            if (blocks[i].base == base) {
                i_current = i;
                return true;
            }
        }
        i_current = i_oldest;
        i_oldest  = (i_oldest + 1) % OPEN_BLOCKS;
        return false;
    }

    entry_block & oldest() {
        entry_block & block = blocks[i_oldest];
        i_oldest            = (i_oldest + 1) % OPEN_BLOCKS;
        return block;
    }

  private:
    entry_block blocks[OPEN_BLOCKS];
    int         i_current = 0;
    int         i_oldest  = 0;
};

// the queries of one KV head for a tile of tokens, row = token*n_gqa + head in the group
struct attn_tile {
    attn_tile(const minicache_attn & a, const attn_plan & plan, float * scratch) :
        a(a), d_k(plan.d_k), d_v(plan.d_v), r_k(plan.r_k), r_v(plan.r_v), q(scratch), q_code(q + plan.rows * d_k),
        acc_shared(q_code + plan.rows * r_k), acc_exact(acc_shared + plan.rows * r_v), row_max(acc_exact + plan.rows * d_v),
        row_sum(row_max + plan.rows), scores(row_sum + plan.rows), bias(scores + plan.rows * BLOCK), k(bias + plan.rows * BLOCK),
        v(k + BLOCK * plan.row_k), decoder(v + BLOCK * plan.row_v), turned(decoder + plan.decoder),
        angles(a.shape, a.coded ? a.codec->data : nullptr, turned + plan.turned) {}

    const minicache_attn & a;

    const int64_t d_k;
    const int64_t d_v;
    const int64_t r_k;
    const int64_t r_v;

    int64_t stream;
    int64_t head_kv;
    int64_t token_0;
    int64_t n_token;
    int64_t n_row;

    float * q;           // [rows][d_k]
    float * q_code;      // [rows][r_k], as coded entries of one base see the queries
    float * acc_shared;  // [rows][r_v]
    float * acc_exact;   // [rows][d_v]
    float * row_max;     // [rows]
    float * row_sum;     // [rows]
    float * scores;      // [rows][BLOCK]
    float * bias;        // [tokens][BLOCK]
    float * k;           // [BLOCK][d_k or r_k]
    float * v;           // [BLOCK][d_v or r_v]
    float * decoder;     // [d_k][r_k], at the end [d_v][r_v]
    float * turned;      // [rows][d_k]: queries, or keys, which are fewer; at the end [rows][d_v]

    minicache_code_head code_k;
    minicache_code_head code_v;
    bool                decoding;        // the decoder of K is there
    bool                turned_to_base;  // q_code is for entries of `base`
    int32_t             base;
    base_angles         angles;

    void begin(int64_t s, int64_t h, int64_t i0, int64_t n) {
        stream  = s;
        head_kv = h;
        token_0 = i0;
        n_token = n;
        n_row   = n * a.n_gqa;

        for (int64_t r = 0; r < n_row; ++r) {
            const float * x = a.query(s, h * a.n_gqa + r % a.n_gqa, i0 + r / a.n_gqa);
            std::copy(x, x + a.d_k, q + r * d_k);
            pad(q + r * d_k, a.d_k, d_k);
        }
        std::fill(acc_shared, acc_shared + n_row * r_v, 0.0f);
        std::fill(acc_exact, acc_exact + n_row * d_v, 0.0f);
        std::fill(row_max, row_max + n_row, -INFINITY);
        std::fill(row_sum, row_sum + n_row, 0.0f);

        if (a.coded) {
            code_k   = minicache_code_head_k(a.shape, a.codec->data, h);
            code_v   = minicache_code_head_v(a.shape, a.codec->data, h);
            decoding = turned_to_base = false;
        }
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
        const int32_t * bases = a.coded ? a.bases(stream) : nullptr;

        shared_blocks shared;
        entry_block   exact;

        for (int64_t cell = cell_0; cell < cell_1; ++cell) {
            if (cells[cell] == GGML_MINICACHE_CELL_EMPTY || !sees(cell)) {
                continue;
            }
            if (cells[cell] != GGML_MINICACHE_CELL_MERGED) {
                exact.cell[exact.n++] = cell;
                if (exact.n == BLOCK) {
                    flush_exact(exact);
                }
                continue;
            }
            const int32_t base = bases ? bases[cell] : 0;
            if (base != shared.current().base && !shared.select(base)) {
                flush_shared(shared.current());
                shared.current().base = base;
            }
            entry_block & block   = shared.current();
            block.cell[block.n++] = cell;
            if (block.n == BLOCK) {
                flush_shared(block);
            }
        }
        for (int i = 0; i < OPEN_BLOCKS; ++i) {
            flush_shared(shared.oldest());
        }
        flush_exact(exact);
    }

    // all accumulators to acc_exact, in the layer's own basis, unnormalised
    void finish() {
        const float * sum = acc_shared;
        if (a.coded) {
            if (!decoding) {
                return;  // no coded entry was seen
            }
            read_decoder(code_v, r_v);
            minicache_scores(acc_shared, n_row, decoder, (int) a.d_v, r_v, turned, d_v);
            sum = turned;
        }
        for (int64_t r = 0; r < n_row; ++r) {
            for (int64_t j = 0; j < a.d_v; ++j) {
                acc_exact[r * d_v + j] += sum[r * d_v + j];
            }
        }
    }

  private:
    static void pad(float * row, int64_t n, int64_t n_padded) { std::fill(row + n, row + n_padded, 0.0f); }

    void flush_shared(entry_block & block) {
        if (block.n == 0) {
            return;
        }
        if (a.coded) {
            read_codes(block);
        } else {
            read_directions(block);
        }
        for (int c = 0; c < block.n; ++c) {
            pad(k + c * r_k, a.r_k, r_k);
            pad(v + c * r_v, a.r_v, r_v);
        }
        if (!a.coded) {
            update(block, q, k, r_k, acc_shared, r_v);
        } else if (block.n < n_row && !(turned_to_base && block.base == base)) {
            decode_keys(block);
            update(block, q, turned, d_k, acc_shared, r_v);
        } else {
            turn_queries(block.base);
            update(block, q_code, k, r_k, acc_shared, r_v);
        }
    }

    void flush_exact(entry_block & block) {
        const int32_t * cells = a.cells(stream);
        for (int c = 0; c < block.n; ++c) {
            a.read_exact(stream, head_kv, block.cell[c], cells[block.cell[c]], k + c * d_k, v + c * d_v);
            pad(k + c * d_k, a.d_k, d_k);
            pad(v + c * d_v, a.d_v, d_v);
            block.mag_k[c] = 1.0f;
            block.mag_v[c] = 1.0f;
        }
        update(block, q, k, d_k, acc_exact, d_v);
    }

    void read_directions(entry_block & block) const {
        for (int c = 0; c < block.n; ++c) {
            a.read_merged(stream, head_kv, block.cell[c], k + c * r_k, v + c * r_v);
            block.mag_k[c] = a.magnitude(MINICACHE_MAG_K, stream, head_kv, block.cell[c]);
            block.mag_v[c] = a.magnitude(MINICACHE_MAG_V, stream, head_kv, block.cell[c]);
        }
    }

    void read_codes(entry_block & block) const {
        const uint8_t * rows_k[BLOCK];
        const uint8_t * rows_v[BLOCK];
        for (int c = 0; c < block.n; ++c) {
            rows_k[c]      = a.code_k(stream, head_kv, block.cell[c]);
            rows_v[c]      = a.code_v(stream, head_kv, block.cell[c]);
            block.mag_k[c] = code_k.log_magnitude(rows_k[c], a.p.side);
            block.mag_v[c] = code_v.log_magnitude(rows_v[c], a.p.side);
        }
        minicache_code_read(code_k.layout, rows_k, block.n, k, r_k);
        minicache_code_read(code_v.layout, rows_v, block.n, v, r_v);
        ggml_vec_soft_max_f32(block.n, block.mag_k, block.mag_k, 0.0f);  // e^x
        ggml_vec_soft_max_f32(block.n, block.mag_v, block.mag_v, 0.0f);
    }

    // the layer's decoder of K or V as float32, rows padded
    void read_decoder(const minicache_code_head & head, int64_t r_padded) {
        const ggml_fp16_t * x = head.decoder(a.p.side);
        for (int64_t i = 0; i < head.d; ++i) {
            ggml_cpu_fp16_to_fp32(x + i * head.r, decoder + i * r_padded, head.r);
            pad(decoder + i * r_padded, head.r, r_padded);
        }
    }

    // the decoder of K, once for the tile
    void prepare() {
        if (!decoding) {
            read_decoder(code_k, r_k);
            decoding = true;
        }
    }

    // (R(-b)q)ᵀD of each row: n_row products with the decoder for all entries of the base
    void turn_queries(int32_t b) {
        if (turned_to_base && b == base) {
            return;
        }
        prepare();
        angles.set(b);
        std::copy(q, q + n_row * d_k, turned);
        for (int64_t r = 0; r < n_row; ++r) {
            minicache_code_turn(a.shape, angles.cosines(), angles.sines(), true, turned + r * d_k);
        }
        std::fill(q_code, q_code + n_row * r_k, 0.0f);
        minicache_accumulate(q_code, n_row, turned, d_k, decoder, (int) a.d_k, r_k);
        turned_to_base = true;
        base           = b;
    }

    // R(b)û of each entry: the cheaper way where the entries of a base are fewer than the queries
    void decode_keys(const entry_block & block) {
        prepare();
        angles.set(block.base);
        minicache_scores(k, block.n, decoder, (int) a.d_k, r_k, turned, d_k);
        for (int c = 0; c < block.n; ++c) {
            pad(turned + c * d_k, a.d_k, d_k);
            minicache_code_turn(a.shape, angles.cosines(), angles.sines(), false, turned + c * d_k);
        }
    }

    // The block joins the softmax: `keys` of length n_k are scored with `queries`, and the weighted sum of the rows in v, of
    // length n_v, goes to `acc`.
    void update(entry_block & block, const float * queries, const float * keys, int64_t n_k, float * acc, int64_t n_v) {
        if (block.n == 0) {
            return;
        }
        minicache_scores(queries, n_row, keys, block.n, n_k, scores, BLOCK);

        for (int64_t i = 0; i < n_token; ++i) {
            const ggml_fp16_t * mask = a.mask_row(stream, token_0 + i);
            for (int c = 0; c < block.n; ++c) {
                bias[i * BLOCK + c] = mask ? GGML_CPU_FP16_TO_FP32(mask[block.cell[c]]) : 0.0f;
            }
        }
        for (int64_t r = 0; r < n_row; ++r) {
            softmax_row(block, r);
        }
        minicache_accumulate(acc, n_row, scores, BLOCK, v, block.n, n_v);
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
        minicache_rescale(acc_shared + r * r_v, factor, r_v);
        minicache_rescale(acc_exact + r * d_v, factor, d_v);
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

        tile.finish();

        for (int64_t r = 0; r < tile.n_row; ++r) {
            const float * acc = tile.acc_exact + r * plan.d_v;
            if (plan.n_chunk == 1) {
                write_row(a, dst, tile, r, tile.row_max[r], tile.row_sum[r], acc);
            } else {
                float * x = partials + it * plan.partial_floats() + r * (2 + plan.d_v);
                x[0]      = tile.row_max[r];
                x[1]      = tile.row_sum[r];
                std::copy(acc, acc + plan.d_v, x + 2);
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
            combine(plan, partials + item * plan.n_chunk * plan.partial_floats(), r, &max, &sum, tile.acc_exact);
            write_row(a, dst, tile, r, max, sum, tile.acc_exact);
        }
    }
}
