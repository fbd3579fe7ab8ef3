#include "ggml-minicache.h"
#include "llama-minicache-arrays.h"
#include "llama-minicache-error.h"
#include "minicache-turn.h"

#include <algorithm>
#include <cstring>
#include <numeric>

// Encoding and decoding of plain arrays.

static void encode(const llama_minicache_codec * codec, const float * k, const float * v, const int32_t * bases, int64_t n_tokens,
    int32_t n_threads, bool reference, uint8_t * code_k, uint8_t * code_v, float * distance_k, float * distance_v) {
    const minicache_array_codec  checked = minicache_checked_codec(codec);
    const minicache_code_shape & shape   = checked.shape;
    minicache_check_arg(k && v && bases && code_k && code_v && distance_k && distance_v, "arrays must not be NULL");
    minicache_check_arg(n_tokens > 0, "arrays must not be empty");

    minicache_array_graph graph;
    ggml_context *        ctx = graph.get();

    const int64_t n_head   = shape.n_head_kv;
    const int64_t n_embd_k = shape.d_k * n_head;
    const int64_t n_embd_v = shape.d_v * n_head;

    ggml_tensor * kv[MINICACHE_CODE_LAYERS] = {};
    for (int side = 0; side < codec->n_layer; ++side) {
        kv[side] = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n_embd_k + n_embd_v, n_tokens);
    }
    ggml_tensor * data   = ggml_new_tensor_1d(ctx, GGML_TYPE_I8, (int64_t) checked.data.size());
    ggml_tensor * rows_k = ggml_new_tensor_2d(ctx, GGML_TYPE_I8, shape.bytes_k, n_tokens);
    ggml_tensor * rows_v = ggml_new_tensor_2d(ctx, GGML_TYPE_I8, shape.bytes_v, n_tokens);
    ggml_tensor * rows   = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, n_tokens);
    ggml_tensor * base   = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_tokens);
    ggml_tensor * r      = ggml_minicache_encode(ctx, kv, data, rows_k, rows_v, rows, base, shape);
    if (reference) {
        ggml_minicache_encode_set_reference(r);
    }
    graph.allocate();

    for (int side = 0; side < codec->n_layer; ++side) {
        const float * k_side = k + side * n_tokens * n_embd_k;
        const float * v_side = v + side * n_tokens * n_embd_v;
        minicache_set_data(kv[side], minicache_joined(k_side, v_side, n_embd_k, n_embd_v, n_tokens).data());
    }
    minicache_set_data(data, checked.data.data());
    minicache_set_data(base, bases);

    std::vector<int64_t> row_numbers(n_tokens);
    std::iota(row_numbers.begin(), row_numbers.end(), 0);
    minicache_set_data(rows, row_numbers.data());

    std::vector<float> distances(ggml_nelements(r));
    graph.compute(r, n_threads, distances.data());

    ggml_backend_tensor_get(rows_k, code_k, 0, ggml_nbytes(rows_k));
    ggml_backend_tensor_get(rows_v, code_v, 0, ggml_nbytes(rows_v));
    for (int64_t i = 0; i < n_tokens; ++i) {
        const float * row = distances.data() + 2 * n_head * i;
        std::copy(row, row + n_head, distance_k + i * n_head);
        std::copy(row + n_head, row + 2 * n_head, distance_v + i * n_head);
    }
}

bool llama_minicache_encode(const llama_minicache_codec * codec, const float * k, const float * v, const int32_t * bases,
    int64_t n_tokens, int32_t n_threads, bool reference, uint8_t * code_k, uint8_t * code_v, float * distance_k,
    float * distance_v) {
    return minicache_guarded(
        [&] { encode(codec, k, v, bases, n_tokens, n_threads, reference, code_k, code_v, distance_k, distance_v); });
}

// Decodes one layer's K, or V, of all KV heads of a token.
static void decode_token(const minicache_array_codec & codec, bool is_v, int side, const uint8_t * rows, float * out) {
    const minicache_code_shape &  shape = codec.shape;
    const minicache_codec_offsets o     = minicache_codec_offsets_of(shape);

    const int64_t   n    = shape.n_layer;
    const int64_t   d    = is_v ? shape.d_v : shape.d_k;
    const uint8_t * data = codec.data.data();

    for (int64_t h = 0; h < shape.n_head_kv; ++h) {
        const minicache_head_layout & head = codec.heads[is_v * shape.n_head_kv + h];
        const int64_t                 r    = minicache_code_size(head.layout);
        const uint8_t *               row  = rows + head.row;
        if (r == 0) {
            std::fill_n(out + h * d, d, 0.0f);
            continue;
        }

        std::vector<float>       coefficients(r);
        std::vector<ggml_fp16_t> decoder(d * r);
        minicache_code_coefficients(head.layout, row, coefficients.data());

        float mag[2];
        memcpy(mag, data + o.mag + ((h * 2 + is_v) * n + side) * sizeof(mag), sizeof(mag));
        memcpy(decoder.data(), data + (is_v ? o.dec_v : o.dec_k) + (n * head.coef + side * r) * d * sizeof(ggml_fp16_t),
            decoder.size() * sizeof(ggml_fp16_t));

        const double m = minicache_code_mag_value(row[side], mag[0], mag[1]);
        for (int64_t i = 0; i < d; ++i) {
            double sum = 0.0;
            for (int64_t c = 0; c < r; ++c) {
                sum += (double) ggml_fp16_to_fp32(decoder[i * r + c]) * coefficients[c];
            }
            out[h * d + i] = (float) (m * sum);
        }
    }
}

// Turns a token's K by RoPE at a position: k [n_head_kv][d_k].
static void turn_token(const minicache_array_codec & codec, int32_t position, float * k) {
    const minicache_code_shape & shape = codec.shape;
    const int                    n     = minicache_turn_pairs(shape);

    std::vector<float>  freq(n);
    std::vector<double> cosines(n);
    std::vector<double> sines(n);
    if (n > 0) {
        memcpy(freq.data(), codec.data.data() + minicache_codec_offsets_of(shape).freq, n * sizeof(float));
    }
    minicache_turn_angles_at(position, freq.data(), n, cosines.data(), sines.data());

    for (int h = 0; h < shape.n_head_kv; ++h) {
        std::vector<double> x(k + h * shape.d_k, k + (h + 1) * shape.d_k);
        minicache_turn(shape, cosines.data(), sines.data(), false, x.data());
        std::copy(x.begin(), x.end(), k + h * shape.d_k);
    }
}

bool llama_minicache_decode(const llama_minicache_codec * codec, const uint8_t * code_k, const uint8_t * code_v,
    const int32_t * bases, int64_t n_tokens, int32_t side, float * k, float * v) {
    return minicache_guarded([&] {
        const minicache_array_codec  checked = minicache_checked_codec(codec);
        const minicache_code_shape & shape   = checked.shape;
        minicache_check_arg(code_k && code_v && bases && k && v, "arrays must not be NULL");
        minicache_check_side(side, shape);

        for (int64_t i = 0; i < n_tokens; ++i) {
            float * k_i = k + i * shape.n_head_kv * shape.d_k;
            float * v_i = v + i * shape.n_head_kv * shape.d_v;
            decode_token(checked, false, side, code_k + i * shape.bytes_k, k_i);
            turn_token(checked, bases[i], k_i);
            decode_token(checked, true, side, code_v + i * shape.bytes_v, v_i);
        }
    });
}
