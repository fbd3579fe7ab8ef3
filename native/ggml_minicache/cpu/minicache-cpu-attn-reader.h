#pragma once

// Reads the K, or the V, of a block's entries in the form that the kernels take: levels for few queries, float32 for many.

#include "minicache-cpu-attn-span.h"
#include "minicache-cpu-level-queries.h"

#include <algorithm>
#include <new>

// Fills a row of n numbers up with zeros.
static inline void pad_row(float * row, int64_t n, int64_t n_padded) { std::fill(row + n, row + n_padded, 0.0f); }

class entry_reader {
  public:
    // formats: of each kind of entry
    // r:       the longest code's coefficients
    // ld:      bytes from one entry's levels to the next one's
    entry_reader(const minicache_attn & a, const attn_schedule & schedule, const entry_rows * formats, int64_t r, int64_t ld,
        scratch_memory & memory) :
        coded(a.coded), formats(formats), ld(ld), n_code(coded && schedule.few ? schedule.heads : 1),
        n_part(minicache_code_levels::n_part_of(r)) {
        scratch.levels = (uint8_t *) memory.floats((MINICACHE_LEVEL_BLOCK * ld + 64) / sizeof(float));
        scratch.ld     = ld;
        scratch.scale  = (ggml_fp16_t *) memory.floats(ld / MINICACHE_LEVEL_SPAN * MINICACHE_LEVEL_BLOCK / 2);
        scratch.min    = (ggml_fp16_t *) memory.floats(ld / MINICACHE_LEVEL_SPAN * MINICACHE_LEVEL_BLOCK / 2);
        for (const entry_kind kind : { SHARED, RETAINED }) {
            const int64_t n = kind == SHARED ? n_code * ld : ld;
            zeros[kind]     = memory.floats(n);
            if (memory.is_real()) {
                std::fill(zeros[kind], zeros[kind] + n, formats[kind].levels.zero);
            }
        }
        if (coded && schedule.few) {
            codes = (minicache_code_levels *) memory.floats(bytes_to_floats(n_code * sizeof(minicache_code_levels)));
            parts = (minicache_code_levels::part *) memory.floats(
                bytes_to_floats(n_code * n_part * sizeof(minicache_code_levels::part)));
        }
    }

    // Prepares for code rows of KV head number h of a piece of work as levels.
    void set_code(int64_t h, const minicache_code_layout & layout) {
        new (codes + h) minicache_code_levels(layout, parts + h * n_part);
        minicache_code_zeros(layout, zeros[SHARED] + h * ld);
    }

    const entry_rows & format_of(const entry_block & block) const { return formats[block.kind]; }

    bool is_coded(const entry_block & block) const { return coded && block.kind == SHARED; }

    // levels of up to MINICACHE_LEVEL_BLOCK rows of d numbers of KV head number h, in this object's scratch
    minicache_level_rows read_levels(int64_t h, const entry_block & block, const minicache_rows & rows, int64_t d) const {
        minicache_level_rows x = scratch;
        x.zero                 = zero_of(h, block.kind);
        if (is_coded(block)) {
            x.scale = x.min = nullptr;
            codes[h].read(rows, x.levels, x.ld);
        } else {
            const minicache_level_format & levels = format_of(block).levels;

            x.min = levels.min ? x.min : nullptr;
            levels.read(rows, d, x);
        }
        return x;
    }

    // all of the block's rows as float32: out [block.n][ld_out], each row padded with zeros behind its d numbers
    //   layout  of the code rows, if the block is coded
    void read_floats(const minicache_code_layout & layout, const entry_block & block, const void * const * rows, int64_t d,
        float * out, int64_t ld_out) const {
        if (is_coded(block)) {
            minicache_code_read(layout, (const uint8_t * const *) rows, block.n, out, ld_out);
        }
        for (int c = 0; c < block.n; ++c) {
            if (!is_coded(block)) {
                format_of(block).read(rows[c], out + c * ld_out, d);
            }
            pad_row(out + c * ld_out, d, ld_out);
        }
    }

    // Brings n of up to n_max queries q [n][ldq] of d numbers into the form that products with levels of KV head number h take.
    // Does nothing where `levels` is null because there are no such products.
    void set_level_queries(
        int64_t h, float * levels, int64_t n, int64_t n_max, const float * q, int64_t ldq, int64_t d, entry_kind kind) const {
#if MINICACHE_LEVELS
        if (levels) {
            minicache_level_queries x(levels, n_max, ld);
            for (int64_t r = 0; r < n; ++r) {
                x.set(r, q + r * ldq, d, zero_of(h, kind), coded && kind == SHARED);
            }
        }
#else
        (void) h, (void) levels, (void) n, (void) n_max, (void) q, (void) ldq, (void) d, (void) kind;
#endif
    }

  private:
    const bool               coded;
    const entry_rows * const formats;
    const int64_t            ld;
    const int64_t            n_code;  // KV heads of a piece of work whose code rows are read as levels
    const int64_t            n_part;  // of the longest code

    minicache_level_rows scratch = {};
    float *              zeros[2];  // of shared entries [n_code][ld], and of retained ones [ld]

    // for few queries
    minicache_code_levels *       codes = nullptr;  // [n_code]
    minicache_code_levels::part * parts = nullptr;  // [n_code][n_part]

    static int64_t bytes_to_floats(int64_t n) { return (n + sizeof(float) - 1) / sizeof(float); }

    const float * zero_of(int64_t h, entry_kind kind) const { return zeros[kind] + (coded && kind == SHARED ? h * ld : 0); }
};
