#pragma once

// Basis matrices of aligned groups, d x d matrices one after the other, as the cache applies them.

#include <cstddef>
#include <cstdint>
#include <vector>

// each of the matrices transposed
std::vector<float> minicache_transposed(const std::vector<float> & matrices, int64_t d);

// Basis matrices W for vectors that llama.cpp has rotated by the Hadamard matrix H, in blocks of n: H W H each, so that a
// vector Hx is merged as H W x. With n = 0 nothing is rotated, and the result is W.
std::vector<float> minicache_rotated_basis(std::vector<float> matrices, int64_t d, int64_t n);
