#pragma once

// Row readers: the only part that knows the bytes of a storage format.

#include "ggml.h"

#include <cstdint>

// n elements at `row` to float32; n is a multiple of the type's block size
typedef void (*minicache_read_row_t)(const void * row, float * out, int64_t n);

// never null for a type that a cache or a pool may have
minicache_read_row_t minicache_row_reader(enum ggml_type type);

static const int MINICACHE_BLOCK = 64;  // entries that are read at a time, at most

// rows of a block of entries, as they lie in memory
struct minicache_rows {
    const void * const * at;  // addresses, the last one again up to a whole vector
    int                  n;
    int64_t              ahead;  // bytes from each row to what is read after the block's group of cells, 0: nothing

    // up to n_max of them from c on
    minicache_rows from(int c, int n_max) const { return { at + c, n - c < n_max ? n - c : n_max, ahead }; }
};

//
// levels: rows as integers from 0 to 255, which dot products of integers take as they are
//

static const int MINICACHE_LEVEL_BLOCK = 32;  // entries whose levels are read at a time: what is made of them stays in L1
static const int MINICACHE_LEVEL_GROUP = 32;  // levels that share a scale

// Rows of some entries of a block: number i of entry c is scale[g][c]*(level - zero[i]) + min[g][c], with g = i/32.
struct minicache_level_rows {
    uint8_t *     levels;  // [MINICACHE_LEVEL_BLOCK][ld]
    int64_t       ld;
    ggml_fp16_t * scale;  // [ld/32][MINICACHE_LEVEL_BLOCK], null: all 1
    ggml_fp16_t * min;    // as scale, null: all 0
    const float * zero;   // [ld], whole or half numbers
};

// rows of d elements to levels, scales and minima; scales and minima behind them are 0
typedef void (*minicache_read_levels_t)(const minicache_rows & rows, int64_t d, const minicache_level_rows & out);

struct minicache_level_format {
    minicache_read_levels_t read;  // null for a type that is not made of levels
    float                   zero;  // of all numbers
    bool                    min;   // whether there are minima
};

minicache_level_format minicache_levels_of(enum ggml_type type);
