#pragma once

// A span of cells: the entries that a tile of tokens sees of it, sorted into blocks.

#include "minicache-cpu-attn-schedule.h"

// Entries [first, first + n) of the span's order, all of one kind, and, where they are coded, of one base.
struct entry_block {
    entry_kind kind;
    int32_t    base;
    int        first;
    int        n;
    int64_t    token_0;  // the tile's tokens that see any of the entries
    int64_t    token_1;
};

class cell_span {
  public:
    cell_span(const minicache_attn & a, const attn_schedule & schedule, scratch_memory & memory);

    // Looks through the cells [cell_0, cell_1) of a stream for the tokens [token_0, token_0 + n_token). An entry that none of
    // them sees is in no block.
    void gather(int64_t stream, int64_t token_0, int64_t n_token, int64_t cell_0, int64_t cell_1);

    const int32_t * cells_of(const entry_block & block) const { return order + block.first; }

    // The mask of a token of the tile for a block's entries, without ALiBi slopes. Whole vectors can be read.
    const float * bias_of(const entry_block & block, int64_t token) const { return bias + token * LD + block.first; }

    const entry_block * begin() const { return blocks; }

    const entry_block * end() const { return blocks + n_block; }

  private:
    static const int64_t LD = attn_schedule::MAX_SPAN + MINICACHE_BLOCK;  // whole vectors can be read behind the last entry

    const minicache_attn & a;

    float * const       bias;    // [tokens][LD]
    int32_t * const     order;   // [MAX_SPAN] cells
    int32_t * const     exact;   // [MAX_SPAN] cells
    entry_block * const blocks;  // [MAX_SPAN]

    int n_shared = 0;
    int n_exact  = 0;
    int n_block  = 0;

    void look(int64_t stream, int64_t token_0, int64_t n_token, int64_t cell_0, int64_t cell_1);
    int  n_run(const int32_t * bases) const;
    void add_block(entry_kind kind, int32_t base, int first, int n);
    void set_bias(entry_block & block, int64_t stream, int64_t token_0, int64_t n_token);
};
