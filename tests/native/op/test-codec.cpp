#include "test-codec.h"

#include "ggml-backend.h"

#include <cmath>
#include <cstring>

static const int WIDTHS[]    = { 8, 6, 5, 4, 3, 2, 1 };
static const int PLANES[][2] = {
    { 8, 0 },
    { 4, 2 },
    { 4, 1 },
    { 4, 0 },
    { 2, 1 },
    { 2, 0 },
    { 1, 0 },
};

std::string units_name(const code_units & units) {
    std::string name;
    for (const int n : units) {
        name += (name.empty() ? "" : ".") + std::to_string(n);
    }
    return name;
}

minicache_code_layout layout_of(const code_units & units, int n_layer) {
    minicache_code_layout layout = {};
    for (int i = 0; i < 7; ++i) {
        layout.n_unit[i] = (uint8_t) units[i];
    }
    layout.n_layer = (uint8_t) n_layer;
    return layout;
}

int codec_part::row_bytes() const {
    int n_bit = 0;
    for (const int width : widths) {
        n_bit += width;
    }
    return mag_bytes() + n_bit / 8;
}

// The n bits from bit `first` on, lowest first.
static int bits_of(const uint8_t * bytes, int first, int n) {
    int x = 0;
    for (int i = 0; i < n; ++i) {
        x |= (bytes[(first + i) / 8] >> (first + i) % 8 & 1) << i;
    }
    return x;
}

std::vector<int> codec_part::levels(const uint8_t * row) const {
    std::vector<int> result;

    int bit = 8 * mag_bytes();
    for (int i = 0; i < 7; ++i) {
        const int n     = 16 * units[i];
        const int upper = PLANES[i][0];
        const int lower = PLANES[i][1];
        for (int j = 0; j < n; ++j) {
            result.push_back((bits_of(row, bit + j * upper, upper) << lower) + bits_of(row, bit + n * upper + j * lower, lower));
        }
        bit += n * (upper + lower);
    }
    return result;
}

std::vector<double> codec_part::decode(int head, int side, const uint8_t * row) const {
    const std::vector<int> l = levels(row);

    std::vector<double> u(d, 0.0);
    for (int i = 0; i < d; ++i) {
        const float * x = dec.data() + (((size_t) head * n_layer + side) * d + i) * r();
        for (int c = 0; c < r(); ++c) {
            u[i] += x[c] * (l[c] - level_half(c));
        }
    }
    return u;
}

double codec_part::magnitude(int head, int side, const uint8_t * row) const {
    const float * m = mag.data() + (head * n_layer + side) * 2;
    return row[side] == 0 ? 0.0 : exp(m[0] + (row[side] - 1) * (double) m[1]);
}

static codec_part new_part(const code_units & units, int d, int n_head_kv, int n_layer) {
    codec_part part;
    part.units     = units;
    part.d         = d;
    part.n_head_kv = n_head_kv;
    part.n_layer   = n_layer;
    for (int i = 0; i < 7; ++i) {
        part.widths.insert(part.widths.end(), 16 * units[i], WIDTHS[i]);
    }
    return part;
}

test_codec::test_codec(const codec_shape & s, int n_head_kv) :
    k(new_part(s.units_k, s.d_k, n_head_kv, s.n_layer)), v(new_part(s.units_v, s.d_v, n_head_kv, s.n_layer)), shape{} {
    shape.layout_k  = layout_of(s.units_k, s.n_layer);
    shape.layout_v  = layout_of(s.units_v, s.n_layer);
    shape.d_k       = (int16_t) s.d_k;
    shape.d_v       = (int16_t) s.d_v;
    shape.n_head_kv = (int16_t) n_head_kv;
    shape.n_rot     = (int16_t) (s.rope == MINICACHE_ROPE_NONE ? 0 : s.n_rot);
    shape.rope      = s.rope;
    for (int i = 0; i < shape.n_rot / 2; ++i) {
        freq.push_back((float) pow(10000.0, -2.0 * i / shape.n_rot));
    }
}

// Gram-Schmidt on the columns, for as many of them as the rows allow.
static void orthonormalize(std::vector<double> & x, int rows, int columns) {
    for (int c = 0; c < columns; ++c) {
        for (int b = 0; b <= c && c < rows; ++b) {
            double product = 0.0;
            for (int i = 0; i < rows; ++i) {
                product += x[i * columns + b] * x[i * columns + c];
            }
            for (int i = 0; i < rows; ++i) {
                double & y = x[i * columns + c];
                y          = b < c ? y - product * x[i * columns + b] : y / sqrt(product);
            }
        }
    }
}

static void draw_part(codec_part & part, rng_t & rng, decoders how) {
    const int rows = part.n_layer * part.d;
    const int r    = part.r();

    for (int h = 0; h < part.n_head_kv; ++h) {
        std::vector<float>  gaussian = random_floats(rng, (size_t) rows * r, 1.0f / sqrtf((float) rows));
        std::vector<double> x(gaussian.begin(), gaussian.end());
        if (how == ORTHONORMAL) {
            orthonormalize(x, rows, r);
        }
        std::vector<float> weight(rows);
        for (float & w : weight) {
            w = 0.5f + (float) random_int(rng, 0, 100) / 100.0f;
        }
        for (int i = 0; i < rows; ++i) {
            for (int c = 0; c < r; ++c) {
                // in any direction, weighted unit vectors have numbers of about sqrt(1/d): four standard deviations fit
                const double step = 8.0 / sqrt(part.d) / (1 << part.widths[c]);
                const double y    = x[i * r + c] * step / sqrt(weight[i]);
                part.dec.push_back(ggml_fp16_to_fp32(ggml_fp32_to_fp16((float) y)));
                if (i == 0) {
                    part.gain.push_back((float) (1.0 / (step * step)));
                }
            }
        }
        part.weight.insert(part.weight.end(), weight.begin(), weight.end());
        for (int side = 0; side < part.n_layer; ++side) {
            part.mag.push_back(logf(0.1f + 0.1f * (float) h));
            part.mag.push_back(0.02f + 0.005f * (float) side);
        }
    }
}

void test_codec::draw(rng_t & rng, decoders how) {
    draw_part(k, rng, how);
    draw_part(v, rng, how);
}

void test_codec::set(ggml_tensor * tensor) const {
    std::vector<float> words = freq;
    for (int h = 0; h < k.n_head_kv; ++h) {
        for (const codec_part * part : { &k, &v }) {
            const int n = 2 * part->n_layer;
            words.insert(words.end(), part->mag.begin() + n * h, part->mag.begin() + n * (h + 1));
        }
    }
    for (const codec_part * part : { &k, &v }) {
        words.insert(words.end(), part->weight.begin(), part->weight.end());
        words.insert(words.end(), part->gain.begin(), part->gain.end());
    }
    std::vector<ggml_fp16_t> halves(k.dec.size() + v.dec.size());
    ggml_fp32_to_fp16_row(k.dec.data(), halves.data(), (int64_t) k.dec.size());
    ggml_fp32_to_fp16_row(v.dec.data(), halves.data() + k.dec.size(), (int64_t) v.dec.size());

    const size_t n_words = words.size() * sizeof(float);
    GGML_ASSERT(n_words + halves.size() * sizeof(ggml_fp16_t) == ggml_nbytes(tensor));
    ggml_backend_tensor_set(tensor, words.data(), 0, n_words);
    ggml_backend_tensor_set(tensor, halves.data(), n_words, halves.size() * sizeof(ggml_fp16_t));
}

void test_codec::turn(double position, std::vector<double> & x) const {
    const int n = (int) freq.size();
    for (int i = 0; i < n; ++i) {
        double & x0 = x[shape.rope == MINICACHE_ROPE_NEIGHBOURS ? 2 * i : i];
        double & x1 = x[shape.rope == MINICACHE_ROPE_NEIGHBOURS ? 2 * i + 1 : i + n];

        const double length = hypot(x0, x1);
        const double angle  = atan2(x1, x0) + position * freq[i];
        x0                  = length * cos(angle);
        x1                  = length * sin(angle);
    }
}
