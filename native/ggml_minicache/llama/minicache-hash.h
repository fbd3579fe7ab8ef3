#pragma once

// FNV-1a over words of 8 bytes, the last of which is filled up with zeros, with one more mixing step for each word.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

static const uint64_t MINICACHE_HASH_SEED = 0xcbf29ce484222325ull;

static inline uint64_t minicache_hash(const void * data, size_t size, uint64_t h = MINICACHE_HASH_SEED) {
    for (size_t i = 0; i < size; i += 8) {
        uint64_t word = 0;
        memcpy(&word, (const char *) data + i, std::min<size_t>(8, size - i));
        h = (h ^ word) * 0x100000001b3ull;
        h ^= h >> 32;
    }
    return h;
}
