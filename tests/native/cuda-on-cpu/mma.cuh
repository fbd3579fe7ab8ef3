#pragma once

// The matrices of a warp, whose lanes hold their numbers as the PTX manual says for m16n8k16, and their product.

#include "common.cuh"

namespace ggml_cuda_mma {

template <int I_, int J_, typename T>
struct tile {
    static const int I  = I_;
    static const int J  = J_;
    static const int ne = I * J / WARP_SIZE;

    T x[ne] = {};

    static int get_i(int l) {
        const int quad = (int) threadIdx.x / 4;
        if (I == 8) {
            return quad;
        }
        return quad + 8 * (sizeof(T) == sizeof(float) && IS_FLOAT ? l / 2 : l % 2);
    }

    static int get_j(int l) {
        const int in_quad = (int) threadIdx.x % 4;
        if (IS_FLOAT) {
            return 2 * in_quad + l % 2;
        }
        return in_quad + 4 * (I == 8 ? l : l / 2);
    }

  private:
    static const bool IS_FLOAT = std::is_same<T, float>::value;
};

template <int I, int J>
static void load_generic(tile<I, J, half2> & t, const half2 * from, int stride) {
    for (int l = 0; l < t.ne; ++l) {
        t.x[l] = from[t.get_i(l) * stride + t.get_j(l)];
    }
}

static inline void check_matrix(const half2 * from, int stride) {
    GGML_ASSERT((uintptr_t) from % 16 == 0 && stride % 4 == 0);  // as ldmatrix requires
}

template <int I, int J>
static void load_ldmatrix(tile<I, J, half2> & t, const half2 * from, int stride) {
    check_matrix(from, stride);
    load_generic(t, from, stride);
    exchange("load_ldmatrix", "", 0);
}

static inline void load_ldmatrix_trans(tile<16, 8, half2> & t, const half2 * from, int stride) {
    check_matrix(from, stride);
    for (int l = 0; l < t.ne; ++l) {
        const half * x = (const half *) from + t.get_i(l);
        t.x[l]         = { x[(2 * t.get_j(l) + 0) * 2 * stride], x[(2 * t.get_j(l) + 1) * 2 * stride] };
    }
    exchange("load_ldmatrix_trans", "", 0);
}

static inline void mma(tile<16, 8, float> & d, const tile<16, 8, half2> & a, const tile<8, 8, half2> & b) {
    struct fragments {
        tile<16, 8, half2> a;
        tile<8, 8, half2>  b;
    } mine = { a, b };
    static_assert(sizeof(mine) <= 64);
    const uint8_t * all = exchange("mma", &mine, sizeof(mine));

    // the numbers k and k + 1 of row i of a, or of column j of b
    const auto a_at = [&](int i, int k) {
        const int lane = i % 8 * 4 + k / 2 % 4;
        return lane_value<fragments>(all, lane).a.x[i / 8 + 2 * (k / 8)];
    };
    const auto b_at = [&](int j, int k) { return lane_value<fragments>(all, j * 4 + k / 2 % 4).b.x[k / 8]; };

    for (int l = 0; l < d.ne; ++l) {
        float sum = 0.0f;
        for (int k = 0; k < 16; k += 2) {
            const float2 x = __half22float2(a_at(d.get_i(l), k));
            const float2 y = __half22float2(b_at(d.get_j(l), k));
            sum += x.x * y.x + x.y * y.y;
        }
        d.x[l] += sum;
    }
}

}  // namespace ggml_cuda_mma
