#pragma once

// How the codes of a group's KV heads lie beside each other. On the host.

#include "minicache-code.h"

#include <algorithm>
#include <vector>

// The layouts of a group's codes: of each KV head, all with the group's number of layers.
struct minicache_group_layouts {
    std::vector<minicache_code_layout> k;
    std::vector<minicache_code_layout> v;

    const std::vector<minicache_code_layout> & of(bool is_v) const { return is_v ? v : k; }
};

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
