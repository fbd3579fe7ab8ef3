#include "llama-minicache-rotation.h"

#include "llama-minicache.h"

#include <cmath>

static const int32_t SMALLEST_BLOCK = 64;

minicache_rotation minicache_rotation_of(int32_t head_size_k, int32_t head_size_v) {
    const auto is_rotated = [](int32_t size) { return size > 0 && size % SMALLEST_BLOCK == 0; };

    minicache_rotation rotation = { is_rotated(head_size_k) ? SMALLEST_BLOCK : 0, is_rotated(head_size_v) ? SMALLEST_BLOCK : 0 };
    while (rotation.n_k > 0 && head_size_k % (2 * rotation.n_k) == 0) {
        rotation.n_k *= 2;
    }
    return rotation;
}

void llama_minicache_rotation(int32_t head_size_k, int32_t head_size_v, int32_t * n_k, int32_t * n_v) {
    const minicache_rotation rotation = minicache_rotation_of(head_size_k, head_size_v);

    *n_k = rotation.n_k;
    *n_v = rotation.n_v;
}

std::vector<float> minicache_hadamard(int64_t n) {
    std::vector<float> h(n * n);
    for (int64_t i = 0; i < n * n; ++i) {
        // the sign is the parity of the bits that row and column share
        int parity = 0;
        for (int64_t bits = (i / n) & (i % n); bits; bits &= bits - 1) {
            parity ^= 1;
        }
        h[i] = (parity ? -1.0f : 1.0f) / sqrtf(n);
    }
    return h;
}

void minicache_hadamard_rows(std::vector<float> & x, int64_t n) {
    const float scale = 1.0f / sqrtf((float) n);
    for (size_t row = 0; row < x.size(); row += n) {
        for (int64_t half = 1; half < n; half *= 2) {
            for (int64_t i = 0; i < n; ++i) {
                if (!(i & half)) {
                    const float a     = x[row + i];
                    const float b     = x[row + i + half];
                    x[row + i]        = a + b;
                    x[row + i + half] = a - b;
                }
            }
        }
        for (int64_t i = 0; i < n; ++i) {
            x[row + i] *= scale;
        }
    }
}
