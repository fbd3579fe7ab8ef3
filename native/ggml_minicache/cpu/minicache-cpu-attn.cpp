#include "minicache-cpu-attn.h"

#include "ggml-cpu.h"
#include "minicache-cpu-kernels.h"
#include "vec.h"

#include <algorithm>

// One pass over the cache, for a tile of tokens times all query heads of a KV head, so that each row is read once for all of
// them. Cells are taken in groups; a group's entries are put in blocks of one kind, and those of shared entries of one base. A
// block gives its scores, one online softmax update (Milakov and Gimelshein 2018, arXiv 1805.02867) and its weighted sum. What
// no token of the tile sees is in no block, and a block is for the tokens that see something of it.
//
// Shared and exact entries have their own query and their own accumulator (DESIGN 6): for merged entries in the same basis, for
// coded ones in that of the code. There the query is turned back by the block's base and multiplied by K's decoder whenever
// the base changes, and the accumulator by V's decoder once.
//
// Few queries, as in decode: the kernels take rows as they lie in memory, floats or levels; a piece of work is a stretch of the
// cells for all KV heads, so that memory is read as it lies, and the stretches' results are combined at the end. Many, as in
// prefill: a piece of work is a KV head and a tile of tokens, and a block is brought into columns once for all of its queries.

static const int64_t GROUP     = 512;         // cells, at most
static const int64_t IN_CACHE  = 192 * 1024;  // bytes of a group that all KV heads go through in turn
static const int64_t FEW_ROWS  = 12;          // queries on a KV head for which nothing is brought into columns
static const int64_t MAX_ROWS  = 256;         // queries in a tile
static const int64_t MIN_CHUNK = 256;         // cells that are worth a piece of work of their own

// The cosines and sines of a base, in float32. Where bases advance by the same step, those of the next are the product of
// the last ones and the step's; a fresh start from double now and then keeps the error below 1e-5.
class base_angles {
  public:
    static int64_t n_float(const minicache_code_shape & shape) { return 4 * (int64_t) minicache_code_n_pair(shape); }

    base_angles(const minicache_code_shape & shape, const void * codec, float * scratch) :
        freq(minicache_code_freq(shape, codec)), n(minicache_code_n_pair(shape)), scratch(scratch) {}

    const float * cosines() const { return scratch; }

    const float * sines() const { return scratch + n; }

    void set(int32_t base) {
        const int64_t advance = (int64_t) base - at;
        if (advance == 0 && n_step < MAX_STEPS) {
            return;
        }
        at = base;
        if (advance == step && n_step < MAX_STEPS) {
            ++n_step;
            advance_by_step(scratch, scratch + n, scratch + 2 * n, scratch + 3 * n);
            return;
        }
        turn(base, scratch, scratch + n);
        n_step = 0;
        if (advance != step) {
            step = advance;
            turn(step, scratch + 2 * n, scratch + 3 * n);
        }
    }

  private:
    static const int MAX_STEPS = 32;

    const float * freq;
    const int     n;
    float *       scratch;  // [4][n]: cosines and sines of the base, of the step
    int32_t       at     = 0;
    int64_t       step   = 0;
    int           n_step = MAX_STEPS;  // nothing is known yet

    void advance_by_step(float * MINICACHE_RESTRICT cos_b, float * MINICACHE_RESTRICT sin_b, const float * cos_step,
        const float * sin_step) const {
        for (int i = 0; i < n; ++i) {
            const float c = cos_b[i] * cos_step[i] - sin_b[i] * sin_step[i];
            const float s = cos_b[i] * sin_step[i] + sin_b[i] * cos_step[i];
            cos_b[i]      = c;
            sin_b[i]      = s;
        }
    }

    void turn(int64_t position, float * c, float * s) const {
        for (int i = 0; i < n; ++i) {
            const double angle = (double) position * freq[i];
            c[i]               = (float) cos(angle);
            s[i]               = (float) sin(angle);
        }
    }
};

// The angles of the bases that were asked for last: each KV head asks for the same ones.
class angle_table {
  public:
    static int64_t n_float(const minicache_code_shape & shape) {
        return base_angles::n_float(shape) + SIZE * 2 * (int64_t) minicache_code_n_pair(shape);
    }

    angle_table(const minicache_code_shape & shape, const void * codec, float * scratch) :
        n_pair(minicache_code_n_pair(shape)), angles(shape, codec, scratch), scratch(scratch),
        first(base_angles::n_float(shape)) {}

    // cosines, then sines
    const float * at(int32_t b) {
        for (int i = 0; i < n; ++i) {
            if (base[i] == b) {
                return row(i);
            }
        }
        angles.set(b);
        const int i = next;
        std::copy_n(angles.cosines(), n_pair, row(i));
        std::copy_n(angles.sines(), n_pair, row(i) + n_pair);
        base[i] = b;
        next    = (next + 1) % SIZE;
        n       = std::max(n, i + 1);
        return row(i);
    }

  private:
    static const int SIZE = 16;

    const int     n_pair;
    base_angles   angles;
    float * const scratch;
    const int64_t first;

    int32_t base[SIZE];
    int     n    = 0;
    int     next = 0;

    float * row(int i) const { return scratch + first + (int64_t) i * 2 * n_pair; }
};

// what a block is made of
enum entry_kind { SHARED, RETAINED, CURRENT, N_ENTRY_KIND };

// how the K or V of a kind of entries is stored
struct entry_rows {
    ggml_type              type     = GGML_TYPE_COUNT;  // or a code
    minicache_read_row_t   read     = nullptr;
    minicache_level_format levels   = { nullptr, 0.0f, false };
    bool                   is_level = false;  // taken as levels
    bool                   is_plain = false;  // floats that are taken as they are

    static entry_rows of_type(ggml_type type, int64_t d) {
        entry_rows x;
        x.type     = type;
        x.read     = minicache_row_reader(type);
        x.levels   = minicache_levels_of(type);
        x.is_level = MINICACHE_LEVELS && x.levels.read;
        x.is_plain = (type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16) && d % MINICACHE_LANES == 0;
        return x;
    }

    static entry_rows of_code() {
        entry_rows x;
        x.is_level = MINICACHE_LEVELS;
        return x;
    }
};

static int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// bytes from one entry's levels to the next one's: whole vectors, of d numbers and r coefficients
static int64_t level_stride(const minicache_attn & a, int64_t d, int64_t r) { return padded(a.coded ? std::max(d, r) : d, 64); }

// how the op is cut into pieces of work, and what scratch a piece needs
struct attn_plan {
    attn_plan(const minicache_attn & a, int n_threads) :
        few(a.n_tps * a.n_gqa <= FEW_ROWS), tile(few ? a.n_tps : std::min(a.n_tps, std::max<int64_t>(1, most_rows(a) / a.n_gqa))),
        n_tile((a.n_tps + tile - 1) / tile), heads(few ? a.n_head_kv : 1), n_item(a.n_stream * (a.n_head_kv / heads) * n_tile),
        n_chunk(n_item % n_threads == 0 || n_item > 8 * n_threads ?
                    1 :
                    std::max<int64_t>(1, std::min<int64_t>(n_threads, a.n_kv / MIN_CHUNK))),
        chunk(padded((a.n_kv + n_chunk - 1) / n_chunk, MINICACHE_BLOCK)), group(few ? few_cells(a) : GROUP), rows(tile * a.n_gqa),
        d_k(minicache_padded(a.d_k)), d_v(minicache_padded(a.d_v)), r_k(minicache_padded(a.r_k)), r_v(minicache_padded(a.r_v)),
        row_k(std::max(d_k, r_k)), row_v(std::max(d_v, r_v)), ld_k(level_stride(a, a.d_k, a.r_k)),
        ld_v(level_stride(a, a.d_v, a.r_v)) {
        rows_k[SHARED]   = a.coded ? entry_rows::of_code() : entry_rows::of_type(a.cache_k->type, a.d_k);
        rows_v[SHARED]   = a.coded ? entry_rows::of_code() : entry_rows::of_type(a.cache_v->type, a.d_v);
        rows_k[RETAINED] = a.pool_k ? entry_rows::of_type(a.pool_k->type, a.d_k) : entry_rows();
        rows_v[RETAINED] = a.pool_v ? entry_rows::of_type(a.pool_v->type, a.d_v) : entry_rows();
        rows_k[CURRENT]  = entry_rows::of_type(GGML_TYPE_F32, a.d_k);
        rows_v[CURRENT]  = entry_rows::of_type(GGML_TYPE_F32, a.d_v);
    }

    const bool    few;   // queries on a KV head
    const int64_t tile;  // tokens
    const int64_t n_tile;
    const int64_t heads;   // KV heads of an item
    const int64_t n_item;  // (stream, KV heads, tile)
    const int64_t n_chunk;
    const int64_t chunk;  // cells
    const int64_t group;  // cells
    const int64_t rows;   // queries of a KV head in a whole tile
    const int64_t d_k;    // padded, as the following
    const int64_t d_v;
    const int64_t r_k;
    const int64_t r_v;
    const int64_t row_k;  // the longest row of K
    const int64_t row_v;
    const int64_t ld_k;  // of levels
    const int64_t ld_v;

    entry_rows rows_k[N_ENTRY_KIND];
    entry_rows rows_v[N_ENTRY_KIND];

    // queries in a tile; more over codes, whose keys are decoded once for each tile
    static int64_t most_rows(const minicache_attn & a) { return a.coded ? 2 * MAX_ROWS : MAX_ROWS; }

    // of a group for few queries; more for codes, as every base of a group has its price
    static int64_t few_cells(const minicache_attn & a) {
        const int64_t n_byte = (int64_t) (a.cache_k->nb[2] + a.cache_v->nb[2]);
        return std::min(GROUP, padded((a.coded ? 3 : 1) * IN_CACHE / n_byte + 1, MINICACHE_BLOCK));
    }

    // maximum, sum and accumulator of each row
    int64_t partial_floats() const { return n_chunk == 1 ? 0 : heads * rows * (2 + d_v); }

    int64_t n_partial() const { return n_chunk == 1 ? 0 : n_item * n_chunk; }
};

// hands out a thread's scratch, or counts it
class scratch_memory {
  public:
    explicit scratch_memory(float * base) : base(base) {}

    float * floats(int64_t n) {
        float * x = base ? base + used : nullptr;
        used += padded(n, 16);
        return x;
    }

    int64_t size() const { return used; }

    bool is_real() const { return base != nullptr; }

  private:
    float * base;
    int64_t used = 0;
};

// cells [first, first + n) of the group's order, all of one kind
struct entry_block {
    entry_kind kind;
    int32_t    base;  // of coded entries
    int        first;
    int        n;
    int64_t    token_0;  // the tile's tokens that see any of them
    int64_t    token_1;
};

// The entries of a group of cells that a tile of tokens sees, block by block.
class cell_group {
  public:
    cell_group(const minicache_attn & a, const attn_plan & plan, scratch_memory & memory) :
        a(a), bias((float *) memory.floats(plan.tile * LD)), order((int32_t *) memory.floats(GROUP)),
        exact((int32_t *) memory.floats(GROUP)),
        blocks((entry_block *) memory.floats(GROUP * sizeof(entry_block) / sizeof(float))) {}

    void gather(int64_t stream, int64_t token_0, int64_t n_token, int64_t cell_0, int64_t cell_1) {
        n_block = 0;
        look(stream, token_0, n_token, cell_0, cell_1);

        const int32_t * bases = a.coded ? a.bases(stream) : nullptr;
        if (bases && n_run(bases) > n_shared / 16 + 1) {
            std::stable_sort(order, order + n_shared, [&](int32_t x, int32_t y) { return bases[x] < bases[y]; });
        }
        for (int at = 0; at < n_shared;) {
            const int32_t base = bases ? bases[order[at]] : 0;
            int           n    = 1;
            while (n < MINICACHE_BLOCK && at + n < n_shared && (!bases || bases[order[at + n]] == base)) {
                ++n;
            }
            add_block(SHARED, base, at, n);
            at += n;
        }
        int at = n_shared;
        for (const entry_kind kind : { RETAINED, CURRENT }) {
            const int start = at;
            for (int i = 0; i < n_exact; ++i) {
                if ((a.state(stream, exact[i]) < 0) == (kind == RETAINED)) {
                    order[at++] = exact[i];
                }
            }
            for (int i = start; i < at; i += MINICACHE_BLOCK) {
                add_block(kind, 0, i, std::min(MINICACHE_BLOCK, at - i));
            }
        }
        for (int i = 0; i < n_block; ++i) {
            set_bias(blocks[i], stream, token_0, n_token);
        }
    }

    const int32_t * cells_of(const entry_block & block) const { return order + block.first; }

    // the mask of a token of the tile for a block's entries, the model's slopes left out
    const float * bias_of(const entry_block & block, int64_t token) const { return bias + token * LD + block.first; }

    const entry_block * begin() const { return blocks; }

    const entry_block * end() const { return blocks + n_block; }

  private:
    static const int64_t LD = GROUP + MINICACHE_BLOCK;  // so that whole vectors can be read

    const minicache_attn & a;

    float * const       bias;   // [tokens][LD]
    int32_t * const     order;  // [GROUP] cells
    int32_t * const     exact;  // [GROUP]
    entry_block * const blocks;

    int n_shared = 0;
    int n_exact  = 0;
    int n_block  = 0;

    // cells that some token sees, shared ones to `order` and exact ones to `exact`
    void look(int64_t stream, int64_t token_0, int64_t n_token, int64_t cell_0, int64_t cell_1) {
        const int       n     = (int) (cell_1 - cell_0);
        const int32_t * state = a.cells(stream) ? a.cells(stream) + cell_0 : nullptr;

        uint16_t seen[GROUP];
        std::fill(seen, seen + n, (uint16_t) (a.mask == nullptr));
        for (int64_t t = 0; t < n_token && a.mask; ++t) {
            const ggml_fp16_t * mask = a.mask_row(stream, token_0 + t) + cell_0;
            for (int i = 0; i < n; ++i) {
                seen[i] |= mask[i] != MINUS_INFINITY;
            }
        }
        n_shared = n_exact = 0;
        for (int i = 0; i < n; ++i) {
            const int32_t holds = state ? state[i] : GGML_MINICACHE_CELL_MERGED;

            order[n_shared] = (int32_t) cell_0 + i;
            n_shared += seen[i] && holds == GGML_MINICACHE_CELL_MERGED;
            exact[n_exact] = (int32_t) cell_0 + i;
            n_exact += seen[i] && holds != GGML_MINICACHE_CELL_MERGED && holds != GGML_MINICACHE_CELL_EMPTY;
        }
    }

    int n_run(const int32_t * bases) const {
        int n = n_shared > 0;
        for (int i = 1; i < n_shared; ++i) {
            n += bases[order[i]] != bases[order[i - 1]];
        }
        return n;
    }

    void add_block(entry_kind kind, int32_t base, int first, int n) { blocks[n_block++] = { kind, base, first, n, 0, 0 }; }

    void set_bias(entry_block & block, int64_t stream, int64_t token_0, int64_t n_token) {
        const int32_t * cells  = order + block.first;
        const bool      in_row = cells[block.n - 1] - cells[0] == block.n - 1;

        block.token_0 = n_token;
        for (int64_t t = 0; t < n_token; ++t) {
            float * x = bias + t * LD + block.first;
            if (!a.mask) {
                std::fill(x, x + block.n, 0.0f);
            } else {
                const ggml_fp16_t * mask = a.mask_row(stream, token_0 + t);
                ggml_fp16_t         at[MINICACHE_BLOCK];
                for (int i = 0; i < block.n && !in_row; ++i) {
                    at[i] = mask[cells[i]];
                }
                const ggml_fp16_t * row  = in_row ? mask + cells[0] : at;
                bool                sees = false;
                for (int i = 0; i < block.n; ++i) {
                    sees |= row[i] != MINUS_INFINITY;
                }
                ggml_cpu_fp16_to_fp32(row, x, block.n);
                if (!sees) {
                    continue;
                }
            }
            block.token_0 = std::min(block.token_0, t);
            block.token_1 = t + 1;
        }
    }

    static const ggml_fp16_t MINUS_INFINITY = 0xFC00;
};

// What the queries of one KV head have come to; row = token*n_gqa + head in the group.
struct head_rows {
    float * q;           // [rows][d_k]
    float * acc_shared;  // [rows][r_v]
    float * acc_exact;   // [rows][d_v]
    float * max;         // [rows]
    float * sum;         // [rows]

    float * levels[N_ENTRY_KIND];  // queries for levels, of the kinds that are read as such
    bool    coded;                 // some coded entry was seen

    static head_rows take(scratch_memory & memory, const minicache_attn & a, const attn_plan & plan) {
        head_rows x  = {};
        x.q          = memory.floats(plan.rows * plan.d_k);
        x.acc_shared = memory.floats(plan.rows * plan.r_v);
        x.acc_exact  = memory.floats(plan.rows * plan.d_v);
        x.max        = memory.floats(plan.rows);
        x.sum        = memory.floats(plan.rows);
#if MINICACHE_LEVELS
        for (const entry_kind kind : { SHARED, RETAINED }) {
            if (plan.few && plan.rows_k[kind].is_level && !(kind == SHARED && a.coded)) {
                x.levels[kind] = memory.floats(minicache_level_queries::n_word(plan.rows, plan.ld_k));
            }
        }
#endif
        return x;
    }
};

// The queries of one KV head as the coded entries of some bases see them.
struct base_queries {
    static const int MAX_BASES = 8;

    int     n = 0;  // bases
    int32_t base[MAX_BASES];

    float * turned;  // [MAX_BASES][rows][d_k] before the decoder
    float * q;       // [MAX_BASES][rows][r_k]
    float * levels;  // the same for levels

    base_queries(const minicache_attn & a, const attn_plan & plan, scratch_memory & memory) :
        turned(a.coded ? memory.floats(max_rows(plan) * plan.d_k) : nullptr),
        q(a.coded ? memory.floats(max_rows(plan) * plan.r_k) : nullptr), levels(nullptr) {
#if MINICACHE_LEVELS
        levels = a.coded && plan.few ? memory.floats(minicache_level_queries::n_word(max_rows(plan), plan.ld_k)) : nullptr;
#endif
    }

    // many queries are turned for one base at a time, if at all
    static int max_bases(const attn_plan & plan) { return plan.few ? MAX_BASES : 1; }

    static int64_t max_rows(const attn_plan & plan) { return max_bases(plan) * plan.rows; }

    // -1 where there is none
    int find(int32_t b) const {
        for (int i = 0; i < n; ++i) {
            if (base[i] == b) {
                return i;
            }
        }
        return -1;
    }
};

// A piece of work: the queries of a tile of tokens on one KV head, or on all.
class attn_tile {
  public:
    attn_tile(const minicache_attn & a, const attn_plan & plan, scratch_memory & memory) :
        a(a), plan(plan), group(a, plan, memory), turned(a, plan, memory),
        heads((head_rows *) memory.floats(plan.heads * (int64_t) (sizeof(head_rows) / sizeof(float)))),
        scores(memory.floats(plan.rows * MINICACHE_BLOCK)), k(memory.floats(MINICACHE_BLOCK * plan.row_k)),
        v(memory.floats(MINICACHE_BLOCK * plan.row_v)), columns(memory.floats(plan.row_k * MINICACHE_BLOCK)),
        code_rows(a.coded ? memory.floats(MINICACHE_BLOCK * plan.r_k) : nullptr),
        decoder(a.coded && !plan.few ? memory.floats(a.r_k * plan.d_k) : nullptr),
        weights(memory.floats(plan.ld_v / MINICACHE_LEVEL_GROUP * 4 * MINICACHE_LEVEL_BLOCK)),
        words((int32_t *) memory.floats(plan.ld_k / 4 * MINICACHE_LEVEL_BLOCK)), levels_k(take_levels(memory, plan.ld_k)),
        levels_v(take_levels(memory, plan.ld_v)), codes_k(a.shape.layout_k), codes_v(a.shape.layout_v),
        angles(a.shape, a.coded ? a.codec->data : nullptr, memory.floats(angle_table::n_float(a.shape))) {
        for (const entry_kind kind : { SHARED, RETAINED }) {
            zero_k[kind] = memory.floats(plan.ld_k);
            zero_v[kind] = memory.floats(plan.ld_v);
        }
        for (int64_t h = 0; h < plan.heads; ++h) {
            const head_rows x = head_rows::take(memory, a, plan);
            if (memory.is_real()) {
                heads[h] = x;
            }
        }
        if (memory.is_real()) {
            for (const entry_kind kind : { SHARED, RETAINED }) {
                std::fill(zero_k[kind], zero_k[kind] + plan.ld_k, plan.rows_k[kind].levels.zero);
                std::fill(zero_v[kind], zero_v[kind] + plan.ld_v, plan.rows_v[kind].levels.zero);
            }
            if (a.coded) {
                minicache_code_zeros(a.shape.layout_k, zero_k[SHARED]);
                minicache_code_zeros(a.shape.layout_v, zero_v[SHARED]);
            }
        }
    }

    void begin(int64_t i_stream, int64_t i_head_kv, int64_t i_token, int64_t n) {
        stream    = i_stream;
        head_kv_0 = i_head_kv;
        token_0   = i_token;
        n_token   = n;

        for (int64_t h = 0; h < plan.heads; ++h) {
            head_rows & x = heads[h];
            for (int64_t r = 0; r < n_row(); ++r) {
                const float * q = a.query(stream, head_of(h, r), token_0 + r / a.n_gqa);
                std::copy(q, q + a.d_k, x.q + r * plan.d_k);
                pad(x.q + r * plan.d_k, a.d_k, plan.d_k);
            }
            std::fill(x.acc_shared, x.acc_shared + n_row() * plan.r_v, 0.0f);
            std::fill(x.acc_exact, x.acc_exact + n_row() * plan.d_v, 0.0f);
            std::fill(x.max, x.max + n_row(), -INFINITY);
            std::fill(x.sum, x.sum + n_row(), 0.0f);
            x.coded = false;
            if (!a.coded) {
                set_level_queries(x.levels[SHARED], n_row(), plan.rows, x.q, plan.d_k, a.d_k, SHARED);
            }
            set_level_queries(x.levels[RETAINED], n_row(), plan.rows, x.q, plan.d_k, a.d_k, RETAINED);
        }
        has_decoder = false;
    }

    void attend(int64_t cell_0, int64_t cell_1) {
        for (int64_t cell = cell_0; cell < cell_1; cell += plan.group) {
            const int64_t next = std::min(cell_1, cell + plan.group);
            group.gather(stream, token_0, n_token, cell, next);
            n_ahead = next < cell_1 ? next - cell : 0;
            for (int64_t h = 0; h < plan.heads; ++h) {
                turned.n = 0;
                for (const entry_block & block : group) {
                    join(h, block);
                }
            }
        }
    }

    // all accumulators to acc_exact, in the layer's own basis, unnormalised
    void finish() {
        for (int64_t h = 0; h < plan.heads; ++h) {
            head_rows & x = heads[h];
            if (a.coded && x.coded) {
                decode_values(h, x);
            } else if (!a.coded) {
                for (int64_t r = 0; r < n_row(); ++r) {
                    for (int64_t j = 0; j < a.d_v; ++j) {
                        x.acc_exact[r * plan.d_v + j] += x.acc_shared[r * plan.r_v + j];
                    }
                }
            }
        }
    }

    int64_t n_row() const { return n_token * a.n_gqa; }

    const head_rows & head(int64_t h) const { return heads[h]; }

    int64_t head_of(int64_t h, int64_t r) const { return (head_kv_0 + h) * a.n_gqa + r % a.n_gqa; }

    int64_t token_of(int64_t r) const { return token_0 + r / a.n_gqa; }

    int64_t the_stream() const { return stream; }

  private:
    const minicache_attn & a;
    const attn_plan &      plan;

    cell_group   group;
    base_queries turned;
    head_rows *  heads;

    float *   scores;     // [rows][MINICACHE_BLOCK]
    float *   k;          // [MINICACHE_BLOCK][row_k]
    float *   v;          // [MINICACHE_BLOCK][row_v]
    float *   columns;    // [row_k][MINICACHE_BLOCK]
    float *   code_rows;  // [MINICACHE_BLOCK][r_k]
    float *   decoder;    // [r_k][d_k] of K, transposed
    float *   weights;    // scratch of minicache_values_levels()
    int32_t * words;      // [ld_k/4][MINICACHE_LEVEL_BLOCK]

    minicache_level_rows levels_k;
    minicache_level_rows levels_v;

    const minicache_code_levels codes_k;
    const minicache_code_levels codes_v;

    float * zero_k[2];  // of shared and of retained entries
    float * zero_v[2];

    angle_table angles;
    bool        has_decoder = false;

    int64_t stream    = 0;
    int64_t head_kv_0 = 0;
    int64_t token_0   = 0;
    int64_t n_token   = 0;
    int64_t n_ahead   = 0;  // cells from those of the group to the next group's, 0 in the last one

    const void * rows_k[MINICACHE_BLOCK];  // of a block's entries, the last one again up to a whole vector
    const void * rows_v[MINICACHE_BLOCK];
    float        mag_k[MINICACHE_BLOCK];
    float        mag_v[MINICACHE_BLOCK];

    static void pad(float * row, int64_t n, int64_t n_padded) { std::fill(row + n, row + n_padded, 0.0f); }

    static minicache_level_rows take_levels(scratch_memory & memory, int64_t ld) {
        minicache_level_rows x = {};
        x.levels               = (uint8_t *) memory.floats((MINICACHE_LEVEL_BLOCK * ld + 64) / sizeof(float));
        x.ld                   = ld;
        x.scale                = (ggml_fp16_t *) memory.floats(ld / MINICACHE_LEVEL_GROUP * MINICACHE_LEVEL_BLOCK / 2);
        x.min                  = (ggml_fp16_t *) memory.floats(ld / MINICACHE_LEVEL_GROUP * MINICACHE_LEVEL_BLOCK / 2);
        return x;
    }

    // Shared entries lie in a row for all heads, one cell's after the other, and are read head by head, in steps that no
    // prefetcher of a core follows: each row asks for the one that lies as far behind it as the next group does.
    minicache_rows rows_of(const entry_block & block, const void * const * rows, const ggml_tensor * cache) const {
        return { rows, block.n, block.kind == SHARED ? n_ahead * (int64_t) cache->nb[2] : 0 };
    }

    bool is_coded(const entry_block & block) const { return a.coded && block.kind == SHARED; }

    minicache_code_head code_k(int64_t h) const { return minicache_code_head_k(a.shape, a.codec->data, head_kv_0 + h); }

    minicache_code_head code_v(int64_t h) const { return minicache_code_head_v(a.shape, a.codec->data, head_kv_0 + h); }

    // n of up to n_max queries q of d numbers; nothing where there are no levels
    void set_level_queries(
        float * levels, int64_t n, int64_t n_max, const float * q, int64_t ldq, int64_t d, entry_kind kind) const {
#if MINICACHE_LEVELS
        if (levels) {
            minicache_level_queries x(levels, n_max, plan.ld_k);
            for (int64_t r = 0; r < n; ++r) {
                x.set(r, q + r * ldq, d, zero_k[kind], a.coded && kind == SHARED);
            }
        }
#else
        (void) levels, (void) n, (void) n_max, (void) q, (void) ldq, (void) d, (void) kind;
#endif
    }

    // the block joins the softmax of the rows that see it
    void join(int64_t h, const entry_block & block) {
        head_rows &   x   = heads[h];
        const int64_t r_0 = block.token_0 * a.n_gqa;
        const int64_t n   = (block.token_1 - block.token_0) * a.n_gqa;

        find_rows(h, block);
        score(h, x, block, r_0, n);

        const bool has_mag = find_magnitudes(h, block);
        for (int64_t r = 0; r < n; ++r) {
            softmax_row(h, x, block, r_0 + r, scores + r * MINICACHE_BLOCK, has_mag);
        }
        if (block.kind == SHARED) {
            add_values(block, x.acc_shared + r_0 * plan.r_v, plan.r_v, n);
        } else {
            add_values(block, x.acc_exact + r_0 * plan.d_v, plan.d_v, n);
        }
        x.coded |= is_coded(block);
    }

    void find_rows(int64_t h, const entry_block & block) {
        const int32_t * cells = group.cells_of(block);
        const int64_t   head  = head_kv_0 + h;

        const auto each = [&](const auto & k_of, const auto & v_of) {
            for (int c = 0; c < block.n; ++c) {
                rows_k[c] = k_of(cells[c]);
                rows_v[c] = v_of(cells[c]);
            }
        };
        if (block.kind == SHARED) {
            const auto *  k_0    = (const char *) a.shared_k(stream, head, 0);
            const auto *  v_0    = (const char *) a.shared_v(stream, head, 0);
            const int64_t step_k = (int64_t) a.cache_k->nb[2];
            const int64_t step_v = (int64_t) a.cache_v->nb[2];
            each([=](int32_t cell) { return k_0 + cell * step_k; }, [=](int32_t cell) { return v_0 + cell * step_v; });
        } else if (block.kind == RETAINED) {
            each([&](int32_t cell) { return a.retained_k(stream, head, cell, a.state(stream, cell)); },
                [&](int32_t cell) { return a.retained_v(stream, head, cell, a.state(stream, cell)); });
        } else {
            each([&](int32_t cell) { return a.current_k(stream, head, a.state(stream, cell)); },
                [&](int32_t cell) { return a.current_v(stream, head, a.state(stream, cell)); });
        }
        for (int c = block.n; c % MINICACHE_LANES != 0; ++c) {
            rows_k[c] = rows_k[block.n - 1];
        }
    }

    // false where all are 1
    bool find_magnitudes(int64_t h, const entry_block & block) {
        for (int c = block.n; c % MINICACHE_LANES != 0; ++c) {
            mag_k[c] = mag_v[c] = 0.0f;
        }
        if (is_coded(block)) {
            const minicache_code_head k_head = code_k(h);
            const minicache_code_head v_head = code_v(h);
            for (int c = 0; c < block.n; ++c) {
                mag_k[c] = k_head.log_magnitude((const uint8_t *) rows_k[c], a.p.side);
                mag_v[c] = v_head.log_magnitude((const uint8_t *) rows_v[c], a.p.side);
            }
            ggml_vec_soft_max_f32(block.n, mag_k, mag_k, 0.0f);  // e^x
            ggml_vec_soft_max_f32(block.n, mag_v, mag_v, 0.0f);
            return true;
        }
        if (block.kind != SHARED || !a.mag) {
            return false;
        }
        const int32_t * cells = group.cells_of(block);
        for (int c = 0; c < block.n; ++c) {
            mag_k[c] = a.magnitude(MINICACHE_MAG_K, stream, head_kv_0 + h, cells[c]);
            mag_v[c] = a.magnitude(MINICACHE_MAG_V, stream, head_kv_0 + h, cells[c]);
        }
        return true;
    }

    //
    // scores
    //

    // of the rows r_0 to r_0 + n, magnitudes left out
    void score(int64_t h, head_rows & x, const entry_block & block, int64_t r_0, int64_t n) {
        if (!is_coded(block)) {
            score_entries(block, n, x.q + r_0 * plan.d_k, plan.d_k, a.d_k, x.levels[block.kind], plan.rows, r_0);
            return;
        }
        int i = turned.find(block.base);
        if (i < 0 && !plan.few && block.n < n) {
            decode_keys(h, block);
            minicache_columns(k, block.n, plan.d_k, columns);
            minicache_scores_columns(x.q + r_0 * plan.d_k, n, columns, plan.d_k, scores);
            return;
        }
        if (i < 0) {
            turn_queries(h, x, block);
            i = 0;
        }
        const int64_t row = i * n_row() + r_0;
        score_entries(block, n, turned.q + row * plan.r_k, plan.r_k, a.r_k, turned.levels, base_queries::max_rows(plan), row);
    }

    // n queries q of d numbers; the same as levels from row r_levels on
    void score_entries(const entry_block & block, int64_t n, const float * q, int64_t ldq, int64_t d, float * levels,
        int64_t n_levels, int64_t r_levels) {
        const entry_rows &   format = plan.rows_k[block.kind];
        const minicache_rows rows   = rows_of(block, rows_k, a.cache_k);
#if MINICACHE_LEVELS
        if (plan.few && format.is_level) {
            const minicache_level_queries all(levels, n_levels, plan.ld_k);
            for (int c = 0; c < rows.n; c += MINICACHE_LEVEL_BLOCK) {
                const minicache_rows       some = rows.from(c, MINICACHE_LEVEL_BLOCK);
                const minicache_level_rows x    = read_levels(block, format, codes_k, some, d, levels_k, zero_k);
                minicache_level_words(x.levels, x.ld, d, some.n, words);
                minicache_scores_levels(all.from(r_levels), n, d, words, x, some.n, scores + c);
            }
            return;
        }
#else
        (void) levels, (void) n_levels, (void) r_levels;
#endif
        if (plan.few && format.is_plain) {
            switch (format.type) {
                case GGML_TYPE_F32:
                    minicache_scores_rows<float>(q, ldq, n, rows, d, scores);
                    break;
                case GGML_TYPE_F16:
                    minicache_scores_rows<ggml_fp16_t>(q, ldq, n, rows, d, scores);
                    break;
                default:
                    minicache_scores_rows<ggml_bf16_t>(q, ldq, n, rows, d, scores);
                    break;
            }
            return;
        }
        restore(block, format, a.shape.layout_k, rows_k, d, k, ldq);
        minicache_columns(k, block.n, ldq, columns);
        minicache_scores_columns(q, n, columns, ldq, scores);
    }

    // K's decoder transposed, once for the tile
    void prepare_decoder(const minicache_code_head & head) {
        if (has_decoder) {
            return;
        }
        const ggml_fp16_t * d = head.decoder(a.p.side);
        for (int64_t c = 0; c < head.r; ++c) {
            for (int64_t i = 0; i < head.d; ++i) {
                decoder[c * plan.d_k + i] = GGML_CPU_FP16_TO_FP32(d[i * head.r + c]);
            }
            pad(decoder + c * plan.d_k, head.d, plan.d_k);
        }
        has_decoder = true;
    }

    // R(b)û of each entry to k: the cheaper way where the entries of a base are fewer than the queries
    void decode_keys(int64_t h, const entry_block & block) {
        prepare_decoder(code_k(h));
        minicache_code_read(a.shape.layout_k, (const uint8_t * const *) rows_k, block.n, code_rows, plan.r_k);
        std::fill(k, k + block.n * plan.d_k, 0.0f);
        minicache_accumulate(k, plan.d_k, block.n, code_rows, plan.r_k, decoder, a.r_k, plan.d_k);
        const float * turn = angles.at(block.base);
        for (int c = 0; c < block.n; ++c) {
            minicache_code_turn(a.shape, turn, turn + minicache_code_n_pair(a.shape), false, k + c * plan.d_k);
        }
    }

    // (R(-b)q)ᵀD of each row, for the block's base and the next ones of the group: one product with the decoder
    void turn_queries(int64_t h, const head_rows & x, const entry_block & block) {
        turned.n = 0;
        for (const entry_block * next = &block; next != group.end() && next->kind == SHARED; ++next) {
            if (turned.find(next->base) >= 0) {
                continue;
            }
            if (turned.n == base_queries::max_bases(plan)) {
                break;
            }
            float * q = turned.turned + turned.n * n_row() * plan.d_k;
            std::copy(x.q, x.q + n_row() * plan.d_k, q);
            const float * turn = angles.at(next->base);
            for (int64_t r = 0; r < n_row(); ++r) {
                minicache_code_turn(a.shape, turn, turn + minicache_code_n_pair(a.shape), true, q + r * plan.d_k);
            }
            turned.base[turned.n++] = next->base;
        }
        const int64_t n = turned.n * n_row();
        std::fill(turned.q, turned.q + n * plan.r_k, 0.0f);
        minicache_accumulate(turned.q, plan.r_k, n, turned.turned, plan.d_k, code_k(h).decoder(a.p.side), a.d_k, a.r_k);
        set_level_queries(turned.levels, n, base_queries::max_rows(plan), turned.q, plan.r_k, a.r_k, SHARED);
    }

    //
    // softmax
    //

    // scores of one row to weights, magnitudes of V included, 0 up to a whole vector
    void softmax_row(int64_t h, head_rows & x, const entry_block & block, int64_t r, float * s, bool has_mag) const {
        const float   slope = a.slope(head_of(h, r));
        const float * bias  = group.bias_of(block, r / a.n_gqa);
        const int     n     = (block.n + MINICACHE_LANES - 1) / MINICACHE_LANES * MINICACHE_LANES;

        if (a.p.softcap != 0.0f) {
            for (int c = 0; c < block.n; ++c) {
                s[c] = a.score(s[c], has_mag ? mag_k[c] : 1.0f, slope * bias[c]);
            }
        } else {
            const minicache_vec scale_all = vec_set(a.p.scale);
            const minicache_vec slope_all = vec_set(slope);
            for (int c = 0; c < n; c += MINICACHE_LANES) {
                minicache_vec y = vec_mul(scale_all, vec_load(s + c));
                y               = has_mag ? vec_mul(y, vec_load(mag_k + c)) : y;
                vec_store(s + c, vec_fma(slope_all, vec_load(bias + c), y));
            }
        }
        std::fill(s + block.n, s + n, -INFINITY);

        minicache_vec top = vec_set(x.max[r]);
        for (int c = 0; c < n; c += MINICACHE_LANES) {
            top = vec_max(top, vec_load(s + c));
        }
        const float max = vec_top(top);
        if (max == -INFINITY) {
            std::fill(s, s + n, 0.0f);
            return;
        }
        if (max > x.max[r]) {
            raise_max(x, r, max);
        }
        x.sum[r] += (float) ggml_vec_soft_max_f32(n, s, s, max);
        for (int c = 0; c < n && has_mag; c += MINICACHE_LANES) {
            vec_store(s + c, vec_mul(vec_load(s + c), vec_load(mag_v + c)));
        }
    }

    void raise_max(head_rows & x, int64_t r, float max) const {
        const float factor = expf(x.max[r] - max);
        x.max[r]           = max;
        x.sum[r] *= factor;
        minicache_rescale(x.acc_shared + r * plan.r_v, factor, plan.r_v);
        minicache_rescale(x.acc_exact + r * plan.d_v, factor, plan.d_v);
    }

    //
    // values
    //

    // acc [n][ld] += the block's V, weighted
    void add_values(const entry_block & block, float * acc, int64_t ld, int64_t n) {
        const entry_rows &   format = plan.rows_v[block.kind];
        const minicache_rows rows   = rows_of(block, rows_v, a.cache_v);
        const int64_t        d      = block.kind == SHARED ? a.r_v : a.d_v;
#if MINICACHE_LEVELS
        if (plan.few && format.is_level) {
            for (int c = 0; c < rows.n; c += MINICACHE_LEVEL_BLOCK) {
                const minicache_rows       some = rows.from(c, MINICACHE_LEVEL_BLOCK);
                const minicache_level_rows x    = read_levels(block, format, codes_v, some, d, levels_v, zero_v);
                minicache_values_levels(acc, ld, n, scores + c, x, some.n, d, weights);
            }
            return;
        }
#endif
        if (plan.few && format.is_plain) {
            switch (format.type) {
                case GGML_TYPE_F32:
                    minicache_values_rows<float>(acc, ld, n, scores, rows, d);
                    break;
                case GGML_TYPE_F16:
                    minicache_values_rows<ggml_fp16_t>(acc, ld, n, scores, rows, d);
                    break;
                default:
                    minicache_values_rows<ggml_bf16_t>(acc, ld, n, scores, rows, d);
                    break;
            }
            return;
        }
        restore(block, format, a.shape.layout_v, rows_v, d, v, ld);
        minicache_accumulate(acc, ld, n, scores, MINICACHE_BLOCK, v, block.n, ld);
    }

    // D_v times each row's sum of codes joins the exact accumulator
    void decode_values(int64_t h, head_rows & x) {
        const ggml_fp16_t * d = code_v(h).decoder(a.p.side);
        for (int64_t i = 0; i < a.d_v; i += MINICACHE_BLOCK) {
            const int n = (int) std::min<int64_t>(MINICACHE_BLOCK, a.d_v - i);
            for (int c = 0; c < MINICACHE_BLOCK; ++c) {
                rows_k[c] = d + (i + std::min(c, n - 1)) * a.r_v;
            }
            minicache_scores_rows<ggml_fp16_t>(x.acc_shared, plan.r_v, n_row(), { rows_k, n, 0 }, a.r_v, scores);
            for (int64_t r = 0; r < n_row(); ++r) {
                for (int c = 0; c < n; ++c) {
                    x.acc_exact[r * plan.d_v + i + c] += scores[r * MINICACHE_BLOCK + c];
                }
            }
        }
    }

    //
    // reading
    //

    minicache_level_rows read_levels(const entry_block & block, const entry_rows & format, const minicache_code_levels & codes,
        const minicache_rows & rows, int64_t d, const minicache_level_rows & scratch, float * const * zero) const {
        minicache_level_rows x = scratch;
        x.zero                 = zero[block.kind];
        if (is_coded(block)) {
            x.scale = x.min = nullptr;
            codes.read(rows, x.levels, x.ld);
        } else {
            x.min = format.levels.min ? x.min : nullptr;
            format.levels.read(rows, d, x);
        }
        return x;
    }

    // to float32, every row padded to ld
    void restore(const entry_block & block, const entry_rows & format, const minicache_code_layout & layout,
        const void * const * rows, int64_t d, float * out, int64_t ld) const {
        if (is_coded(block)) {
            minicache_code_read(layout, (const uint8_t * const *) rows, block.n, out, ld);
        }
        for (int c = 0; c < block.n; ++c) {
            if (!is_coded(block)) {
                format.read(rows[c], out + c * ld, d);
            }
            pad(out + c * ld, d, ld);
        }
    }
};

// of one thread
static int64_t attn_scratch_floats(const minicache_attn & a, const attn_plan & plan) {
    scratch_memory  memory(nullptr);
    const attn_tile counted(a, plan, memory);
    return memory.size();
}

size_t minicache_cpu_attn_work_size(const ggml_tensor * op, int n_threads) {
    const minicache_attn a(op);
    const attn_plan      plan(a, n_threads);

    return sizeof(float) * (n_threads * attn_scratch_floats(a, plan) + plan.n_partial() * plan.partial_floats());
}

static void write_row(const minicache_attn & a, ggml_tensor * dst, const attn_tile & tile, int64_t h, int64_t r, float max,
    float sum, const float * acc) {
    const int64_t head = tile.head_of(h, r);

    float factor = 1.0f;
    if (a.sinks) {
        const float sink     = ((const float *) a.sinks->data)[head];
        const float max_sink = std::max(max, sink);
        factor               = expf(max - max_sink);
        sum                  = sum * factor + expf(sink - max_sink);
    }
    const float norm = sum > 0.0f ? factor / sum : 0.0f;

    auto * out =
        (float *) ((char *) dst->data + tile.the_stream() * dst->nb[3] + tile.token_of(r) * dst->nb[2] + head * dst->nb[1]);
    for (int64_t j = 0; j < a.d_v; ++j) {
        out[j] = norm * acc[j];
    }
}

// the chunks of each row under one maximum; `partials` is row's in the first of them
static void combine(const attn_plan & plan, const float * partials, float * max, float * sum, float * acc) {
    *max = -INFINITY;
    *sum = 0.0f;
    std::fill(acc, acc + plan.d_v, 0.0f);

    for (int64_t c = 0; c < plan.n_chunk; ++c) {
        *max = std::max(*max, partials[c * plan.partial_floats()]);
    }
    if (*max == -INFINITY) {
        return;
    }
    for (int64_t c = 0; c < plan.n_chunk; ++c) {
        const float * x      = partials + c * plan.partial_floats();
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

    const int64_t  n_scratch = attn_scratch_floats(a, plan);
    auto * const   work      = (float *) params->wdata;
    float * const  partials  = work + params->nth * n_scratch;
    scratch_memory memory(work + params->ith * n_scratch);
    attn_tile      tile(a, plan, memory);

    const auto begin = [&](int64_t item) {
        const int64_t i_head  = item / plan.n_tile % (a.n_head_kv / plan.heads) * plan.heads;
        const int64_t i_token = item % plan.n_tile * plan.tile;
        tile.begin(item / plan.n_tile / (a.n_head_kv / plan.heads), i_head, i_token, std::min(plan.tile, a.n_tps - i_token));
    };
    const auto partial = [&](int64_t it, int64_t h, int64_t r) {
        return partials + it * plan.partial_floats() + (h * plan.rows + r) * (2 + plan.d_v);
    };

    for (int64_t it = params->ith; it < plan.n_item * plan.n_chunk; it += params->nth) {
        begin(it / plan.n_chunk);

        const int64_t cell_0 = it % plan.n_chunk * plan.chunk;
        tile.attend(std::min(a.n_kv, cell_0), std::min(a.n_kv, cell_0 + plan.chunk));
        tile.finish();

        for (int64_t h = 0; h < plan.heads; ++h) {
            const head_rows & x = tile.head(h);
            for (int64_t r = 0; r < tile.n_row(); ++r) {
                const float * acc = x.acc_exact + r * plan.d_v;
                if (plan.n_chunk == 1) {
                    write_row(a, dst, tile, h, r, x.max[r], x.sum[r], acc);
                } else {
                    float * y = partial(it, h, r);
                    y[0]      = x.max[r];
                    y[1]      = x.sum[r];
                    std::copy(acc, acc + plan.d_v, y + 2);
                }
            }
        }
    }
    if (plan.n_chunk == 1) {
        return;
    }
    ggml_barrier(params->threadpool);

    for (int64_t item = params->ith; item < plan.n_item; item += params->nth) {
        begin(item);
        for (int64_t h = 0; h < plan.heads; ++h) {
            for (int64_t r = 0; r < tile.n_row(); ++r) {
                float   max;
                float   sum;
                float * acc = tile.head(h).acc_exact;
                combine(plan, partial(item * plan.n_chunk, h, r), &max, &sum, acc);
                write_row(a, dst, tile, h, r, max, sum, acc);
            }
        }
    }
}
