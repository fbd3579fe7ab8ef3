#pragma once

// The payload of a saved state made smaller without loss: the code rows in it are entropy-coded, and all else stays as it is.
// Levels are not equally frequent, because coefficients are near 0 more often than far from it, and magnitudes are not either.

#include "minicache-code-heads.h"

#include <cstddef>
#include <cstdint>
#include <vector>

// Code rows of a group in a payload: those of all KV heads of one token after those of another.
struct minicache_code_rows {
    uint64_t at;  // the first byte
    uint32_t n_token;
    uint16_t group;
    uint16_t is_v;  // 1: of V, 0: of K
};

// The packed payload.
//   rows:    in the order of their places; none overlap
//   layouts: of all groups
std::vector<uint8_t> minicache_pack(const std::vector<uint8_t> & payload, const std::vector<minicache_code_rows> & rows,
    const std::vector<minicache_group_layouts> & layouts);

// The payload that was packed. Throws std::runtime_error where it is damaged, or is said to be larger than max_size.
std::vector<uint8_t> minicache_unpack(
    const std::vector<uint8_t> & packed, const std::vector<minicache_group_layouts> & layouts, size_t max_size);
