#pragma once

// Which slot of a window keeps a cell's token. The first cells of a stream have slots for good, as every later token reads the tokens
// there far more than others (attention sinks: Xiao et al. 2023, arXiv 2309.17453), and the other slots are a ring that keeps the
// latest tokens. It depends on no backend.

#include "minicache-math.h"

#include <stdint.h>

// A plan's window is at least this part of the context, or half of it where it is kept as f16, up to so many tokens.
#define MINICACHE_WINDOW_SHARE 32
#define MINICACHE_WINDOW_GROWN 1024

// How many tokens the window of a plan holds in a stream of so many cells. Attention reads the nearest tokens most, and the longer the
// context, the less more of them add to its bytes. A plan without a window gets none.
static inline int32_t minicache_window_at(int32_t window, bool is_f16, int64_t n_cells) {
    const int64_t share = n_cells / (is_f16 ? 2 * MINICACHE_WINDOW_SHARE : MINICACHE_WINDOW_SHARE);
    const int32_t grown = share < MINICACHE_WINDOW_GROWN ? (int32_t) share : MINICACHE_WINDOW_GROWN;
    return window > 0 && window < grown ? grown : window;
}

// How many cells have slots for good, of a window of so many tokens.
static inline MINICACHE_HD int32_t minicache_window_first(int32_t window) { return window < 64 ? window / 16 : 4; }

static inline MINICACHE_HD int32_t minicache_window_slot(int64_t cell, int32_t window) {
    const int32_t first = minicache_window_first(window);
    return (int32_t) (cell < first ? cell : first + (cell - first) % (window - first));
}
