#include "llama-minicache.h"

#include "ggml-minicache.h"
#include "llama-context.h"
#include "llama-kv-cache-iswa.h"
#include "llama-impl.h"
#include "llama-kv-cache-minicache.h"
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

static size_t rows_bytes(const llama_hparams & hp, uint32_t il, ggml_type type_k, ggml_type type_v, uint64_t n_rows) {
    return n_rows * (ggml_row_size(type_k, hp.n_embd_k_gqa(il)) + ggml_row_size(type_v, hp.n_embd_v_gqa(il)));
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

//
// contexts without merged layers
//

static void report_plain(const llama_model & model, llama_memory_i & memory, llama_minicache_report & r) {
    r.bytes          = allocated_bytes(memory);
    r.bytes_unmerged = r.bytes;
    r.bytes_plain    = r.bytes;
    r.bytes_f16      = r.bytes;  // nothing else is known of memory that is not a K/V cache

    const llama_kv_cache * kv = dynamic_cast<llama_kv_cache *>(&memory);
    if (kv) {
        r.bytes_f16 = f16_bytes(model.hparams, *kv);
    } else {
        copy_text(r.note, minicache_why_not_model(model));
    }
    if (const auto * iswa = dynamic_cast<llama_kv_cache_iswa *>(&memory)) {
        kv          = iswa->get_base();
        r.bytes_f16 = f16_bytes(model.hparams, *kv) + f16_bytes(model.hparams, *iswa->get_swa());
    }
    if (kv && !kv->get_layer_ids().empty()) {
        r.n_cells  = kv->get_size();
        r.n_stream = kv->get_n_stream();
        r.type_k   = kv->type_k();
        r.type_v   = kv->type_v();
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
    r.bytes        = allocated_bytes(kv);
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
            const uint64_t magnitudes = (uint64_t) 2 * minicache_code_mag_bytes(group.shape.layout_k) * group.n_head_kv * n_rows;
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
    r.bytes_plain = r.bytes_unmerged;
    for (const minicache_group & group : kv.get_groups()) {
        for (const int32_t il : group.layers) {
            r.bytes_f16 += rows_bytes(hp, il, GGML_TYPE_F16, GGML_TYPE_F16, n_rows);
            r.bytes_plain += rows_bytes(hp, il, r.type_k, r.type_v, n_rows);
        }
    }

    r.bytes_padding = r.bytes - (r.bytes_directions + r.bytes_magnitudes + r.bytes_pool + r.bytes_window + r.bytes_index +
                                    r.bytes_codec + r.bytes_unmerged);

    copy_text(r.fallback, kv.get_fallback());
    if (!r.active && kv.get_plan_hash() == 0 && !kv.is_observed()) {
        copy_text(r.note, "no two layers of this model can be merged with these settings");
    }
}

std::string minicache_describe_saving(const llama_model & model, const llama_kv_cache_minicache & kv) {
    llama_minicache_report r = {};
    report_merged(model, kv, r);

    return format("the KV cache %s: %.2f MiB instead of %.2f MiB as f16, ratio %.2f",
        r.active ? "is merged" : "has no merged layers", r.bytes / 1024.0 / 1024.0, r.bytes_f16 / 1024.0 / 1024.0,
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

static void report_layer(const llama_model & model, llama_memory_i * memory, const llama_minicache_report & whole, int32_t il,
    llama_minicache_layer_report & r) {
    const uint64_t n_rows = (uint64_t) whole.n_cells * whole.n_stream;

    r.side = -1;
    std::fill(std::begin(r.group), std::end(r.group), -1);
    r.type_k     = GGML_TYPE_COUNT;
    r.type_v     = GGML_TYPE_COUNT;
    r.distance_k = NAN;
    r.distance_v = NAN;
    r.kind       = memory && model.hparams.has_kv(il) ? LLAMA_MINICACHE_LAYER_PLAIN : LLAMA_MINICACHE_LAYER_NONE;

    const auto * kv = dynamic_cast<llama_kv_cache_minicache *>(memory);
    if (kv) {
        const minicache_layer & layer = kv->get_grouping().layers[il];
        r.kind                        = layer.kind;
        for (size_t side = 0; side < layer.group.size(); ++side) {
            r.group[side] = layer.group[side];
            r.side        = layer.group[side] == il ? (int32_t) side : r.side;
        }
        copy_text(r.reason, layer.reason);
    }

    const int32_t ig = kv ? kv->find_group(il) : -1;
    if (ig >= 0) {
        const minicache_group & group = kv->get_group(ig);

        size_t bytes = 0;
        for (const ggml_tensor * x : group.tensors()) {
            bytes += ggml_nbytes(x);
        }
        // the shares add up even if the bytes are not a multiple of the layers
        bytes -= window_bytes(*kv, group);
        r.bytes = bytes * (r.side + 1) / group.n_layer() - bytes * r.side / group.n_layer();
        if (!kv->is_coded()) {
            r.type_k = kv->get_type_k();
            r.type_v = kv->get_type_v();
        }
        report_distances(*kv, group, r);
    } else if (r.kind != LLAMA_MINICACHE_LAYER_NONE && dynamic_cast<llama_kv_cache *>(memory)) {
        const minicache_layer_types types = kv ? kv->get_plain_types(il) : minicache_layer_types{ whole.type_k, whole.type_v };
        r.type_k                          = types.k;
        r.type_v                          = types.v;
        r.bytes                           = rows_bytes(model.hparams, il, types.k, types.v, n_rows);
    }
}

//
// API
//

static void get_report(llama_context * ctx, llama_minicache_report & r) {
    const llama_model & model  = *llama_get_model(ctx);
    llama_memory_i *    memory = llama_get_memory(ctx);

    r           = {};
    r.n_layer   = model.hparams.n_layer();
    r.type_k    = GGML_TYPE_COUNT;
    r.type_v    = GGML_TYPE_COUNT;
    r.pool_type = GGML_TYPE_COUNT;

    r.can_shift = memory && memory->get_can_shift();

    if (!memory) {
        copy_text(r.note, minicache_why_not_model(model));
    } else if (const auto * kv = dynamic_cast<llama_kv_cache_minicache *>(memory)) {
        report_merged(model, *kv, r);
    } else {
        report_plain(model, *memory, r);
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

        llama_minicache_report whole;
        get_report(ctx, whole);

        *report = {};
        report_layer(model, llama_get_memory(ctx), whole, il, *report);
    });
}
