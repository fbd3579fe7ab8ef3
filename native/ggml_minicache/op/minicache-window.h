#pragma once

// Which slot of a window keeps a cell's token. The first cells of a stream have slots for good, as every later token reads the tokens
// there far more than others (attention sinks: Xiao et al. 2023, arXiv 2309.17453), and the other slots are a ring that keeps the
// latest tokens. It depends on no backend.

#include "minicache-math.h"

#include <stdint.h>

// How many cells have slots for good, of a window of so many tokens.
static inline MINICACHE_HD int32_t minicache_window_first(int32_t window) { return window < 64 ? window / 16 : 4; }

static inline MINICACHE_HD int32_t minicache_window_slot(int64_t cell, int32_t window) {
    const int32_t first = minicache_window_first(window);
    return (int32_t) (cell < first ? cell : first + (cell - first) % (window - first));
}
