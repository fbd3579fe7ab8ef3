#include "llama-minicache.h"

#include "ggml-minicache.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-memory-minicache.h"
#include "llama-memory-recurrent.h"
#include "llama-minicache-error.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <stdexcept>

template <size_t N>
static void copy_text(char (&dst)[N], const std::string & text) {
    const size_t n = std::min(N - 1, text.size());
    memcpy(dst, text.data(), n);
    dst[n] = '\0';
}

// Latent caches (MLA) keep no V beside their rows of K.
static size_t rows_bytes(const llama_hparams & hp, uint32_t il, ggml_type type_k, ggml_type type_v, uint64_t n_rows) {
    const size_t row_v = hp.is_mla() ? 0 : ggml_row_size(type_v, hp.n_embd_v_gqa(il));
    return n_rows * (ggml_row_size(type_k, hp.n_embd_k_gqa(il)) + row_v);
}

static minicache_layer_types types_of(const llama_hparams & hp, const llama_kv_cache & kv) {
    return { kv.type_k(), hp.is_mla() ? GGML_TYPE_COUNT : kv.type_v() };
}

// The f16 bytes of the layers in a plain cache.
static size_t f16_bytes(const llama_hparams & hp, const llama_kv_cache & kv) {
    size_t bytes = 0;
    for (const uint32_t il : kv.get_layer_ids()) {
        bytes += rows_bytes(hp, il, GGML_TYPE_F16, GGML_TYPE_F16, (uint64_t) kv.get_size() * kv.get_n_stream());
    }
    return bytes;
}

static size_t allocated_bytes(const llama_memory_i & memory) {
    size_t bytes = 0;
    for (const auto & [buft, size] : memory.memory_breakdown()) {
        GGML_UNUSED(buft);
        bytes += size;
    }
    return bytes;
}

// What does not grow with the context beside our cache, or any other: windows of sliding-window layers and recurrent states.
static void report_fixed(const llama_hparams & hp, const minicache_memory_parts & parts, llama_minicache_report & r) {
    if (parts.window && !parts.window->get_layer_ids().empty()) {
        r.bytes_swa   = allocated_bytes(*parts.window);
        r.n_cells_swa = parts.window->get_size();
        r.bytes_f16_fixed += f16_bytes(hp, *parts.window);
    }
    if (parts.state) {
        r.bytes_state = allocated_bytes(*parts.state);
        r.bytes_f16_fixed += r.bytes_state;
    }
    r.bytes_f16 = r.bytes_f16_fixed;
}

//
// contexts without merged layers
//

static void report_plain(const llama_model & model, const minicache_memory_parts & parts, llama_minicache_report & r) {
    const llama_kv_cache * kv = parts.grows;
    if (kv) {
        r.bytes_f16 += f16_bytes(model.hparams, *kv);
    } else if (!parts.state) {
        r.bytes_f16 = r.bytes;  // nothing else is known of such memory
    }
    r.bytes_unmerged = r.bytes - r.bytes_swa - r.bytes_state;
    r.bytes_plain    = r.bytes;

    if (kv && !kv->get_layer_ids().empty()) {
        r.n_cells  = kv->get_size();
        r.n_stream = kv->get_n_stream();

        const minicache_layer_types types = types_of(model.hparams, *kv);
        r.type_k                          = types.k;
        r.type_v                          = types.v;
    }
    if (!kv || model.hparams.is_mla()) {
        copy_text(r.note, minicache_why_not_memory(model));
    }
}

//
// contexts with merged layers
//

static uint32_t retained_in_use(const llama_kv_cache_minicache & kv, const minicache_group & group) {
    const std::vector<int32_t> slots = kv.read_slots(group);

    uint32_t n = 0;
    for (int64_t s = 0; s < group.slots->ne[2]; ++s) {
        for (int64_t i = kv.get_window(); i < kv.get_n_slot(); ++i) {
            const int32_t cell = slots[2 * (s * group.slots->ne[1] + i)] - 1;
            n += cell >= 0 && kv.is_cell_used(s, cell);
        }
    }
    return n;
}

// How many slots a group's window has, which is also the number of its rows in each pool.
static uint64_t window_rows(const llama_kv_cache_minicache & kv) { return (uint64_t) kv.get_window() * kv.get_n_stream(); }

static uint64_t window_bytes(const llama_kv_cache_minicache & kv, const minicache_group & group) {
    uint64_t row = group.slots->nb[1];
    for (const ggml_tensor * pool : group.pools()) {
        row += group.n_layer() * pool->nb[1];
    }
    return window_rows(kv) * row;
}

static void report_merged(const llama_model & model, const llama_kv_cache_minicache & kv, llama_minicache_report & r) {
    const llama_hparams & hp = model.hparams;

    r.active       = !kv.get_groups().empty();
    r.n_cells      = kv.get_size();
    r.n_stream     = kv.get_n_stream();
    r.n_group      = kv.get_groups().size();
    r.retain_block = kv.get_block();
    r.window       = kv.get_window();
    r.t            = kv.get_settings().t;
    r.retain       = kv.get_block() > 0 ? 1.0f / kv.get_block() : 0.0f;
    r.type_k       = kv.get_type_k();
    r.type_v       = kv.get_type_v();
    r.pool_type    = kv.get_settings().pool_type;
    r.mode         = kv.get_mode();
    r.rope_block   = kv.get_rope_block();

    const uint64_t n_rows = (uint64_t) kv.get_size() * kv.get_n_stream();

    for (const minicache_group & group : kv.get_groups()) {
        r.bytes_directions += ggml_nbytes(group.dir_k) + ggml_nbytes(group.dir_v);
        if (group.is_coded()) {
            // code rows begin with their magnitudes
            const uint64_t magnitudes = (uint64_t) 2 * minicache_code_mag_bytes(group.layouts.k[0]) * group.n_head_kv * n_rows;
            r.bytes_directions -= magnitudes;
            r.bytes_magnitudes += magnitudes;
            r.bytes_codec += ggml_nbytes(group.codec);
        } else if (group.mag) {
            r.bytes_magnitudes += ggml_nbytes(group.mag);
        }
        for (const ggml_tensor * basis : group.basis_tensors()) {
            r.bytes_codec += ggml_nbytes(basis);
        }
        const uint64_t in_window = window_rows(kv);
        r.bytes_index += ggml_nbytes(group.slots) - in_window * group.slots->nb[1];
        for (const ggml_tensor * pool : group.pools()) {
            r.bytes_pool += ggml_nbytes(pool) - in_window * group.n_layer() * pool->nb[1];
        }
        r.bytes_window += window_bytes(kv, group);
        r.n_retained += retained_in_use(kv, group);
        r.n_retained_max += (kv.get_n_slot() - kv.get_window()) * kv.get_n_stream();
    }

    for (const uint32_t il : kv.get_layer_ids()) {
        const minicache_layer_types types = kv.get_plain_types(il);
        r.bytes_unmerged += rows_bytes(hp, il, types.k, types.v, n_rows);
        r.bytes_f16 += rows_bytes(hp, il, GGML_TYPE_F16, GGML_TYPE_F16, n_rows);
    }
    r.bytes_plain = r.bytes_unmerged + r.bytes_swa + r.bytes_state;
    for (const minicache_group & group : kv.get_groups()) {
        for (const int32_t il : group.layers) {
            r.bytes_f16 += rows_bytes(hp, il, GGML_TYPE_F16, GGML_TYPE_F16, n_rows);
            r.bytes_plain += rows_bytes(hp, il, r.type_k, r.type_v, n_rows);
        }
    }

    r.bytes_padding = r.bytes - (r.bytes_directions + r.bytes_magnitudes + r.bytes_pool + r.bytes_window + r.bytes_index +
                                    r.bytes_codec + r.bytes_unmerged + r.bytes_swa + r.bytes_state);

    copy_text(r.fallback, kv.get_fallback());
    const bool by_layer = kv.get_settings().mode == LLAMA_MINICACHE_MODE_PLAIN;
    if (!r.active && kv.get_plan_hash() == 0 && !kv.is_observed() && !by_layer) {
        copy_text(r.note, "no two layers of this model can be merged with these settings");
    }
}

std::string minicache_describe_saving(const llama_model & model, const llama_kv_cache_minicache & kv) {
    llama_minicache_report r = {};

    r.bytes = allocated_bytes(kv);
    report_merged(model, kv, r);

    return format("the KV cache %s: %.2f MiB instead of %.2f MiB as f16, %.2f times smaller",
        r.active ? "is merged" : "uses a cache type for each layer", r.bytes / 1024.0 / 1024.0, r.bytes_f16 / 1024.0 / 1024.0,
        r.bytes > 0 ? (double) r.bytes_f16 / r.bytes : 0.0);
}

// The running means, of all streams together.
static void report_distances(
    const llama_kv_cache_minicache & kv, const minicache_group & group, llama_minicache_layer_report & r) {
    const std::vector<int32_t> slots = kv.read_slots(group);

    double sum_k = 0.0;
    double sum_v = 0.0;
    for (int64_t s = 0; s < group.slots->ne[2]; ++s) {
        const int32_t * means = slots.data() + 2 * (s * group.slots->ne[1] + kv.get_n_slot());
        const int32_t   count = means[2];

        float mean_k;
        float mean_v;
        memcpy(&mean_k, &means[0], sizeof(mean_k));
        memcpy(&mean_v, &means[1], sizeof(mean_v));

        sum_k += (double) mean_k * count;
        sum_v += (double) mean_v * count;
        r.n_merged += count;
    }
    if (r.n_merged > 0) {
        r.distance_k = sum_k / r.n_merged;
        r.distance_v = sum_v / r.n_merged;
    }
}

static void report_merged_layer(
    const llama_kv_cache_minicache & kv, const minicache_group & group, llama_minicache_layer_report & r) {
    size_t bytes = 0;
    for (const ggml_tensor * x : group.tensors()) {
        bytes += ggml_nbytes(x);
    }
    // the shares add up even if the bytes are not a multiple of the layers
    bytes -= window_bytes(kv, group);
    r.bytes = bytes * (r.side + 1) / group.n_layer() - bytes * r.side / group.n_layer();
    if (!kv.is_coded()) {
        r.type_k = kv.get_type_k();
        r.type_v = kv.get_type_v();
    }
    report_distances(kv, group, r);
}

static void report_rows(const llama_hparams & hp, const minicache_layer_types & types, uint64_t n_rows, int32_t il,
    llama_minicache_layer_report & r) {
    r.type_k = types.k;
    r.type_v = types.v;
    r.bytes  = rows_bytes(hp, il, types.k, types.v, n_rows);
}

static void report_layer(
    const llama_model & model, const minicache_memory_parts & parts, int32_t il, llama_minicache_layer_report & r) {
    r.side = -1;
    std::fill(std::begin(r.group), std::end(r.group), -1);
    r.type_k     = GGML_TYPE_COUNT;
    r.type_v     = GGML_TYPE_COUNT;
    r.distance_k = NAN;
    r.distance_v = NAN;
    r.kind       = minicache_kind_of(model, il);

    const llama_kv_cache * kv  = parts.grows;
    const auto *           own = dynamic_cast<const llama_kv_cache_minicache *>(kv);
    if (own) {
        const minicache_layer & layer = own->get_grouping().layers[il];
        r.kind                        = layer.kind;
        for (size_t side = 0; side < layer.group.size(); ++side) {
            r.group[side] = layer.group[side];
            r.side        = layer.group[side] == il ? (int32_t) side : r.side;
        }
        copy_text(r.reason, layer.reason);
    }
    switch (r.kind) {
        case LLAMA_MINICACHE_LAYER_NONE:
            break;
        case LLAMA_MINICACHE_LAYER_MERGED:
            report_merged_layer(*own, own->get_group(own->find_group(il)), r);
            break;
        case LLAMA_MINICACHE_LAYER_PLAIN:
        case LLAMA_MINICACHE_LAYER_REFUSED:
            if (kv) {
                const minicache_layer_types types = own ? own->get_plain_types(il) : types_of(model.hparams, *kv);
                report_rows(model.hparams, types, (uint64_t) kv->get_size() * kv->get_n_stream(), il, r);
            }
            break;
        case LLAMA_MINICACHE_LAYER_WINDOW:
            if (const llama_kv_cache * window = parts.window) {
                report_rows(model.hparams, types_of(model.hparams, *window),
                    (uint64_t) window->get_size() * window->get_n_stream(), il, r);
            }
            break;
        case LLAMA_MINICACHE_LAYER_STATE:
            for (const ggml_tensor * x : parts.state ? std::vector<ggml_tensor *>{ parts.state->r_l[il], parts.state->s_l[il] } :
                                                       std::vector<ggml_tensor *>()) {
                r.bytes += x ? ggml_nbytes(x) : 0;
            }
            break;
    }
}

//
// API
//

static void get_report(llama_context * ctx, llama_minicache_report & r) {
    const llama_model &          model  = *llama_get_model(ctx);
    llama_memory_i *             memory = llama_get_memory(ctx);
    const minicache_memory_parts parts  = minicache_parts_of(memory);

    r           = {};
    r.n_layer   = model.hparams.n_layer();
    r.type_k    = GGML_TYPE_COUNT;
    r.type_v    = GGML_TYPE_COUNT;
    r.pool_type = GGML_TYPE_COUNT;

    r.can_shift = memory && memory->get_can_shift();

    if (!memory) {
        copy_text(r.note, minicache_why_not_memory(model));
        return;
    }
    r.bytes = allocated_bytes(*memory);
    report_fixed(model.hparams, parts, r);
    if (const auto * kv = minicache_cache_of(memory)) {
        report_merged(model, *kv, r);
    } else {
        report_plain(model, parts, r);
    }
}

static void check(const llama_context * ctx, const void * report) {
    if (!ctx || !report) {
        throw std::invalid_argument("ctx and report must not be NULL");
    }
}

bool llama_minicache_get_report(llama_context * ctx, llama_minicache_report * report) {
    return minicache_guarded([&] {
        check(ctx, report);
        llama_synchronize(ctx);
        get_report(ctx, *report);
    });
}

bool llama_minicache_get_layer_report(llama_context * ctx, int32_t il, llama_minicache_layer_report * report) {
    return minicache_guarded([&] {
        check(ctx, report);
        const llama_model & model = *llama_get_model(ctx);
        if (il < 0 || il >= (int32_t) model.hparams.n_layer()) {
            throw std::invalid_argument("layer " + std::to_string(il) + " is out of range: the model has layers 0 to " +
                                        std::to_string(model.hparams.n_layer() - 1));
        }
        llama_synchronize(ctx);

        *report = {};
        report_layer(model, minicache_parts_of(llama_get_memory(ctx)), il, *report);
    });
}
