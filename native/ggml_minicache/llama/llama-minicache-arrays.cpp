#include "llama-minicache-arrays.h"

#include "ggml-minicache.h"
#include "llama-minicache-error.h"
#include "llama-minicache-plan.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

void minicache_check_arg(bool ok, const std::string & message) {
    if (!ok) {
        throw std::invalid_argument(message);
    }
}

ggml_type minicache_check_type(ggml_type type, int64_t head_size, const char * name) {
    minicache_check_arg(type >= 0 && type < GGML_TYPE_COUNT && ggml_get_type_traits(type)->to_float,
        std::string(name) + " is not a type that rows can be kept in");
    minicache_check_arg(head_size % ggml_blck_size(type) == 0, std::string(name) + " " + ggml_type_name(type) +
                                                                   " needs a head size that is a multiple of " +
                                                                   std::to_string(ggml_blck_size(type)));
    return type;
}

std::vector<float> minicache_joined(const float * k, const float * v, int64_t n_embd_k, int64_t n_embd_v, int64_t n_tokens) {
    std::vector<float> kv;
    kv.reserve((n_embd_k + n_embd_v) * n_tokens);
    for (int64_t i = 0; i < n_tokens; ++i) {
        kv.insert(kv.end(), k + i * n_embd_k, k + (i + 1) * n_embd_k);
        kv.insert(kv.end(), v + i * n_embd_v, v + (i + 1) * n_embd_v);
    }
    return kv;
}

//
// codecs
//

static std::vector<minicache_code_layout> layouts_of(
    const int32_t * units, int32_t n_head_kv, int32_t n_layer, const std::string & name) {
    minicache_check_arg(units, name + " must not be NULL");
    std::vector<minicache_code_layout> layouts;
    minicache_check_arg(!minicache_make_layouts(units, n_head_kv, n_layer, layouts), name + " must be from 0 to 255");
    return layouts;
}

static int16_t check_size(int32_t n, int32_t least, const char * name) {
    minicache_check_arg(n >= least && n <= INT16_MAX, std::string(name) + " must be from " + std::to_string(least) + " to 32767");
    return (int16_t) n;
}

static minicache_array_codec array_codec_of(const llama_minicache_codec & given) {
    minicache_check_arg(given.n_layer >= 1 && given.n_layer <= MINICACHE_CODE_LAYERS,
        "n_layer must be from 1 to " + std::to_string(MINICACHE_CODE_LAYERS));
    minicache_check_arg(given.rope >= MINICACHE_ROPE_NONE && given.rope <= MINICACHE_ROPE_HALVES, "rope must be 0, 1 or 2");

    minicache_array_codec  codec = {};
    minicache_code_shape & shape = codec.shape;
    shape.d_k                    = check_size(given.head_size_k, 1, "head_size_k");
    shape.d_v                    = check_size(given.head_size_v, 1, "head_size_v");
    shape.n_head_kv              = check_size(given.n_head_kv, 1, "n_head_kv");
    shape.n_layer                = (int16_t) given.n_layer;
    shape.n_rot                  = check_size(given.n_rot, 0, "n_rot");
    shape.rope                   = (int16_t) given.rope;
    minicache_check_arg(shape.n_rot % 2 == 0 && shape.n_rot <= shape.d_k, "n_rot must be even, and no more than head_size_k");

    const minicache_group_layouts layouts = {
        layouts_of(given.units_k, given.n_head_kv, given.n_layer, "units_k"),
        layouts_of(given.units_v, given.n_head_kv, given.n_layer, "units_v"),
    };
    codec.heads = minicache_set_heads(shape, layouts);

    const minicache_codec_offsets o = minicache_codec_offsets_of(shape);
    minicache_check_arg(given.data && given.size == o.size - o.freq,
        "the codec has " + std::to_string(given.size) + " bytes; one of this shape has " + std::to_string(o.size - o.freq));
    codec.data.resize(o.size);
    memcpy(codec.data.data() + o.heads, codec.heads.data(), o.freq - o.heads);
    memcpy(codec.data.data() + o.freq, given.data, given.size);
    return codec;
}

minicache_array_codec minicache_checked_codec(const llama_minicache_codec * codec) {
    minicache_check_arg(codec, "codec must not be NULL");
    minicache_array_codec checked = array_codec_of(*codec);
    const std::string     flaw    = minicache_codec_flaw(checked.shape, checked.data.data());
    minicache_check_arg(flaw.empty(), "the codec has " + flaw);
    return checked;
}

void minicache_check_side(int32_t side, const minicache_code_shape & shape) {
    const int n = shape.n_layer;
    minicache_check_arg(side >= 0 && side < n, "side must be from 0 to " + std::to_string(n - 1));
}

//
// merge
//

static void merge(const float * x_a, const float * x_b, int64_t n_tokens, int64_t n_head_kv, int64_t head_size, float t,
    float * direction, float * mag_a, float * mag_b, float * distance) {
    minicache_check_arg(x_a && x_b && direction && mag_a && mag_b && distance, "arrays must not be NULL");
    minicache_check_arg(n_tokens > 0 && n_head_kv > 0 && head_size > 0, "arrays must not be empty");
    minicache_check_arg(t >= 0.0f && t <= 1.0f, "t is out of range: it must be from 0 to 1");

    minicache_array_graph graph;

    const int64_t n_embd = n_head_kv * head_size;

    ggml_tensor * a = ggml_new_tensor_2d(graph.get(), GGML_TYPE_F32, n_embd, n_tokens);
    ggml_tensor * b = ggml_new_tensor_2d(graph.get(), GGML_TYPE_F32, n_embd, n_tokens);
    ggml_tensor * r = ggml_minicache_merge(graph.get(), a, b, { (int32_t) head_size, 0, (int32_t) n_head_kv, t, 0 });
    graph.allocate();

    minicache_set_data(a, x_a);
    minicache_set_data(b, x_b);

    std::vector<float> merged(ggml_nelements(r));
    graph.compute(r, 1, merged.data());

    for (int64_t i = 0; i < n_tokens; ++i) {
        const float * row = merged.data() + i * r->ne[0];
        std::copy(row, row + n_embd, direction + i * n_embd);

        row += n_embd;
        std::copy(row, row + n_head_kv, mag_a + i * n_head_kv);
        std::copy(row + n_head_kv, row + 2 * n_head_kv, mag_b + i * n_head_kv);
        std::copy(row + 4 * n_head_kv, row + 5 * n_head_kv, distance + i * n_head_kv);
    }
}

bool llama_minicache_merge(const float * x_a, const float * x_b, int64_t n_tokens, int64_t n_head_kv, int64_t head_size, float t,
    float * direction, float * mag_a, float * mag_b, float * distance) {
    return minicache_guarded([&] { merge(x_a, x_b, n_tokens, n_head_kv, head_size, t, direction, mag_a, mag_b, distance); });
}
