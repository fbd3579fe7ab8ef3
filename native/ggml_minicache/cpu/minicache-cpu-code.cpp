#include "minicache-cpu-code.h"

#include "minicache-cpu-simd.h"

#include <cstring>

static minicache_code_head code_head(const minicache_code_layout & layout, int64_t d, int64_t head_kv, const void * codec,
    int64_t mag, int64_t weight, int64_t gain, int64_t dec) {
    const auto *  base = (const char *) codec;
    const int64_t r    = minicache_code_size(layout);

    minicache_code_head head;
    head.layout = layout;
    head.d      = d;
    head.r      = r;
    head.mag    = (const float *) (base + mag) + head_kv * 8;
    head.weight = (const float *) (base + weight) + head_kv * 2 * d;
    head.gain   = (const float *) (base + gain) + head_kv * r;
    head.dec    = (const ggml_fp16_t *) (base + dec) + head_kv * 2 * d * r;
    return head;
}

minicache_code_head minicache_code_head_k(const minicache_code_shape & shape, const void * codec, int64_t head_kv) {
    const minicache_codec_offsets o = minicache_codec_offsets_of(shape);
    return code_head(shape.layout_k, shape.d_k, head_kv, codec, o.mag, o.weight_k, o.gain_k, o.dec_k);
}

minicache_code_head minicache_code_head_v(const minicache_code_shape & shape, const void * codec, int64_t head_kv) {
    const minicache_codec_offsets o = minicache_codec_offsets_of(shape);

    minicache_code_head head = code_head(shape.layout_v, shape.d_v, head_kv, codec, o.mag, o.weight_v, o.gain_v, o.dec_v);
    head.mag += 4;  // behind K's
    return head;
}

//
// the bytes of a row
//

void minicache_code_write(const minicache_code_layout & layout, const uint8_t * levels, uint8_t * row) {
    memset(row + MINICACHE_CODE_MAG_BYTES, 0, minicache_code_bytes(layout) - MINICACHE_CODE_MAG_BYTES);

    uint8_t * plane = row + MINICACHE_CODE_MAG_BYTES;
    for (int i = 0; i < MINICACHE_CODE_WIDTHS; ++i) {
        const int n     = MINICACHE_CODE_UNIT * layout.n_unit[i];
        const int width = minicache_code_width(i);
        const int upper = minicache_code_upper(width);
        const int lower = width - upper;

        for (int j = 0; j < n; ++j) {
            minicache_code_put(plane, upper, j, levels[j] >> lower);
        }
        plane += n / 8 * upper;
        for (int j = 0; lower > 0 && j < n; ++j) {
            minicache_code_put(plane, lower, j, levels[j] & ((1 << lower) - 1));
        }
        plane += n / 8 * lower;
        levels += n;
    }
}

void minicache_code_read_ref(const minicache_code_layout & layout, const uint8_t * row, float * out) {
    const uint8_t * plane = row + MINICACHE_CODE_MAG_BYTES;
    for (int i = 0; i < MINICACHE_CODE_WIDTHS; ++i) {
        const int n     = MINICACHE_CODE_UNIT * layout.n_unit[i];
        const int width = minicache_code_width(i);
        const int upper = minicache_code_upper(width);
        const int lower = width - upper;

        for (int j = 0; j < n; ++j) {
            int level = minicache_code_get(plane, upper, j);
            if (lower > 0) {
                level = level << lower | minicache_code_get(plane + n / 8 * upper, lower, j);
            }
            out[j] = (float) level - 0.5f * (float) ((1 << width) - 1);
        }
        plane += n / 8 * width;
        out += n;
    }
}

void minicache_code_read(const minicache_code_layout & layout, const uint8_t * row, float * out) {
    minicache_code_read_ref(layout, row, out);
}
