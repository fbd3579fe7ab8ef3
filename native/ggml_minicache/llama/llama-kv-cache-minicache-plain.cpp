#include "llama-kv-cache-minicache.h"

#include "llama-impl.h"
#include "llama-minicache-devices.h"
#include "llama-minicache-rotation.h"
#include "llama-model.h"

#include <cstdlib>
#include <map>

// The layers that are not merged, and llama.cpp's Hadamard rotation. The base class's constructor sets up both for one type of
// all layers; here each layer has its own types.

// Whether a layer of these types on a device other than the CPU attends by our op.
bool llama_kv_cache_minicache::takes_own_op(ggml_backend_dev_t dev, int32_t il, const minicache_layer_types & types) {
    const minicache_plain_op op = minicache_plain_op_on(dev, hparams, il, types);
    if (op == MINICACHE_PLAIN_NONE) {
        note_fallback(format("%s has no attention over plain layers (head size %d, %s, %s)", ggml_backend_dev_name(dev),
            (int) hparams.n_embd_head_k(il), ggml_type_name(types.k), ggml_type_name(types.v)));
    }
    return op == MINICACHE_PLAIN_OWN;
}

void llama_kv_cache_minicache::add_plain_layers(const minicache_settings & given, const minicache_layers & kept, bool offload) {
    std::map<ggml_backend_buffer_type_t, ggml_context_ptr> contexts;

    for (const uint32_t il : kept) {
        if (il < grouping.layers.size() && grouping.merged(il)) {
            continue;
        }
        const minicache_layer_types types = given.types_of(il, kept, { cache_type_k, cache_type_v });

        ggml_backend_buffer_type_t buft =
            offload ? ggml_backend_dev_buffer_type(model.dev_layer(il)) : ggml_backend_cpu_buffer_type();
        ggml_context_ptr & ctx = contexts[buft];
        if (!ctx) {
            ctx.reset(ggml_init({ /*.mem_size =*/2 * (1 + n_stream) * hparams.n_layer_all * ggml_tensor_overhead(), nullptr,
                /*.no_alloc =*/true }));
        }

        const auto new_tensor = [&](const char * name, ggml_type type, int64_t row, std::vector<ggml_tensor *> & streams) {
            ggml_tensor * x = ggml_new_tensor_3d(ctx.get(), type, row, get_size(), n_stream);
            ggml_format_name(x, name, il);
            for (uint32_t s = 0; s < n_stream; ++s) {
                streams.push_back(ggml_view_2d(ctx.get(), x, row, get_size(), x->nb[1], s * x->nb[2]));
            }
            return x;
        };
        kv_layer layer = {};
        layer.il       = il;
        layer.k        = new_tensor("cache_k_l%u", types.k, hparams.n_embd_k_gqa(il), layer.k_stream);
        layer.v        = new_tensor("cache_v_l%u", types.v, hparams.n_embd_v_gqa(il), layer.v_stream);

        own_op[il]        = buft == ggml_backend_cpu_buffer_type() || takes_own_op(ggml_backend_buft_get_device(buft), il, types);
        map_layer_ids[il] = layers.size();
        layers.push_back(layer);
    }

    for (auto & [buft, ctx] : contexts) {
        ggml_backend_buffer_t buf = allocate_tensors(ctx.get(), buft, hparams.no_alloc);
        ggml_backend_buffer_clear(buf, 0);
        ctxs_bufs.emplace_back(std::move(ctx), buf);
    }
}

minicache_layer_types llama_kv_cache_minicache::get_plain_types(int32_t il) const {
    const kv_layer & layer = layers[map_layer_ids.at(il)];
    return { layer.k->type, layer.v->type };
}

minicache_layer_types llama_kv_cache_minicache::kept_types(int32_t il) const {
    if (find_group(il) < 0) {
        return get_plain_types(il);
    }
    return is_coded() ? minicache_layer_types{ GGML_TYPE_F32, GGML_TYPE_F32 } :
                        minicache_layer_types{ cache_type_k, cache_type_v };
}

bool llama_kv_cache_minicache::rotates_k(int32_t il) const { return attn_rot_k && ggml_is_quantized(kept_types(il).k); }

bool llama_kv_cache_minicache::rotates_v(int32_t il) const { return attn_rot_v && ggml_is_quantized(kept_types(il).v); }

// As llama.cpp's own constructor does it for one type of all layers: quantized rows are rotated where all layers' heads have one
// size that can be rotated.
void llama_kv_cache_minicache::init_rotation() {
    const char * env     = getenv("LLAMA_ATTN_ROT_DISABLE");
    const bool   disable = env && atoi(env) != 0;

    std::vector<int32_t> kept;
    for (const kv_layer & layer : layers) {
        kept.push_back((int32_t) layer.il);
    }
    for (const minicache_group & group : groups) {
        kept.push_back(group.first());
    }
    const auto common = [&](int32_t size, int32_t one) { return size == 0 || size == one ? one : -1; };

    bool quantized_k = false;
    bool quantized_v = false;
    for (const int32_t il : kept) {
        n_embd_head_k_all = common(n_embd_head_k_all, hparams.n_embd_head_k(il));
        n_embd_head_v_all = common(n_embd_head_v_all, hparams.n_embd_head_v(il));
        quantized_k |= ggml_is_quantized(kept_types(il).k);
        quantized_v |= ggml_is_quantized(kept_types(il).v);
    }
    const minicache_rotation rotation = minicache_rotation_of(n_embd_head_k_all, n_embd_head_v_all);

    attn_rot_k = !disable && quantized_k && rotation.n_k > 0;
    attn_rot_v = !disable && quantized_v && rotation.n_v > 0;
    if (attn_rot_k) {
        attn_rot_hadamard[rotation.n_k] = minicache_hadamard(rotation.n_k);
    }
    if (attn_rot_v) {
        attn_rot_hadamard[rotation.n_v] = minicache_hadamard(rotation.n_v);
    }
}
