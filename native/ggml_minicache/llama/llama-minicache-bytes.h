#pragma once

// Numbers as the bytes that they are in memory, one after the other.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

template <typename T>
static inline void minicache_append(std::vector<uint8_t> & out, const T * values, size_t n) {
    if (n > 0) {
        const size_t at = out.size();
        out.resize(at + n * sizeof(T));
        memcpy(out.data() + at, values, n * sizeof(T));
    }
}
