#include "llama-minicache-devices.h"

#include "ggml-cpp.h"
#include "ggml-minicache.h"
#include "llama-hparams.h"
#include "llama-kv-cache-minicache.h"

// Devices are asked about ops on tensors that are never allocated. Those have the shapes of the graph's own but for the numbers
// of cells and tokens, which no backend looks at.

static const int64_t N_CELLS = 256;

static ggml_context_ptr make_context(size_t n_tensors) {
    return ggml_context_ptr{ ggml_init(
        { /*.mem_size =*/n_tensors * ggml_tensor_overhead(), /*.mem_buffer =*/nullptr, /*.no_alloc =*/true }) };
}

//
// merged groups
//

// the tensors and ops of one group on a device
struct group_ops {
    group_ops(
        ggml_backend_dev_t dev, const llama_hparams & hparams, const minicache_group & group, const minicache_storage & storage) :
        dev(dev), hparams(hparams), group(group), storage(storage), owner(make_context(64)), ctx(owner.get()),
        n_slot(storage.window + ggml_minicache_n_slot(N_CELLS, storage.block)) {}

    ggml_backend_dev_t        dev;
    const llama_hparams &     hparams;
    const minicache_group &   group;
    const minicache_storage & storage;
    ggml_context_ptr          owner;
    ggml_context *            ctx;
    const int64_t             n_slot;
    std::string               missing;

    ggml_tensor * look(const char * name, ggml_tensor * op) {
        if (!ggml_backend_dev_supports_op(dev, op)) {
            missing += (missing.empty() ? "" : ", ") + std::string(name);
        }
        return op;
    }

    ggml_tensor * rows(ggml_type type, int64_t row, int64_t n) {
        return ggml_new_tensor_4d(ctx, type, row, group.n_head_kv, n, 1);
    }

    // one layer's pool as the attention reads it
    ggml_tensor * pool(ggml_type cache_type, int64_t d) {
        const ggml_type type = storage.pool_type == GGML_TYPE_COUNT ? cache_type : storage.pool_type;
        return n_slot > 0 ? rows(type, d, n_slot) : nullptr;
    }

    // all layers' pools as they are written
    ggml_tensor * pools(const ggml_tensor * pool) {
        return pool ? ggml_new_tensor_4d(ctx, pool->type, pool->ne[0] * pool->ne[1], n_slot, 1, group.n_layer()) : nullptr;
    }

    ggml_tensor * flat(ggml_tensor * x) { return ggml_reshape_2d(ctx, x, x->ne[0] * x->ne[1], x->ne[2]); }

    void look_at_all() {
        const auto    d_k     = (int32_t) group.d_k;
        const auto    d_v     = (int32_t) group.d_v;
        const auto    n_head  = (int32_t) group.n_head_kv;
        const int64_t n_index = storage.coded ? 2 : 1;

        ggml_tensor * q     = ggml_new_tensor_4d(ctx, GGML_TYPE_F32, d_k, 1, hparams.n_head(group.first()), 1);
        ggml_tensor * kv    = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, (int64_t) (d_k + d_v) * n_head, 1);
        ggml_tensor * mask  = ggml_new_tensor_4d(ctx, GGML_TYPE_F16, N_CELLS, 1, 1, 1);
        ggml_tensor * cells = ggml_new_tensor_3d(ctx, GGML_TYPE_I32, N_CELLS, 1, n_index);
        ggml_tensor * slots = ggml_new_tensor_3d(ctx, GGML_TYPE_I32, 2, n_slot + GGML_MINICACHE_SLOT_STATS, 1);
        ggml_tensor * at    = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, 1);

        ggml_tensor * const kvs[MINICACHE_CODE_LAYERS] = { kv, kv, kv, kv };

        ggml_tensor * pool_k = pool(storage.type_k, d_k);
        ggml_tensor * pool_v = pool(storage.type_v, d_v);

        if (n_slot > 0) {
            look("index", ggml_minicache_index(ctx, cells, slots, storage.block, storage.window));
        }
        const ggml_minicache_attn_params attn = { 1.0f, hparams.f_max_alibi_bias, 0.0f, 0, 0, storage.block, storage.window };

        ggml_tensor * stored;
        if (storage.coded) {
            ggml_tensor * codec  = ggml_new_tensor_1d(ctx, GGML_TYPE_I8, minicache_codec_offsets_of(group.shape).size);
            ggml_tensor * code_k = ggml_new_tensor_4d(ctx, GGML_TYPE_I8, group.shape.bytes_k, 1, N_CELLS, 1);
            ggml_tensor * code_v = ggml_new_tensor_4d(ctx, GGML_TYPE_I8, group.shape.bytes_v, 1, N_CELLS, 1);
            ggml_tensor * bases  = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, 1);
            look("attention over codes", ggml_minicache_attn_code(ctx, q, code_k, code_v, codec, pool_k, pool_v, kv, mask, cells,
                                             nullptr, attn, group.shape));
            stored = look("encode", ggml_minicache_encode(ctx, kvs, codec, flat(code_k), flat(code_v), at, bases, group.shape));
        } else {
            look("attention", ggml_minicache_attn(ctx, q, rows(storage.type_k, d_k, N_CELLS), rows(storage.type_v, d_v, N_CELLS),
                                  nullptr, pool_k, pool_v, kv, mask, cells, nullptr, attn));
            stored = look("merge", ggml_minicache_merge(ctx, kv, kv, { d_k, d_v, n_head, 0.5f, 0 }));
        }
        look("retain", ggml_minicache_retain(ctx, slots, stored, at, cells, kvs, pools(pool_k), pools(pool_v),
                           { d_k, d_v, n_head, group.n_layer(), storage.block, N_CELLS, 0, storage.window }));
    }
};

std::string minicache_missing_ops(
    ggml_backend_dev_t dev, const llama_hparams & hparams, const minicache_group & group, const minicache_storage & storage) {
    if (ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU) {
        return "";
    }
    group_ops ops(dev, hparams, group, storage);
    ops.look_at_all();
    return ops.missing;
}

//
// layers that are not merged
//

// The types that ggml-cuda's flash attention is compiled for unless more are asked for (GGML_CUDA_FA_QUANTS). For all others it
// makes f16 copies at every token, or leaves the op to the CPU.
static bool upstream_reads(const minicache_layer_types & types) {
    switch (types.k) {
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16:
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_Q4_0:
            return types.k == types.v;
        default:
            return false;
    }
}

minicache_plain_op minicache_plain_op_on(
    ggml_backend_dev_t dev, const llama_hparams & hparams, int32_t il, const minicache_layer_types & types) {
    const ggml_context_ptr owner = make_context(16);
    ggml_context *         ctx   = owner.get();

    const auto rows = [&](ggml_type type, int64_t d) {
        return ggml_new_tensor_4d(ctx, type, d, hparams.n_head_kv(il), N_CELLS, 1);
    };
    ggml_tensor * q    = ggml_new_tensor_4d(ctx, GGML_TYPE_F32, hparams.n_embd_head_k(il), 1, hparams.n_head(il), 1);
    ggml_tensor * k    = rows(types.k, hparams.n_embd_head_k(il));
    ggml_tensor * v    = rows(types.v, hparams.n_embd_head_v(il));
    ggml_tensor * mask = ggml_new_tensor_4d(ctx, GGML_TYPE_F16, N_CELLS, 1, 1, 1);

    const bool has_upstream = ggml_backend_dev_supports_op(dev,
        ggml_flash_attn_ext(ctx, q, ggml_permute(ctx, k, 0, 2, 1, 3), ggml_permute(ctx, v, 0, 2, 1, 3), mask, 1.0f, 0.0f, 0.0f));
    if (has_upstream && upstream_reads(types)) {
        return MINICACHE_PLAIN_UPSTREAM;
    }
    const ggml_minicache_attn_params attn    = { 1.0f, hparams.f_max_alibi_bias, 0.0f, 0, 0, 0, 0 };
    const bool                       has_own = ggml_backend_dev_supports_op(
        dev, ggml_minicache_attn(ctx, q, k, v, nullptr, nullptr, nullptr, nullptr, mask, nullptr, nullptr, attn));
    return has_own ? MINICACHE_PLAIN_OWN : has_upstream ? MINICACHE_PLAIN_UPSTREAM : MINICACHE_PLAIN_NONE;
}
