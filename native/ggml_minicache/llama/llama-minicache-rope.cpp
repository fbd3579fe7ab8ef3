#include "llama-minicache-rope.h"

#include "llama-cparams.h"
#include "llama-minicache-array-graph.h"
#include "llama-model.h"
#include "minicache-turn.h"

#include <algorithm>
#include <cmath>

// M-RoPE's positions have four sections, each of which turns some of the pairs. For text three of them are the position and the
// fourth is 0, as llama.cpp fills them. A base is taken off all of those three, which is exact whatever they are, as for images,
// because turns add up.
static const int N_SECTION = 4;

static bool has_sections(const llama_hparams & hparams) {
    return hparams.rope_type == LLAMA_ROPE_TYPE_MROPE || hparams.rope_type == LLAMA_ROPE_TYPE_IMROPE;
}

bool minicache_has_rope(const llama_model & model, uint32_t il) {
    const llama_hparams & hp   = model.hparams;
    const uint32_t        step = hp.n_no_rope_layer_step;

    if (hp.rope_type == LLAMA_ROPE_TYPE_NONE || !hp.has_rope(il)) {
        return false;
    }
    switch (model.arch) {
        case LLM_ARCH_LLAMA4:
        case LLM_ARCH_AFMOE:
            return step > 0 && (il + 1) % step != 0;
        case LLM_ARCH_SMOLLM3:
            return (il + 1) % step != 0;
        case LLM_ARCH_SMALLTHINKER:
            return step == hp.n_layer() || il % step != 0;
        case LLM_ARCH_COHERE2:
        case LLM_ARCH_EXAONE_MOE:
        case LLM_ARCH_MUSE_GLIMMER:
            return hp.is_swa(il);
        case LLM_ARCH_COHERE2MOE:
            return hp.is_swa(il) || il < hp.n_layer_dense_lead;
        case LLM_ARCH_EXAONE4:
            return hp.is_swa(il) || hp.swa_type == LLAMA_SWA_TYPE_NONE;
        default:
            return true;
    }
}

std::string minicache_rope_why_not(const llama_model & model) {
    switch (model.hparams.rope_type) {
        case LLAMA_ROPE_TYPE_NONE:
        case LLAMA_ROPE_TYPE_NORM:
        case LLAMA_ROPE_TYPE_NEOX:
        case LLAMA_ROPE_TYPE_MROPE:
        case LLAMA_ROPE_TYPE_IMROPE:
            return "";
        default:
            return "RoPE turns the model's K in a way that is not known here, so its K is not coded";
    }
}

// Turns vectors, in which the first number of each pair is 1, by ggml's own RoPE to the given positions. So YaRN, frequency
// factors and scaling are all taken into account, and none of their formulas is repeated here.
static std::vector<float> turned(const llama_model & model, const llama_cparams & cparams, uint32_t il,
    const minicache_rope_turn & turn, const std::vector<int32_t> & positions) {
    minicache_array_graph graph;
    ggml_context *        ctx = graph.get();

    const llama_hparams & hparams = model.hparams;

    const int32_t n_rot = turn.n_rot;
    const int64_t n_pos = positions.size();

    std::vector<int32_t> sections(positions);
    for (int i = 1; has_sections(hparams) && i < N_SECTION; ++i) {
        sections.insert(sections.end(), positions.begin(), positions.end());
    }
    if (has_sections(hparams)) {
        std::fill(sections.end() - n_pos, sections.end(), 0);
    }

    ggml_tensor * x       = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, n_rot, 1, n_pos);
    ggml_tensor * pos     = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, sections.size());
    ggml_tensor * given   = model.get_rope_factors(cparams, il);
    ggml_tensor * factors = given ? ggml_new_tensor_1d(ctx, GGML_TYPE_F32, given->ne[0]) : nullptr;

    const float freq_base  = model.get_rope_freq_base(cparams, il);
    const float freq_scale = model.get_rope_freq_scale(cparams, il);

    ggml_tensor * y;
    if (has_sections(hparams)) {
        int of_pairs[N_SECTION];
        std::copy(hparams.rope_sections.begin(), hparams.rope_sections.end(), of_pairs);
        y = ggml_rope_multi(ctx, x, pos, factors, n_rot, of_pairs, hparams.rope_type, cparams.n_ctx_orig_yarn, freq_base,
            freq_scale, cparams.yarn_ext_factor, cparams.yarn_attn_factor, cparams.yarn_beta_fast, cparams.yarn_beta_slow);
    } else {
        y = ggml_rope_ext(ctx, x, pos, factors, n_rot, hparams.rope_type, cparams.n_ctx_orig_yarn, freq_base, freq_scale,
            cparams.yarn_ext_factor, cparams.yarn_attn_factor, cparams.yarn_beta_fast, cparams.yarn_beta_slow);
    }

    graph.allocate();

    std::vector<float> data(n_rot * n_pos, 0.0f);
    for (int64_t p = 0; p < n_pos; ++p) {
        for (size_t i = 0; i < turn.freq.size(); ++i) {
            data[p * n_rot + (turn.kind == MINICACHE_ROPE_HALVES ? i : 2 * i)] = 1.0f;
        }
    }
    minicache_set_data(x, data.data());
    minicache_set_data(pos, sections.data());
    if (factors) {
        std::vector<float> f(given->ne[0]);
        ggml_backend_tensor_get(given, f.data(), 0, ggml_nbytes(given));
        minicache_set_data(factors, f.data());
    }

    graph.compute(y, 1, data.data());
    return data;
}

minicache_rope_turn minicache_rope_of(const llama_model & model, const llama_cparams & cparams, uint32_t il) {
    minicache_rope_turn turn;

    if (!minicache_has_rope(model, il)) {
        return turn;
    }
    const bool halves = model.hparams.rope_type != LLAMA_ROPE_TYPE_NORM;

    turn.kind  = halves ? MINICACHE_ROPE_HALVES : MINICACHE_ROPE_NEIGHBOURS;
    turn.n_rot = model.hparams.n_rot(il);
    turn.freq.resize(minicache_turn_pairs_of(turn.kind, turn.n_rot));
    if (model.hparams.no_alloc) {
        return turn;
    }

    std::vector<int32_t> positions;
    for (int32_t p = 1; p <= 1 << 12; p *= 2) {
        positions.push_back(p);
    }
    const std::vector<float> data = turned(model, cparams, il, turn, positions);

    // The angle at a position gives the frequency up to whole turns, which follow from the position half as far.
    const int32_t n_pair = (int32_t) turn.freq.size();
    for (int32_t i = 0; i < n_pair; ++i) {
        for (size_t p = 0; p < positions.size(); ++p) {
            const float * y     = data.data() + p * turn.n_rot;
            const double  angle = atan2((double) y[halves ? i + n_pair : 2 * i + 1], (double) y[halves ? i : 2 * i]);
            const double  turns = std::round((turn.freq[i] * positions[p] - angle) / (2.0 * M_PI));

            turn.freq[i] = (angle + 2.0 * M_PI * turns) / positions[p];
        }
    }
    return turn;
}
