#pragma once

// The segments of a code row, with the widths of their planes as types. See minicache-code.h.

#include "minicache-code.h"

// the bits of a segment's planes, as a type
template <int UPPER, int LOWER>
struct segment_planes {
    static constexpr int upper = UPPER;
    static constexpr int lower = LOWER;
};

// Calls fn(segment_planes, number of units) for each segment, in their order.
template <typename F>
static inline void for_segments(const minicache_code_layout & layout, const F & fn) {
    fn(segment_planes<8, 0>(), layout.n_unit[0]);
    fn(segment_planes<4, 2>(), layout.n_unit[1]);
    fn(segment_planes<4, 1>(), layout.n_unit[2]);
    fn(segment_planes<4, 0>(), layout.n_unit[3]);
    fn(segment_planes<2, 1>(), layout.n_unit[4]);
    fn(segment_planes<2, 0>(), layout.n_unit[5]);
    fn(segment_planes<1, 0>(), layout.n_unit[6]);
}
