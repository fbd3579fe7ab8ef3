#include "llama-kv-cache-minicache.h"

#include "ggml-minicache.h"
#include "llama-impl.h"
#include "llama-minicache-basis.h"
#include "llama-minicache-devices.h"
#include "llama-minicache-rotation.h"
#include "llama-model.h"

#include <cstring>
#include <map>
#include <stdexcept>

// The memory of merged groups: where their tensors are allocated, and the matrices of a plan that are written there.

ggml_backend_buffer_t llama_kv_cache_minicache::allocate_tensors(
    ggml_context * ctx, ggml_backend_buffer_type_t buft, bool no_alloc) {
    ggml_backend_buffer_t buf;
    if (no_alloc) {
        buf = ggml_backend_buft_alloc_buffer(buft, /*size =*/0);
        for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
            t->buffer = buf;
        }
    } else {
        buf = ggml_backend_alloc_ctx_tensors_from_buft(ctx, buft);
    }
    if (!buf) {
        size_t free  = 0;
        size_t total = 0;
        if (ggml_backend_dev_t dev = ggml_backend_buft_get_device(buft)) {
            ggml_backend_dev_memory(dev, &free, &total);
        }
        std::string message = format("failed to allocate %.2f MiB for the KV cache on %s",
            ggml_backend_alloc_ctx_tensors_from_buft_size(ctx, buft) / 1024.0 / 1024.0, ggml_backend_buft_name(buft));
        if (total > 0) {  // unknown for main memory
            message += format(", of whose %.2f MiB %.2f are free", total / 1024.0 / 1024.0, free / 1024.0 / 1024.0);
        }
        throw std::runtime_error(message);
    }
    LLAMA_LOG_INFO("%s: %10s KV buffer size = %8.2f MiB\n", __func__, ggml_backend_buffer_name(buf),
        ggml_backend_buffer_get_size(buf) / 1024.0 / 1024.0);
    return buf;
}

// The buffer type for the group's tensors: the device's of its layers, or main memory where that device lacks an op.
ggml_backend_buffer_type_t llama_kv_cache_minicache::buffer_type_for(const minicache_group & group, bool offload) {
    if (!offload) {
        return ggml_backend_cpu_buffer_type();
    }
    ggml_backend_dev_t      dev     = model.dev_layer(group.first());
    const minicache_storage storage = { is_coded(), cache_type_k, cache_type_v, settings.pool_type, block, window };
    const std::string       missing = minicache_missing_ops(dev, hparams, group, storage);
    if (missing.empty()) {
        return ggml_backend_dev_buffer_type(dev);
    }
    note_fallback(format("%s has no MiniCache kernels for %s (head size %d, %s, %s)", ggml_backend_dev_name(dev), missing.c_str(),
        (int) group.d_k, is_coded() ? "codes" : ggml_type_name(cache_type_k),
        is_coded() ? "codes" : ggml_type_name(cache_type_v)));
    return ggml_backend_cpu_buffer_type();
}

// Makes the tensors that hold the group's tokens.
void llama_kv_cache_minicache::add_tensors(minicache_group & group, ggml_context * ctx) const {
    const int64_t kv_size  = get_size();
    const int64_t n_slot   = get_n_slot();
    const int64_t n_embd_k = group.d_k * group.n_head_kv;
    const int64_t n_embd_v = group.d_v * group.n_head_kv;

    const auto new_tensor = [&](const char * name, ggml_type type, int64_t row, int64_t n, int64_t n_layer = 1) {
        ggml_tensor * x = ggml_new_tensor_4d(ctx, type, row, n, n_stream, n_layer);
        ggml_format_name(x, "minicache_%s_l%d", name, group.first());
        return x;
    };
    if (is_coded()) {
        group.dir_k = new_tensor("code_k", GGML_TYPE_I8, group.shape.bytes_k, kv_size);
        group.dir_v = new_tensor("code_v", GGML_TYPE_I8, group.shape.bytes_v, kv_size);
    } else {
        group.dir_k = new_tensor("dir_k", cache_type_k, n_embd_k, kv_size);
        group.dir_v = new_tensor("dir_v", cache_type_v, n_embd_v, kv_size);
    }
    if (mode == LLAMA_MINICACHE_MODE_SLERP || mode == LLAMA_MINICACHE_MODE_ALIGNED) {
        group.mag = new_tensor("mag", GGML_TYPE_F16, 4 * group.n_head_kv, kv_size);
    }
    group.slots = new_tensor("slots", GGML_TYPE_I32, 2, n_slot + GGML_MINICACHE_SLOT_STATS);

    if (n_slot > 0) {
        const bool own = settings.pool_type == GGML_TYPE_COUNT;
        group.pool_k   = new_tensor("pool_k", own ? cache_type_k : settings.pool_type, n_embd_k, n_slot, group.n_layer());
        group.pool_v   = new_tensor("pool_v", own ? cache_type_v : settings.pool_type, n_embd_v, n_slot, group.n_layer());
    }
}

// Makes the tensors that a plan's codec or basis matrices of the group will be written to.
void llama_kv_cache_minicache::add_plan_tensors(minicache_group & group, const minicache_plan & plan, ggml_context * ctx) const {
    if (is_coded()) {
        group.codec = ggml_new_tensor_1d(ctx, GGML_TYPE_I8, minicache_codec_offsets_of(group.shape).size);
        ggml_format_name(group.codec, "minicache_codec_l%d", group.first());
        return;
    }
    const auto new_basis = [&](const char * name, int side, int64_t d) {
        ggml_tensor * x = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, d, d, group.n_head_kv);
        ggml_format_name(x, "minicache_%s_l%d", name, group.layers[side]);
        return x;
    };
    const minicache_plan_group & source = group.source_in(plan);
    for (int side = 0; side < 2; ++side) {
        if (!source.basis_k[side].empty()) {
            group.basis_k[side] = new_basis("basis_k", side, group.d_k);
        }
        if (!source.basis_v[side].empty()) {
            group.basis_v[side] = new_basis("basis_v", side, group.d_v);
            group.basis_o[side] = new_basis("basis_o", side, group.d_v);
        }
    }
}

void llama_kv_cache_minicache::allocate(const minicache_plan * plan, bool offload) {
    typedef std::map<ggml_backend_buffer_type_t, ggml_context_ptr> context_map;

    context_map contexts;
    context_map plan_contexts;

    for (minicache_group & group : groups) {
        ggml_backend_buffer_type_t buft = buffer_type_for(group, offload);

        const auto context_in = [&](context_map & map) {
            ggml_context_ptr & ctx = map[buft];
            if (!ctx) {
                ctx.reset(ggml_init({ /*.mem_size =*/8 * groups.size() * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true }));
            }
            return ctx.get();
        };
        if (is_coded() || mode == LLAMA_MINICACHE_MODE_ALIGNED) {
            add_plan_tensors(group, *plan, context_in(plan_contexts));
        }
        add_tensors(group, context_in(contexts));
    }

    for (auto & [buft, ctx] : contexts) {
        ggml_backend_buffer_t buf = allocate_tensors(ctx.get(), buft, hparams.no_alloc);
        ggml_backend_buffer_clear(buf, 0);
        ctxs_bufs.emplace_back(std::move(ctx), buf);
    }
    for (auto & [buft, ctx] : plan_contexts) {
        ggml_backend_buffer_t buf = allocate_tensors(ctx.get(), buft, hparams.no_alloc);
        plan_bufs.emplace_back(std::move(ctx), buf);
    }
}

// Writes the plan's codecs, with the model's own RoPE frequencies in their place.
void llama_kv_cache_minicache::write_codecs(const minicache_plan & plan, const std::vector<minicache_rope_turn> & turns) {
    if (hparams.no_alloc) {
        return;
    }
    for (size_t ig = 0; ig < groups.size(); ++ig) {
        const minicache_group &      group  = groups[ig];
        const minicache_plan_group & source = group.source_in(plan);
        const minicache_rope_turn &  turn   = turns[ig];

        const std::vector<float> freq(turn.freq.begin(), turn.freq.end());
        const auto *             bytes = (const uint8_t *) freq.data();
        std::vector<uint8_t>     codec = source.codec;
        codec.insert(codec.begin() + minicache_codec_offsets_of(group.shape).freq, bytes, bytes + freq.size() * sizeof(float));

        GGML_ASSERT(codec.size() == ggml_nbytes(group.codec));
        ggml_backend_tensor_set(group.codec, codec.data(), 0, codec.size());
    }
}

// Writes the plan's basis matrices, which are those of the model's own K and V. llama.cpp's rotation of quantized types stays, as
// it makes them lose less, so the matrices are brought into its terms.
void llama_kv_cache_minicache::write_basis_matrices(const minicache_plan & plan) {
    if (hparams.no_alloc) {
        return;
    }
    const minicache_rotation rotation = minicache_rotation_of(n_embd_head_k_all, n_embd_head_v_all);

    const int32_t n_k = rotates_k(groups[0].first()) ? rotation.n_k : 0;
    const int32_t n_v = rotates_v(groups[0].first()) ? rotation.n_v : 0;

    const auto set = [](ggml_tensor * dst, const std::vector<float> & x) {
        GGML_ASSERT(x.size() * sizeof(float) == ggml_nbytes(dst));
        ggml_backend_tensor_set(dst, x.data(), 0, ggml_nbytes(dst));
    };
    for (const minicache_group & group : groups) {
        const minicache_plan_group & source = group.source_in(plan);
        for (int side = 0; side < 2; ++side) {
            if (group.basis_k[side]) {
                set(group.basis_k[side], minicache_rotated_basis(source.basis_k[side], group.d_k, n_k));
            }
            if (group.basis_v[side]) {
                const std::vector<float> matrices = minicache_rotated_basis(source.basis_v[side], group.d_v, n_v);
                set(group.basis_v[side], matrices);
                set(group.basis_o[side], minicache_transposed(matrices, group.d_v));
            }
        }
    }
}

std::map<ggml_backend_buffer_type_t, size_t> llama_kv_cache_minicache::memory_breakdown() const {
    std::map<ggml_backend_buffer_type_t, size_t> sizes = llama_kv_cache::memory_breakdown();
    for (const auto & [ctx, buf] : plan_bufs) {
        ggml_backend_buffer_type_t buft = ggml_backend_buffer_get_type(buf.get());
        // the buffers of a model without weights are empty, and llama.cpp asks how large they would be
        sizes[buft] += hparams.no_alloc ? ggml_backend_alloc_ctx_tensors_from_buft_size(ctx.get(), buft) :
                                          ggml_backend_buffer_get_size(buf.get());
    }
    return sizes;
}
