#pragma once

// The rule by which llama.cpp rotates K and V before it stores them in a quantized type: each head is multiplied by a Hadamard
// matrix, in blocks, so that rounding loses less.

#include <cstddef>
#include <cstdint>
#include <vector>

// numbers of a block, 0 where nothing is rotated
struct minicache_rotation {
    int32_t n_k;
    int32_t n_v;
};

// Block sizes for heads of these sizes: 0 if 64 does not divide the size; else 64 for V, and for K the largest 64*2^i that
// divides it. As llama_kv_cache::build_input_k_rot() and build_input_v_rot() choose them.
minicache_rotation minicache_rotation_of(int32_t head_size_k, int32_t head_size_v);

// Sylvester's Hadamard matrix of n rows, orthogonal: [n][n]. n is a power of two.
std::vector<float> minicache_hadamard(int64_t n);

// Multiplies each row of n numbers in x by that matrix, in n*log2(n) steps.
void minicache_hadamard_rows(std::vector<float> & x, int64_t n);
