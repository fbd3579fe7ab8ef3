#pragma once

// A piece of work: the queries of a tile of tokens, on one KV head or on all, attend to a chunk of the cells.

#include "minicache-cpu-attn-coded.h"
#include "minicache-cpu-attn-reader.h"

// The queries of one KV head and their running maxima, sums and accumulators; row = token*n_gqa + the KV head's query head.
struct head_rows {
    float * q;           // [rows][d_k]
    float * acc_shared;  // [rows][r_v]
    float * acc_exact;   // [rows][d_v]
    float * max;         // [rows] of the scores
    float * sum;         // [rows] of the weights

    float * levels[N_ENTRY_KIND];  // queries for levels, for those kinds that are read as levels
    bool    coded;                 // a coded entry was seen

    // where the shared entries are coded
    minicache_code_head code_k;
    minicache_code_head code_v;

    static head_rows take(scratch_memory & memory, const minicache_attn & a, const attn_schedule & schedule);
};

class attn_tile {
  public:
    attn_tile(const minicache_attn & a, const attn_schedule & schedule, scratch_memory & memory);

    // Starts with n_token tokens from i_token on, on the KV heads from i_head_kv on.
    void begin(int64_t i_stream, int64_t i_head_kv, int64_t i_token, int64_t n_token);

    // Attends to the cells [cell_0, cell_1).
    void attend(int64_t cell_0, int64_t cell_1);

    // Brings all accumulators together in acc_exact, in the layer's own coordinates, not yet divided by the sums.
    void finish();

    // rows of a KV head
    int64_t n_row() const { return n_token * a.n_gqa; }

    // of KV head number h of this piece
    const head_rows & head(int64_t h) const { return heads[h]; }

    // the query head, and the token, of row r
    int64_t head_of(int64_t h, int64_t r) const { return (head_kv_0 + h) * a.n_gqa + r % a.n_gqa; }

    int64_t token_of(int64_t r) const { return token_0 + r / a.n_gqa; }

    int64_t the_stream() const { return stream; }

  private:
    const minicache_attn & a;
    const attn_schedule &  schedule;

    cell_span     span;
    coded_queries turned;
    head_rows *   heads;

    float *   scores;   // [rows][MINICACHE_BLOCK]
    float *   k;        // [MINICACHE_BLOCK][row_k]
    float *   v;        // [MINICACHE_BLOCK][row_v]
    float *   columns;  // [row_k][MINICACHE_BLOCK]
    float *   weights;  // scratch of minicache_values_levels()
    int32_t * words;    // [ld_k/4][MINICACHE_LEVEL_BLOCK]

    entry_reader reader_k;
    entry_reader reader_v;

    int64_t stream    = 0;
    int64_t head_kv_0 = 0;
    int64_t token_0   = 0;
    int64_t n_token   = 0;
    int64_t n_ahead   = 0;  // cells from this span's to the next span's, 0 in the last one

    // of a block's entries; addresses repeat the last one up to a whole vector
    const void * rows_k[MINICACHE_BLOCK];
    const void * rows_v[MINICACHE_BLOCK];
    float        mag_k[MINICACHE_BLOCK];
    float        mag_v[MINICACHE_BLOCK];

    minicache_rows rows_of(const entry_block & block, const void * const * rows, const ggml_tensor * cache) const;
    bool           is_coded(const entry_block & block) const { return a.coded && block.kind == SHARED; }

    void set_codes();

    void join(int64_t h, const entry_block & block);
    void find_rows(int64_t h, const entry_block & block);
    bool find_magnitudes(int64_t h, const entry_block & block);

    void score(int64_t h, head_rows & x, const entry_block & block, int64_t r_0, int64_t n);
    void score_entries(int64_t h, const entry_block & block, int64_t n, const float * q, int64_t ldq, int64_t d, float * levels,
        int64_t n_levels, int64_t r_levels);

    void softmax_row(int64_t h, head_rows & x, const entry_block & block, int64_t r, float * s, bool has_mag) const;
    void raise_max(head_rows & x, int64_t r, float max) const;

    void add_values(int64_t h, const entry_block & block, float * acc, int64_t ld, int64_t n);
    void decode_values(head_rows & x);
};
