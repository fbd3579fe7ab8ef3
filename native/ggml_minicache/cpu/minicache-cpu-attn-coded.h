#pragma once

// How coded entries and the queries meet: the queries of one KV head are turned back by the entries' base and multiplied by K's
// decoder, for some bases at a time, or the keys of a block are decoded and turned forward, where those are fewer.

#include "minicache-cpu-attn-angles.h"
#include "minicache-cpu-attn-reader.h"

class coded_queries {
  public:
    coded_queries(const minicache_attn & a, const attn_schedule & schedule, scratch_memory & memory);

    // Another KV head's queries follow, or another span.
    void forget_bases() { n = 0; }

    // Another item's queries follow.
    void forget_decoder() { has_decoder = false; }

    // the number of the base among those that queries were turned for, -1 if it is not among them
    int find(int32_t b) const {
        for (int i = 0; i < n; ++i) {
            if (base[i] == b) {
                return i;
            }
        }
        return -1;
    }

    // Turns the queries for the block's base and for the bases of the blocks that follow it, and multiplies all by the decoder in
    // one product: (R(-b)q)ᵀD of each row. The block's base becomes number 0.
    //   h  the KV head's number in the piece of work
    //   q  [n_row][d_k], padded
    void turn(int64_t h, const minicache_code_head & head, const entry_reader & reader, const float * q, int64_t n_row,
        const entry_block * block, const entry_block * end);

    // queries as entries of base number i see them, from row `row` of that base's n_row on
    const float * queries(int i, int64_t n_row, int64_t row) const { return q + (i * n_row + row) * schedule.r_k; }

    // R(b)û of each entry of the block
    //   rows  the code rows
    //   k     [block.n][d_k], padded
    void decode_keys(const minicache_code_head & head, const entry_block & block, const void * const * rows, float * k);

    // the turned queries of all bases for products with levels
    float * level_queries() const { return levels; }

    // Many queries are turned for one base at a time, if at all.
    static int max_bases(const attn_schedule & schedule) { return schedule.few ? MAX_BASES : 1; }

    static int64_t max_rows(const attn_schedule & schedule) { return max_bases(schedule) * schedule.rows; }

  private:
    static const int MAX_BASES = 8;

    const minicache_attn & a;
    const attn_schedule &  schedule;

    int     n = 0;  // bases
    int32_t base[MAX_BASES];

    float * turned;     // [max_bases()][rows][d_k] before the decoder
    float * q;          // [max_bases()][rows][r_k]
    float * levels;     // the same as levels
    float * code_rows;  // [MINICACHE_BLOCK][r_k]
    float * decoder;    // [r_k][d_k] of K, transposed

    angle_table angles;
    bool        has_decoder = false;

    void prepare_decoder(const minicache_code_head & head);
};
