#pragma once

// Reads the K, or the V, of a block's entries in the form that the kernels take: levels for few queries, float32 for many.

#include "minicache-cpu-attn-span.h"
#include "minicache-cpu-level-queries.h"

#include <algorithm>

// Fills a row of n numbers up with zeros.
static inline void pad_row(float * row, int64_t n, int64_t n_padded) { std::fill(row + n, row + n_padded, 0.0f); }

class entry_reader {
  public:
    // formats: of each kind of entry
    // layout:  of code rows, if the shared entries are coded
    // ld:      bytes from one entry's levels to the next one's
    entry_reader(const minicache_attn & a, const entry_rows * formats, const minicache_code_layout & layout, int64_t ld,
        scratch_memory & memory) : coded(a.coded), formats(formats), layout(layout), codes(layout), ld(ld) {
        scratch.levels = (uint8_t *) memory.floats((MINICACHE_LEVEL_BLOCK * ld + 64) / sizeof(float));
        scratch.ld     = ld;
        scratch.scale  = (ggml_fp16_t *) memory.floats(ld / MINICACHE_LEVEL_SPAN * MINICACHE_LEVEL_BLOCK / 2);
        scratch.min    = (ggml_fp16_t *) memory.floats(ld / MINICACHE_LEVEL_SPAN * MINICACHE_LEVEL_BLOCK / 2);
        for (const entry_kind kind : { SHARED, RETAINED }) {
            zero[kind] = memory.floats(ld);
            if (memory.is_real()) {
                std::fill(zero[kind], zero[kind] + ld, formats[kind].levels.zero);
            }
        }
        if (memory.is_real() && coded) {
            minicache_code_zeros(layout, zero[SHARED]);
        }
    }

    const entry_rows & format_of(const entry_block & block) const { return formats[block.kind]; }

    bool is_coded(const entry_block & block) const { return coded && block.kind == SHARED; }

    // levels of up to MINICACHE_LEVEL_BLOCK rows of d numbers, in this object's scratch
    minicache_level_rows read_levels(const entry_block & block, const minicache_rows & rows, int64_t d) const {
        minicache_level_rows x = scratch;
        x.zero                 = zero[block.kind];
        if (is_coded(block)) {
            x.scale = x.min = nullptr;
            codes.read(rows, x.levels, x.ld);
        } else {
            const minicache_level_format & levels = format_of(block).levels;

            x.min = levels.min ? x.min : nullptr;
            levels.read(rows, d, x);
        }
        return x;
    }

    // all of the block's rows as float32: out [block.n][ld_out], each row padded with zeros behind its d numbers
    void read_floats(const entry_block & block, const void * const * rows, int64_t d, float * out, int64_t ld_out) const {
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

    // Brings n of up to n_max queries q [n][ldq] of d numbers into the form that products with levels take. Does nothing where
    // `levels` is null because there are no such products.
    void set_level_queries(
        float * levels, int64_t n, int64_t n_max, const float * q, int64_t ldq, int64_t d, entry_kind kind) const {
#if MINICACHE_LEVELS
        if (levels) {
            minicache_level_queries x(levels, n_max, ld);
            for (int64_t r = 0; r < n; ++r) {
                x.set(r, q + r * ldq, d, zero[kind], coded && kind == SHARED);
            }
        }
#else
        (void) levels, (void) n, (void) n_max, (void) q, (void) ldq, (void) d, (void) kind;
#endif
    }

  private:
    const bool                  coded;
    const entry_rows * const    formats;
    const minicache_code_layout layout;
    const minicache_code_levels codes;
    const int64_t               ld;

    minicache_level_rows scratch = {};
    float *              zero[2];  // [ld] each, of shared and of retained entries
};
