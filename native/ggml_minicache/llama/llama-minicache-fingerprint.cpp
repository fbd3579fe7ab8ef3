#include "ggml-backend.h"
#include "llama-minicache-plan.h"
#include "llama-model.h"
#include "minicache-hash.h"

#include <algorithm>
#include <stdexcept>

// Which model a plan was made for.

static const int64_t FINGERPRINT_FLOATS = 256;  // of each norm: reading those of all norms takes next to no time

static uint64_t hash_norm(const llama_model & model, const std::string & name, uint64_t h) {
    const ggml_tensor * x = model.get_tensor(name.c_str());
    if (!x || x->type != GGML_TYPE_F32) {
        return h;
    }
    std::vector<float> data(std::min(FINGERPRINT_FLOATS, ggml_nelements(x)));
    ggml_backend_tensor_get(x, data.data(), 0, data.size() * sizeof(float));
    return minicache_hash(data.data(), data.size() * sizeof(float), h);
}

std::string minicache_fingerprint(const llama_model & model) {
    if (model.hparams.no_alloc) {
        throw std::invalid_argument("the model was loaded without its weights, so it has no fingerprint: load it with them");
    }
    const std::string arch    = model.arch_name();
    const uint32_t    n_layer = model.hparams.n_layer();

    uint64_t h = minicache_hash(arch.data(), arch.size());

    const uint32_t sizes[2] = { n_layer, model.hparams.n_embd };
    h                       = minicache_hash(sizes, sizeof(sizes), h);
    for (uint32_t il = 0; il < n_layer; ++il) {
        for (const char * norm : { "attn_norm", "ffn_norm" }) {
            h = hash_norm(model, "blk." + std::to_string(il) + "." + norm + ".weight", h);
        }
    }
    h = hash_norm(model, "output_norm.weight", h);

    char text[17];
    snprintf(text, sizeof(text), "%016llx", (unsigned long long) h);
    return text;
}

// A model without weights, such as llama.cpp loads to find out how much memory a context would take, can be identified only by its shape.
static std::string identity_of(const llama_model & model) {
    return model.hparams.no_alloc ? "of " + std::to_string(model.hparams.n_layer()) + " layers" : minicache_fingerprint(model);
}

std::string minicache_why_not_plan(const minicache_plan & plan, const llama_model & model) {
    const std::string own       = identity_of(model);
    const bool        is_of_own = model.hparams.no_alloc || plan.fingerprint == own;
    if (!is_of_own || plan.n_layer != (int32_t) model.hparams.n_layer()) {
        return "the plan " + plan.path + " was made for another model (" + plan.fingerprint + ", this one is " + own + ")";
    }
    for (const minicache_plan_group & group : plan.groups) {
        const int32_t first = group.layers[0];
        if (group.shape.n_head_kv != (int64_t) model.hparams.n_head_kv(first) ||
            group.shape.d_k != (int64_t) model.hparams.n_embd_head_k(first) ||
            group.shape.d_v != (int64_t) model.hparams.n_embd_head_v(first)) {
            return "the plan " + plan.path + " does not fit the heads of layer " + std::to_string(first);
        }
    }
    return "";
}

void minicache_check_plan(const minicache_plan & plan, const llama_model & model) {
    const std::string reason = minicache_why_not_plan(plan, model);
    if (!reason.empty()) {
        throw std::invalid_argument(reason + "; make one with `minicache calibrate MODEL`");
    }
}
