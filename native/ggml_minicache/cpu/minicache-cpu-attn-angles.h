#pragma once

// Cosines and sines by which the attention turns queries and keys, in float32, for the bases that coded entries have.

#include "minicache-cpu-code.h"
#include "minicache-turn.h"

#include <algorithm>

// The cosines and sines of one base. As long as bases advance by the same step, those of the next base are the product of the
// last ones and the step's. They are computed afresh in double after MAX_STEPS steps, which keeps the error below 1e-5.
class base_angles {
  public:
    // floats of scratch
    static int64_t n_float(const minicache_code_shape & shape) { return 4 * (int64_t) minicache_turn_pairs(shape); }

    base_angles(const minicache_code_shape & shape, const void * codec, float * scratch) :
        freq(minicache_code_freq(shape, codec)), n(minicache_turn_pairs(shape)), scratch(scratch) {}

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
        minicache_turn_angles_at(base, freq, n, scratch, scratch + n);
        n_step = 0;
        if (advance != step) {
            step = advance;
            minicache_turn_angles_at(step, freq, n, scratch + 2 * n, scratch + 3 * n);
        }
    }

  private:
    static const int MAX_STEPS = 32;

    const float * freq;
    const int     n;
    float *       scratch;  // [4][n]: cosines and sines of the base, then of the step
    int32_t       at     = 0;
    int64_t       step   = 0;
    int           n_step = MAX_STEPS;  // nothing has been computed yet

    void advance_by_step(float * MINICACHE_RESTRICT cos_b, float * MINICACHE_RESTRICT sin_b, const float * cos_step,
        const float * sin_step) const {
        for (int i = 0; i < n; ++i) {
            const float c = cos_b[i] * cos_step[i] - sin_b[i] * sin_step[i];
            const float s = cos_b[i] * sin_step[i] + sin_b[i] * cos_step[i];
            cos_b[i]      = c;
            sin_b[i]      = s;
        }
    }
};

// The angles of the bases that were asked for last: every KV head asks for the same ones.
class angle_table {
  public:
    // floats of scratch
    static int64_t n_float(const minicache_code_shape & shape) {
        return base_angles::n_float(shape) + SIZE * 2 * (int64_t) minicache_turn_pairs(shape);
    }

    angle_table(const minicache_code_shape & shape, const void * codec, float * scratch) :
        n_pair(minicache_turn_pairs(shape)), angles(shape, codec, scratch), scratch(scratch), first(base_angles::n_float(shape)) {
    }

    // the cosines of base b, then its sines: [2][n_pair]
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
