#include "test-case.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>

double nmse(const float * x, const float * expected, size_t n) {
    double error = 0.0;
    double norm  = 0.0;
    for (size_t i = 0; i < n; ++i) {
        if (!std::isfinite(x[i]) || !std::isfinite(expected[i])) {
            return INFINITY;
        }
        const double d = (double) x[i] - expected[i];
        error += d * d;
        norm += (double) expected[i] * expected[i];
    }
    return error == 0.0 ? 0.0 : error / norm;
}

std::vector<float> random_floats(rng_t & rng, size_t n, float scale) {
    std::normal_distribution<float> normal(0.0f, scale);

    std::vector<float> x(n);
    for (float & value : x) {
        value = normal(rng);
    }
    return x;
}

std::vector<float> set_rows(ggml_tensor * tensor, const std::vector<float> & x) {
    GGML_ASSERT(ggml_is_contiguous(tensor) && (int64_t) x.size() == ggml_nelements(tensor));

    if (tensor->type == GGML_TYPE_F32) {
        ggml_backend_tensor_set(tensor, x.data(), 0, ggml_nbytes(tensor));
        return x;
    }
    std::vector<uint8_t> data(ggml_nbytes(tensor));
    ggml_quantize_chunk(tensor->type, x.data(), data.data(), 0, ggml_nrows(tensor), tensor->ne[0], nullptr);
    ggml_backend_tensor_set(tensor, data.data(), 0, data.size());

    return get_rows(tensor);
}

std::vector<float> get_rows(const ggml_tensor * tensor) {
    GGML_ASSERT(ggml_is_contiguous(tensor));

    std::vector<float> x(ggml_nelements(tensor));
    if (tensor->type == GGML_TYPE_F32) {
        ggml_backend_tensor_get(tensor, x.data(), 0, ggml_nbytes(tensor));
        return x;
    }
    std::vector<uint8_t> data(ggml_nbytes(tensor));
    ggml_backend_tensor_get(tensor, data.data(), 0, data.size());
    ggml_get_type_traits(tensor->type)->to_float(data.data(), x.data(), x.size());

    return x;
}

void fill_rows(rng_t & rng, ggml_tensor * tensor, float scale) {
    GGML_ASSERT(ggml_is_contiguous(tensor));

    const int64_t            n       = std::min<int64_t>(1021, ggml_nrows(tensor));
    const std::vector<float> x       = random_floats(rng, n * tensor->ne[0], scale);
    const size_t             n_bytes = ggml_row_size(tensor->type, n * tensor->ne[0]);
    std::vector<uint8_t>     data(n_bytes);
    if (tensor->type == GGML_TYPE_F32) {
        memcpy(data.data(), x.data(), n_bytes);
    } else {
        ggml_quantize_chunk(tensor->type, x.data(), data.data(), 0, n, tensor->ne[0], nullptr);
    }
    for (size_t at = 0; at < ggml_nbytes(tensor); at += n_bytes) {
        ggml_backend_tensor_set(tensor, data.data(), at, std::min(n_bytes, ggml_nbytes(tensor) - at));
    }
}

int random_int(rng_t & rng, int first, int last) { return std::uniform_int_distribution<int>(first, last)(rng); }

bool chance(rng_t & rng, double p) { return std::bernoulli_distribution(p)(rng); }

float f32_of(int32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}
