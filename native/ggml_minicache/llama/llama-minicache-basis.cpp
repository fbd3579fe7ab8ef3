#include "llama-minicache-basis.h"

#include "llama-minicache-rotation.h"

std::vector<float> minicache_transposed(const std::vector<float> & matrices, int64_t d) {
    std::vector<float> y(matrices.size());
    for (size_t m = 0; m < matrices.size(); m += d * d) {
        for (int64_t i = 0; i < d; ++i) {
            for (int64_t j = 0; j < d; ++j) {
                y[m + j * d + i] = matrices[m + i * d + j];
            }
        }
    }
    return y;
}

std::vector<float> minicache_rotated_basis(std::vector<float> matrices, int64_t d, int64_t n) {
    for (int i = 0; i < 2 && n > 0; ++i) {
        minicache_hadamard_rows(matrices, n);
        matrices = minicache_transposed(matrices, d);
    }
    return matrices;
}
