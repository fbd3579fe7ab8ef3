#include "test-codec.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cmath>

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

code_units units_of_head(const code_units & first, int head) {
    code_units units = first;
    if (head % 2 != 0) {
        std::reverse(units.begin(), units.end());
        for (int & n : units) {
            n /= 2;
        }
    } else {
        std::rotate(units.begin(), units.begin() + head % 7, units.end());
    }
    return units;
}

int codec_part::row_bytes(int head) const {
    int n_bit = 0;
    for (const int width : heads[head].widths) {
        n_bit += width;
    }
    return mag_bytes() + n_bit / 8;
}

int codec_part::row_begin(int head) const {
    int n = 0;
    for (int h = 0; h < head; ++h) {
        n += row_bytes(h);
    }
    return n;
}

// The n bits from bit `first` on, lowest first.
static int bits_of(const uint8_t * bytes, int first, int n) {
    int x = 0;
    for (int i = 0; i < n; ++i) {
        x |= (bytes[(first + i) / 8] >> (first + i) % 8 & 1) << i;
    }
    return x;
}

std::vector<int> codec_part::levels(int head, const uint8_t * row) const {
    std::vector<int> result;

    int bit = 8 * mag_bytes();
    for (int i = 0; i < 7; ++i) {
        const int n     = 16 * heads[head].units[i];
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
    const head_codec &     own = heads[head];
    const std::vector<int> l   = levels(head, row);

    std::vector<double> u(d, 0.0);
    for (int i = 0; i < d; ++i) {
        const float * x = own.dec.data() + ((size_t) side * d + i) * own.r();
        for (int c = 0; c < own.r(); ++c) {
            u[i] += x[c] * (l[c] - own.level_half(c));
        }
    }
    return u;
}

double codec_part::magnitude(int head, int side, const uint8_t * row) const {
    const float * m = heads[head].mag.data() + side * 2;
    return row[side] == 0 ? 0.0 : exp(m[0] + (row[side] - 1) * (double) m[1]);
}

static codec_part new_part(const code_units & units, int d, int n_head_kv, const codec_shape & s) {
    codec_part part;
    part.d       = d;
    part.n_layer = s.n_layer;
    for (int h = 0; h < n_head_kv; ++h) {
        head_codec head;
        head.units = s.alike ? units : units_of_head(units, h);
        for (int i = 0; i < 7; ++i) {
            head.widths.insert(head.widths.end(), 16 * head.units[i], WIDTHS[i]);
        }
        part.heads.push_back(head);
    }
    return part;
}

static std::vector<minicache_code_layout> layouts_of(const codec_part & part) {
    std::vector<minicache_code_layout> layouts;
    for (const head_codec & head : part.heads) {
        layouts.push_back(layout_of(head.units, part.n_layer));
    }
    return layouts;
}

test_codec::test_codec(const codec_shape & s, int n_head_kv) :
    k(new_part(s.units_k, s.d_k, n_head_kv, s)), v(new_part(s.units_v, s.d_v, n_head_kv, s)), shape{} {
    shape.d_k       = (int16_t) s.d_k;
    shape.d_v       = (int16_t) s.d_v;
    shape.n_head_kv = (int16_t) n_head_kv;
    shape.n_layer   = (int16_t) s.n_layer;
    shape.n_rot     = (int16_t) (s.rope == MINICACHE_ROPE_NONE ? 0 : s.n_rot);
    shape.rope      = (int16_t) s.rope;
    layouts         = minicache_set_heads(shape, { layouts_of(k), layouts_of(v) });
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

static void draw_head(head_codec & head, const codec_part & part, int h, rng_t & rng, decoders how) {
    const int rows = part.n_layer * part.d;
    const int r    = head.r();

    std::vector<float>  gaussian = random_floats(rng, (size_t) rows * r, 1.0f / sqrtf((float) rows));
    std::vector<double> x(gaussian.begin(), gaussian.end());
    if (how == ORTHONORMAL) {
        orthonormalize(x, rows, r);
    }
    for (int i = 0; i < rows; ++i) {
        head.weight.push_back(0.5f + (float) random_int(rng, 0, 100) / 100.0f);
    }
    for (int i = 0; i < rows; ++i) {
        for (int c = 0; c < r; ++c) {
            // in any direction, weighted unit vectors have numbers of about sqrt(1/d): four standard deviations fit
            const double step = 8.0 / sqrt(part.d) / (1 << head.widths[c]);
            const double y    = x[i * r + c] * step / sqrt(head.weight[i]);
            head.dec.push_back(ggml_fp16_to_fp32(ggml_fp32_to_fp16((float) y)));
            if (i == 0) {
                head.gain.push_back((float) (1.0 / (step * step)));
            }
        }
    }
    for (int side = 0; side < part.n_layer; ++side) {
        head.mag.push_back(logf(0.1f + 0.1f * (float) h));
        head.mag.push_back(0.023f + 0.005f * (float) side);  // up to 34, beyond the length of vectors of 512 numbers
    }
}

void test_codec::draw(rng_t & rng, decoders how) {
    for (codec_part * part : { &k, &v }) {
        for (size_t h = 0; h < part->heads.size(); ++h) {
            draw_head(part->heads[h], *part, (int) h, rng, how);
        }
    }
}

void test_codec::set(ggml_tensor * tensor) const {
    std::vector<float> words = freq;

    const auto append = [&](const std::vector<float> & x) { words.insert(words.end(), x.begin(), x.end()); };
    for (size_t h = 0; h < k.heads.size(); ++h) {
        append(k.heads[h].mag);
        append(v.heads[h].mag);
    }
    std::vector<float> decoders;
    for (const codec_part * part : { &k, &v }) {
        for (const head_codec & head : part->heads) {
            append(head.weight);
        }
        for (const head_codec & head : part->heads) {
            append(head.gain);
        }
        for (const head_codec & head : part->heads) {
            decoders.insert(decoders.end(), head.dec.begin(), head.dec.end());
        }
    }
    std::vector<ggml_fp16_t> halves(decoders.size());
    ggml_fp32_to_fp16_row(decoders.data(), halves.data(), (int64_t) decoders.size());

    size_t     at    = 0;
    const auto write = [&](const void * data, size_t n) {
        ggml_backend_tensor_set(tensor, data, at, n);
        at += n;
    };
    write(layouts.data(), layouts.size() * sizeof(layouts[0]));
    write(words.data(), words.size() * sizeof(float));
    write(halves.data(), halves.size() * sizeof(ggml_fp16_t));
    GGML_ASSERT(at == ggml_nbytes(tensor));
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
