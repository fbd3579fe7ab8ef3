#pragma once

// Row readers: the only part that knows the bytes of ggml's storage formats.

#include "ggml.h"

#include <cstdint>

// n elements at `row` to float32; n is a multiple of the type's block size
typedef void (*minicache_read_row_t)(const void * row, float * out, int64_t n);

// Returns null only for types that neither a cache nor a pool can have.
minicache_read_row_t minicache_row_reader(enum ggml_type type);

static const int MINICACHE_BLOCK = 64;  // the most entries that are read at a time

// The rows of a block of entries, where they lie in memory.
struct minicache_rows {
    const void * const * at;  // addresses; the last one is repeated up to a whole vector
    int                  n;
    int64_t              ahead;  // bytes from each row to one that will be read soon and is worth fetching, 0 for none

    // at most n_max of the rows, from row c on
    minicache_rows from(int c, int n_max) const { return { at + c, n - c < n_max ? n - c : n_max, ahead }; }
};

//
// levels: rows as integers from 0 to 255, for dot products of integers
//

static const int MINICACHE_LEVEL_BLOCK = 32;  // entries whose levels are read at a time, so few that they stay in the L1 cache
static const int MINICACHE_LEVEL_SPAN  = 32;  // levels that share a scale

// The levels of some entries of a block: number i of entry c is scale[g][c]*(level - zero[i]) + min[g][c], with g = i/32.
struct minicache_level_rows {
    uint8_t *     levels;  // [MINICACHE_LEVEL_BLOCK][ld]
    int64_t       ld;
    ggml_fp16_t * scale;  // [ld/32][MINICACHE_LEVEL_BLOCK], null: all 1
    ggml_fp16_t * min;    // as scale, null: all 0
    const float * zero;   // [ld], whole or half numbers
};

// Reads rows of d elements as levels, scales and minima; scales and minima behind the last row are 0.
typedef void (*minicache_read_levels_t)(const minicache_rows & rows, int64_t d, const minicache_level_rows & out);

struct minicache_level_format {
    minicache_read_levels_t read;  // null for a type that is not made of levels
    float                   zero;  // the same for all numbers of a row
    bool                    min;   // the type has minima
};

minicache_level_format minicache_levels_of(enum ggml_type type);
