#include "llama-minicache-groups.h"
#include "llama-minicache-error.h"
#include "llama-minicache-rope.h"
#include "llama-minicache.h"
#include "llama-model.h"

#include <algorithm>
#include <stdexcept>

// What each layer of a model keeps, for callers that size a cache before there is a context.

bool llama_minicache_get_layer_shape(const llama_model * model, int32_t il, llama_minicache_layer_shape * shape) {
    return minicache_guarded([&] {
        if (!model || !shape) {
            throw std::invalid_argument("model and shape must not be NULL");
        }
        const llama_hparams & hp = model->hparams;
        if (il < 0 || il >= (int32_t) hp.n_layer()) {
            throw std::invalid_argument("layer " + std::to_string(il) + " is out of range: the model has layers 0 to " +
                                        std::to_string(hp.n_layer() - 1));
        }
        *shape      = {};
        shape->kind = minicache_kind_of(*model, il);
        if (shape->kind == LLAMA_MINICACHE_LAYER_PLAIN || shape->kind == LLAMA_MINICACHE_LAYER_WINDOW) {
            shape->n_head_kv   = hp.n_head_kv(il);
            shape->head_size_k = hp.n_embd_head_k(il);
            shape->head_size_v = hp.n_embd_head_v(il);
            shape->n_rot       = minicache_has_rope(*model, il) ? hp.n_rot(il) : 0;
        }
        if (hp.is_recr(il)) {
            shape->bytes_state = sizeof(float) * ((uint64_t) hp.n_embd_r() + hp.n_embd_s());
        }
    });
}

bool llama_minicache_why_not(const llama_model * model, char * reason, size_t size) {
    return minicache_guarded([&] {
        if (!model || !reason || size == 0) {
            throw std::invalid_argument("model and reason must not be NULL, and size not 0");
        }
        const std::string text              = minicache_why_not_model(*model);
        reason[text.copy(reason, size - 1)] = '\0';
    });
}
