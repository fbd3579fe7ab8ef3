#include "llama-kv-cache-minicache.h"

#include "ggml-minicache.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <stdexcept>

// The layers that are not merged, and upstream's Hadamard rotation. Both are what the base class's constructor sets up for one
// type of all layers; here each layer has its own.

// What ggml-cuda's flash attention is compiled for unless it is asked for more (GGML_CUDA_FA_QUANTS). Of all other types it makes
// f16 copies for every token, or leaves the op to the CPU.
static bool upstream_reads(ggml_type type_k, ggml_type type_v) {
    switch (type_k) {
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16:
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_Q4_0:
            return type_k == type_v;
        default:
            return false;
    }
}

// On a device other than the CPU upstream's flash attention is the one to take where it reads the layer's types as they are.
bool llama_kv_cache_minicache::takes_own_op(ggml_backend_dev_t dev, const kv_layer & layer) {
    const ggml_init_params params = { /*.mem_size =*/16 * ggml_tensor_overhead(), /*.mem_buffer =*/nullptr, /*.no_alloc =*/true };
    const ggml_context_ptr owner{ ggml_init(params) };
    ggml_context *         ctx = owner.get();

    const int64_t n_cells = 256;
    const auto    rows    = [&](ggml_type type, int64_t d) {
        return ggml_new_tensor_4d(ctx, type, d, hparams.n_head_kv(layer.il), n_cells, 1);
    };
    ggml_tensor * q    = ggml_new_tensor_4d(ctx, GGML_TYPE_F32, hparams.n_embd_head_k(layer.il), 1, hparams.n_head(layer.il), 1);
    ggml_tensor * k    = rows(layer.k->type, hparams.n_embd_head_k(layer.il));
    ggml_tensor * v    = rows(layer.v->type, hparams.n_embd_head_v(layer.il));
    ggml_tensor * mask = ggml_new_tensor_4d(ctx, GGML_TYPE_F16, n_cells, 1, 1, 1);

    const bool upstreams = ggml_backend_dev_supports_op(dev,
        ggml_flash_attn_ext(ctx, q, ggml_permute(ctx, k, 0, 2, 1, 3), ggml_permute(ctx, v, 0, 2, 1, 3), mask, 1.0f, 0.0f, 0.0f));
    if (upstreams && upstream_reads(k->type, v->type)) {
        return false;
    }
    const ggml_minicache_attn_params attn = { 1.0f, hparams.f_max_alibi_bias, 0.0f, 0, 0, 0, 0 };
    const bool                       ours = ggml_backend_dev_supports_op(
        dev, ggml_minicache_attn(ctx, q, k, v, nullptr, nullptr, nullptr, nullptr, mask, nullptr, nullptr, attn));
    if (!ours && !upstreams) {
        note_fallback(format("%s has no attention over plain layers (head size %d, %s, %s)", ggml_backend_dev_name(dev),
            (int) k->ne[0], ggml_type_name(k->type), ggml_type_name(v->type)));
    }
    return ours;
}

void llama_kv_cache_minicache::add_plain_layers(const minicache_plan * plan, const layer_filter_cb & filter, bool offload) {
    std::map<ggml_backend_buffer_type_t, ggml_context_ptr> contexts;

    for (uint32_t il = 0; il < hparams.n_layer_all; ++il) {
        if (!hparams.has_kv(il) || (filter && !filter(il)) || (il < grouping.layers.size() && grouping.merged(il))) {
            continue;
        }
        const minicache_layer_types types = plan ? plan->types_of(il) : minicache_layer_types{ cache_type_k, cache_type_v };

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

        own_op[il]        = buft == ggml_backend_cpu_buffer_type() || takes_own_op(ggml_backend_buft_get_device(buft), layer);
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

// Upstream's rule: quantized rows are rotated where all layers' heads have one size, a multiple of 64.
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
    attn_rot_k = !disable && quantized_k && n_embd_head_k_all > 0 && n_embd_head_k_all % 64 == 0;
    attn_rot_v = !disable && quantized_v && n_embd_head_v_all > 0 && n_embd_head_v_all % 64 == 0;

    for (int64_t n = 64; (attn_rot_k || attn_rot_v) && n <= std::max(n_embd_head_k_all, n_embd_head_v_all); n *= 2) {
        // Sylvester's construction: the sign is the parity of the bits that row and column share
        std::vector<float> & h = attn_rot_hadamard[n];
        h.resize(n * n);
        for (int64_t i = 0; i < n * n; ++i) {
            int parity = 0;
            for (int64_t bits = (i / n) & (i % n); bits; bits &= bits - 1) {
                parity ^= 1;
            }
            h[i] = (parity ? -1.0f : 1.0f) / sqrtf(n);
        }
    }
}
