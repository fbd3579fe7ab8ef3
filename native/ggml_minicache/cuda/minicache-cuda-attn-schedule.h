#pragma once

// How the attention kernel of a GPU cuts its work, and how a block of threads uses its shared memory. The host and the device
// compile this same text.
//
// A block of 4 warps takes a tile of `rows` queries of one stream and KV head (row = token*n_gqa + the KV head's query head)
// and a chunk of the cells, which it goes through in tiles. A second kernel combines the partial results of the chunks.

#include "minicache-code.h"

#define MINICACHE_ATTN_WARPS  4
#define MINICACHE_ATTN_TILE   64           // cells, fewer where rows are long
#define MINICACHE_ATTN_SPAN   256          // cells that share a table of turned queries
#define MINICACHE_ATTN_BASES  16           // the most bases in such a table
#define MINICACHE_ATTN_CELL   4            // words kept for a cell of three tiles: its number, base and magnitudes
#define MINICACHE_ATTN_HEAD   512          // the most numbers of a head
#define MINICACHE_ATTN_CODE   1024         // the most coefficients of a code
#define MINICACHE_ATTN_SHARED (96 * 1024)  // bytes that a block may use: sm_86, sm_89 and sm_120 have 99 KiB

struct minicache_attn_schedule {
    int32_t tile;        // cells
    int32_t rows;        // queries in a tile, 8 or 16
    int32_t n_row;       // queries of a KV head, n_tps*n_gqa
    int32_t n_row_tile;  // tiles of queries
    int32_t chunk;       // cells of a chunk, a whole number of tiles
    int32_t n_split;     // chunks
    int32_t n_span;      // spans of MINICACHE_ATTN_SPAN cells
    int32_t n_base;      // bases for which a span's table of turned queries has room
    int32_t wide;        // tiles of 16 numbers of V, or of its code, for each warp: 2, 4, 8 or, with 8 rows only, 16

    // Numbers from one row to the next in the tiles of K and V and in the queries: odd multiples of 8, so that the rows of an
    // 8x8 matrix lie in different banks.
    int32_t ld_k;
    int32_t ld_v;
    int32_t ld_q;
    int32_t ld_q_code;
    int32_t ld_p;
    int32_t raw_k;  // bytes of a staged row of the cache, not yet unpacked
    int32_t raw_v;
    int32_t raw;  // bytes of all staged rows of a tile

    // offsets in bytes
    int32_t at_v;
    int32_t at_q;
    int32_t at_q_code;
    int32_t at_p;
    int32_t at_scores;
    int32_t at_raw;
    int32_t at_cells;
    int32_t shared;
};

static inline MINICACHE_HD int minicache_round_up(int x, int n) { return (x + n - 1) / n * n; }

// what a kernel needs to know of the op's shape
struct minicache_attn_dims {
    int32_t d_k;
    int32_t d_v;
    int32_t r_k;  // the most coefficients of a KV head's code; d_k without codes
    int32_t r_v;
    int32_t n_tps;
    int32_t n_head;
    int32_t n_head_kv;
    int32_t n_gqa;
    int32_t n_kv;
    int32_t n_stream;
    int32_t coded;
    int32_t bytes_k;  // the most bytes of a KV head's row in the cache
    int32_t bytes_v;
};

static inline MINICACHE_HD int minicache_max(int a, int b) { return a > b ? a : b; }

static inline MINICACHE_HD int minicache_min(int a, int b) { return a < b ? a : b; }

// Bytes from one staged row to the next. A row may begin two bytes into its first word. Neighbouring threads read neighbouring
// code rows, so those lie an odd number of words apart. A whole warp reads one row of any other kind, so those may begin at any
// word.
static inline MINICACHE_HD int minicache_raw_stride(int bytes, int coded) {
    return coded ? 4 * ((bytes + 2 + 3) / 4 | 1) : minicache_round_up(bytes + 2, 16);
}

// Floats of the partial result of one row over one chunk: maximum of the scores, sum of the weights, maximum of scores and
// magnitudes together, one unused, the accumulator of exact entries, and that of coded ones.
static inline MINICACHE_HD int minicache_attn_partial(struct minicache_attn_dims d) { return 4 + d.d_v + (d.coded ? d.r_v : 0); }

// Lays out the shared memory of a block for tiles of p->tile cells.
static inline MINICACHE_HD void minicache_attn_schedule_shared(struct minicache_attn_schedule * p, struct minicache_attn_dims d) {
    const int longest_k = minicache_max(d.d_k, d.r_k);
    const int longest_v = minicache_max(d.d_v, d.r_v);

    p->ld_k      = longest_k + 8;
    p->ld_v      = longest_v + 8;
    p->ld_q      = d.d_k + 8;
    p->ld_q_code = d.coded ? d.r_k + 8 : 0;
    p->ld_p      = p->tile + 8;
    p->raw_k     = minicache_raw_stride(d.bytes_k, d.coded);
    p->raw_v     = minicache_raw_stride(d.bytes_v, d.coded);
    // the staged rows give way to a turned query and the angles if a base is not in the table
    p->raw = minicache_round_up(minicache_max((p->raw_k + p->raw_v) * p->tile, d.coded ? 8 * d.d_k : 0), 16);

    p->at_v      = 2 * p->tile * p->ld_k;
    p->at_q      = p->at_v + 2 * p->tile * p->ld_v;
    p->at_q_code = p->at_q + 2 * p->rows * p->ld_q;
    p->at_p      = p->at_q_code + 2 * p->rows * p->ld_q_code;
    p->at_scores = p->at_p + 2 * p->rows * p->ld_p;
    p->at_raw    = minicache_round_up(p->at_scores + 4 * p->tile * (p->rows + 1), 16);
    p->at_cells  = p->at_raw + 2 * p->raw;
    p->shared    = p->at_cells + 4 * p->tile * (3 * MINICACHE_ATTN_CELL + 2);
}

// How many bases, 64 positions apart, the cells of a span may have: as many as one sequence has there, wherever its first base
// begins; or, in a unified cache, where each token may belong to another sequence, as many as all those sequences have when their
// cells take turns.
static inline MINICACHE_HD int minicache_attn_n_base(struct minicache_attn_dims d) {
    const int n = MINICACHE_ATTN_SPAN / 64 + 1;
    return d.n_stream == 1 && d.n_tps > 1 ? minicache_min(MINICACHE_ATTN_BASES, n + 2 * d.n_tps - 1) : n;
}

// The schedule for a device that runs n_block blocks of threads at a time.
static inline struct minicache_attn_schedule minicache_attn_schedule_of(struct minicache_attn_dims d, int n_block) {
    struct minicache_attn_schedule p;

    // accumulators of so long a head, or code, leave registers for 8 queries only
    const int long_rows = d.d_v > 256 || (d.coded && minicache_max(d.r_k, d.r_v) > 512);
    if (d.coded) {
        // exact entries have half as many, but at least 2
        p.wide = long_rows ? 16 : d.d_v > 128 || d.r_v > 256 ? 8 : d.r_v > 128 ? 4 : 2;
    } else {
        p.wide = long_rows ? 8 : d.d_v > 128 ? 4 : 2;
    }

    p.n_row      = d.n_tps * d.n_gqa;
    p.rows       = p.n_row <= 8 || long_rows ? 8 : 16;
    p.n_row_tile = (p.n_row + p.rows - 1) / p.rows;
    p.n_span     = (d.n_kv + MINICACHE_ATTN_SPAN - 1) / MINICACHE_ATTN_SPAN;
    p.n_base     = minicache_attn_n_base(d);

    p.tile = MINICACHE_ATTN_TILE;
    minicache_attn_schedule_shared(&p, d);
    while (p.shared > MINICACHE_ATTN_SHARED && p.tile > 16) {
        p.tile /= 2;
        minicache_attn_schedule_shared(&p, d);
    }

    // Chunks are as long as they can be while all of the device is busy, nearly in a whole number of waves.
    const int n_tile = (d.n_kv + p.tile - 1) / p.tile;
    const int n_item = d.n_stream * d.n_head_kv * p.n_row_tile;
    const int n      = minicache_max(1, minicache_min(n_tile, n_block / n_item));

    p.chunk   = p.tile * ((n_tile + n - 1) / n);
    p.n_split = (d.n_kv + p.chunk - 1) / p.chunk;
    return p;
}

// Whether the kernels have registers and shared memory for rows of this shape.
static inline int minicache_attn_fits(struct minicache_attn_dims d) {
    const int multiples = d.d_k % 16 == 0 && d.d_v % 16 == 0 && d.d_k > 0 && d.d_v > 0;
    return multiples && minicache_max(d.d_k, d.d_v) <= MINICACHE_ATTN_HEAD &&
           minicache_max(d.r_k, d.r_v) <= MINICACHE_ATTN_CODE && d.n_gqa <= 16 &&
           minicache_attn_schedule_of(d, 1).shared <= MINICACHE_ATTN_SHARED;
}
