#pragma once

// How the attention is cut into pieces of work for the threads, how the entries of each kind are read, and the scratch memory of
// a thread.

#include "minicache-cpu-attn.h"
#include "minicache-cpu-simd.h"

#include <algorithm>

// what a block of entries is made of
enum entry_kind { SHARED, RETAINED, CURRENT, N_ENTRY_KIND };

// how the K or the V of one kind of entries is stored
struct entry_rows {
    ggml_type              type     = GGML_TYPE_COUNT;  // stays GGML_TYPE_COUNT for codes
    minicache_read_row_t   read     = nullptr;
    minicache_level_format levels   = { nullptr, 0.0f, false };
    bool                   is_level = false;  // can be read as levels
    bool                   is_plain = false;  // floats that the kernels take from where they lie

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

// A piece of work (an item) is the queries of a tile of tokens on one KV head, or on all KV heads where the queries are few.
// Where the items are too few for the threads, each is divided further, into chunks of the cells. An item goes through its
// cells span by span.
struct attn_schedule {
    static constexpr int64_t MAX_SPAN = 512;         // cells of a span
    static constexpr int64_t IN_CACHE = 192 * 1024;  // bytes of a span that all KV heads read one after the other
    // up to this many queries per KV head, transposing entries costs more than it saves
    static constexpr int64_t FEW_ROWS  = 12;
    static constexpr int64_t MAX_ROWS  = 256;  // queries in a tile
    static constexpr int64_t MIN_CHUNK = 256;  // cells that are worth a piece of work of their own

    attn_schedule(const minicache_attn & a, int n_threads) :
        few(a.n_tps * a.n_gqa <= FEW_ROWS), tile(few ? a.n_tps : std::min(a.n_tps, std::max<int64_t>(1, most_rows(a) / a.n_gqa))),
        n_tile((a.n_tps + tile - 1) / tile), heads(few ? a.n_head_kv : 1), n_item(a.n_stream * (a.n_head_kv / heads) * n_tile),
        n_chunk(n_item % n_threads == 0 || n_item > 8 * n_threads ?
                    1 :
                    std::max<int64_t>(1, std::min<int64_t>(n_threads, a.n_kv / MIN_CHUNK))),
        chunk(padded((a.n_kv + n_chunk - 1) / n_chunk, MINICACHE_BLOCK)), span(few ? few_cells(a) : MAX_SPAN),
        rows(tile * a.n_gqa), d_k(minicache_padded(a.d_k)), d_v(minicache_padded(a.d_v)), r_k(minicache_padded(a.r_k)),
        r_v(minicache_padded(a.r_v)), row_k(std::max(d_k, r_k)), row_v(std::max(d_v, r_v)), ld_k(level_stride(a, a.d_k, a.r_k)),
        ld_v(level_stride(a, a.d_v, a.r_v)) {
        rows_k[SHARED]   = a.coded ? entry_rows::of_code() : entry_rows::of_type(a.cache_k->type, a.d_k);
        rows_v[SHARED]   = a.coded ? entry_rows::of_code() : entry_rows::of_type(a.cache_v->type, a.d_v);
        rows_k[RETAINED] = a.pool_k ? entry_rows::of_type(a.pool_k->type, a.d_k) : entry_rows();
        rows_v[RETAINED] = a.pool_v ? entry_rows::of_type(a.pool_v->type, a.d_v) : entry_rows();
        rows_k[CURRENT]  = entry_rows::of_type(GGML_TYPE_F32, a.d_k);
        rows_v[CURRENT]  = entry_rows::of_type(GGML_TYPE_F32, a.d_v);
    }

    const bool    few;      // a KV head has at most FEW_ROWS queries
    const int64_t tile;     // tokens
    const int64_t n_tile;   // tiles of a stream
    const int64_t heads;    // KV heads of an item
    const int64_t n_item;   // (stream, KV heads, tile)
    const int64_t n_chunk;  // chunks of an item
    const int64_t chunk;    // cells
    const int64_t span;     // cells
    const int64_t rows;     // queries of a KV head in a whole tile

    // lengths of rows in scratch, padded
    const int64_t d_k;
    const int64_t d_v;
    const int64_t r_k;
    const int64_t r_v;
    const int64_t row_k;  // the longest row of K
    const int64_t row_v;
    const int64_t ld_k;  // bytes from one entry's levels to the next one's
    const int64_t ld_v;

    entry_rows rows_k[N_ENTRY_KIND];
    entry_rows rows_v[N_ENTRY_KIND];

    // floats of an item's partial result over one chunk: maximum, sum and accumulator of each row
    int64_t partial_floats() const { return n_chunk == 1 ? 0 : heads * rows * (2 + d_v); }

    int64_t n_partial() const { return n_chunk == 1 ? 0 : n_item * n_chunk; }

  private:
    static int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

    // Queries in a tile. Codes get more, because their keys are decoded once for each tile.
    static int64_t most_rows(const minicache_attn & a) { return a.coded ? 2 * MAX_ROWS : MAX_ROWS; }

    // Cells of a span for few queries. Codes get more, because each base in a span costs a transformation of the queries.
    static int64_t few_cells(const minicache_attn & a) {
        const int64_t n_byte = (int64_t) (a.cache_k->nb[2] + a.cache_v->nb[2]);
        return std::min(MAX_SPAN, padded((a.coded ? 3 : 1) * IN_CACHE / n_byte + 1, MINICACHE_BLOCK));
    }

    // whole vectors of d numbers or r coefficients
    static int64_t level_stride(const minicache_attn & a, int64_t d, int64_t r) {
        return padded(a.coded ? std::max(d, r) : d, 64);
    }
};

// Hands out a thread's scratch memory, or, without a base, counts how much is needed.
class scratch_memory {
  public:
    explicit scratch_memory(float * base) : base(base) {}

    // n floats, aligned to 64 bytes; null while counting
    float * floats(int64_t n) {
        float * x = base ? base + used : nullptr;
        used += (n + 15) / 16 * 16;
        return x;
    }

    int64_t size() const { return used; }

    bool is_real() const { return base != nullptr; }

  private:
    float * base;
    int64_t used = 0;
};
