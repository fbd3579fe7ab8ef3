#include "llama-minicache-state-header.h"

#include "llama-impl.h"
#include "minicache-hash.h"

minicache_state_header minicache_state_header_of(const llama_kv_cache_minicache & kv) {
    std::vector<int32_t> layers;  // of each group: how many layers it has, then their numbers
    for (const minicache_group & group : kv.get_groups()) {
        layers.push_back(group.n_layer());
        layers.insert(layers.end(), group.layers.begin(), group.layers.end());
    }
    std::vector<int32_t> plain;
    for (const uint32_t il : kv.get_layer_ids()) {
        const minicache_layer_types types = kv.get_plain_types(il);
        plain.insert(plain.end(), { (int32_t) il, types.k, types.v });
    }
    minicache_state_header h;
    h.type_k    = kv.get_type_k();
    h.type_v    = kv.get_type_v();
    h.pool_type = kv.get_settings().pool_type;
    h.block     = kv.get_block();
    h.window    = kv.get_window();
    h.t         = kv.get_settings().t;
    h.n_group   = kv.get_groups().size();
    h.model     = kv.get_model_hash();
    h.groups    = minicache_hash(layers.data(), layers.size() * sizeof(int32_t));
    h.plan      = kv.get_plan_hash();
    h.plain     = minicache_hash(plain.data(), plain.size() * sizeof(int32_t));
    h.n_stream  = kv.get_n_stream();
    h.mode      = kv.get_mode();
    return h;
}

std::string minicache_state_difference(const minicache_state_header & saved, const minicache_state_header & own) {
    const auto type_name = [](int32_t type) {
        return type >= 0 && type < GGML_TYPE_COUNT ? ggml_type_name((ggml_type) type) : "the cache's";
    };
    if (saved.model != own.model) {
        return "another model";
    }
    if (saved.n_group != own.n_group || saved.groups != own.groups) {
        return format("%u groups of layers, here %u, or other layers", saved.n_group, own.n_group);
    }
    if (saved.mode != own.mode) {
        return "merged layers are stored in another way";
    }
    if (saved.type_k != own.type_k || saved.type_v != own.type_v) {
        return format("cache types %s and %s, here %s and %s", type_name(saved.type_k), type_name(saved.type_v),
            type_name(own.type_k), type_name(own.type_v));
    }
    if (saved.plain != own.plain) {
        return "other cache types of layers that are not merged";
    }
    if (saved.t != own.t) {
        return format("t = %g, here %g", saved.t, own.t);
    }
    if (saved.block != own.block) {
        return format("one token in %d retained, here one in %d", saved.block, own.block);
    }
    // the window of a plan is as long as the context makes it
    const bool grows = saved.mode == LLAMA_MINICACHE_MODE_CODE && saved.window > 0 && own.window > 0;
    if (saved.window != own.window && !grows) {
        return format("a window of %d tokens, here %d", saved.window, own.window);
    }
    if ((saved.block > 0 || saved.window > 0) && saved.pool_type != own.pool_type) {
        return format("pool type %s, here %s", type_name(saved.pool_type), type_name(own.pool_type));
    }
    if (saved.plan != own.plan) {
        return "another plan";
    }
    if (saved.n_stream != own.n_stream) {
        return format("%u streams, here %u", saved.n_stream, own.n_stream);
    }
    return "";
}

uint64_t minicache_state_hash(
    minicache_state_header header, const std::vector<uint32_t> & cell_counts, const std::vector<uint8_t> & payload) {
    header.hash = 0;

    uint64_t h = minicache_hash(&header, sizeof(header));
    h          = minicache_hash(cell_counts.data(), cell_counts.size() * sizeof(uint32_t), h);
    return minicache_hash(payload.data(), payload.size(), h);
}
