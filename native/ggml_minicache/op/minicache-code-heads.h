#pragma once

// How the codes of a group's KV heads lie beside each other. On the host.

#include "minicache-code.h"

#include <algorithm>
#include <cstdint>
#include <vector>

// The layouts of a group's codes: of each KV head, all with the group's number of layers.
struct minicache_group_layouts {
    std::vector<minicache_code_layout> k;
    std::vector<minicache_code_layout> v;

    const std::vector<minicache_code_layout> & of(bool is_v) const { return is_v ? v : k; }
};

// a shape keeps these in 16 bits, and a row takes at most a byte for a coefficient, and its magnitudes
static_assert(MINICACHE_CODE_WIDTHS * UINT8_MAX * MINICACHE_CODE_UNIT + MINICACHE_CODE_LAYERS <= INT16_MAX);

// Makes the layouts of KV heads from their numbers of units of each width, [n_head_kv][MINICACHE_CODE_WIDTHS]. Returns the first
// number that no code can have, null if there is none.
static inline const int32_t * minicache_make_layouts(
    const int32_t * units, int n_head_kv, int n_layer, std::vector<minicache_code_layout> & layouts) {
    layouts.resize(n_head_kv);
    for (minicache_code_layout & layout : layouts) {
        for (uint8_t & n_unit : layout.n_unit) {
            if (*units < 0 || *units > UINT8_MAX) {
                return units;
            }
            n_unit = (uint8_t) *units++;
        }
        layout.n_layer = (uint8_t) n_layer;
    }
    return nullptr;
}

// Appends the layouts with what comes before each, and sets what a shape says of them.
static inline void minicache_add_heads(const std::vector<minicache_code_layout> & layouts,
    std::vector<minicache_head_layout> & heads, int16_t & r, int16_t & row, int32_t & size, int32_t & bytes) {
    r = row = 0;
    size = bytes = 0;
    for (const minicache_code_layout & layout : layouts) {
        heads.push_back({ layout, bytes, size });
        r   = std::max(r, (int16_t) minicache_code_size(layout));
        row = std::max(row, (int16_t) minicache_code_bytes(layout));
        size += minicache_code_size(layout);
        bytes += minicache_code_bytes(layout);
    }
}

// Sets what a shape says of its codes, and returns what its codec begins with.
static inline std::vector<minicache_head_layout> minicache_set_heads(
    minicache_code_shape & shape, const minicache_group_layouts & layouts) {
    std::vector<minicache_head_layout> heads;
    minicache_add_heads(layouts.k, heads, shape.r_k, shape.row_k, shape.size_k, shape.bytes_k);
    minicache_add_heads(layouts.v, heads, shape.r_v, shape.row_v, shape.size_v, shape.bytes_v);
    return heads;
}
