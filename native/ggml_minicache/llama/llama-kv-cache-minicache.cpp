#include "llama-kv-cache-minicache.h"

#include "ggml-minicache.h"
#include "llama-context.h"
#include "llama-cparams.h"
#include "llama-impl.h"
#include "llama-minicache-error.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <stdexcept>

std::vector<ggml_tensor *> minicache_group::cell_tensors() const {
    return mag ? std::vector<ggml_tensor *>{ dir_k, dir_v, mag } : std::vector<ggml_tensor *>{ dir_k, dir_v };
}

std::vector<ggml_tensor *> minicache_group::bases() const {
    std::vector<ggml_tensor *> all;
    for (int side = 0; side < 2; ++side) {
        for (ggml_tensor * basis : { basis_k[side], basis_v[side], basis_o[side] }) {
            if (basis) {
                all.push_back(basis);
            }
        }
    }
    return all;
}

std::vector<ggml_tensor *> minicache_group::pools() const {
    return pool_k ? std::vector<ggml_tensor *>{ pool_k, pool_v } : std::vector<ggml_tensor *>();
}

std::vector<ggml_tensor *> minicache_group::tensors() const {
    std::vector<ggml_tensor *> all = cell_tensors();
    all.push_back(slots);
    for (ggml_tensor * pool : pools()) {
        all.push_back(pool);
    }
    return all;
}

//
// creation
//

static void check_types(const llama_model & model, const llama_memory_params & params, const minicache_settings & settings) {
    std::vector<ggml_type> types = { params.type_k, params.type_v };
    if (settings.plan) {
        for (const auto & [il, own] : settings.plan->plain) {
            types.push_back(own.k);
            types.push_back(own.v);
            if (model.hparams.n_embd_head_k(il) % ggml_blck_size(own.k) != 0 ||
                model.hparams.n_embd_head_v(il) % ggml_blck_size(own.v) != 0) {
                throw std::invalid_argument("the plan's cache types do not fit the head sizes of layer " + std::to_string(il));
            }
        }
    }
    for (const ggml_type type : types) {
        if (!minicache_is_cache_type(type)) {
            throw std::invalid_argument(std::string("cache type ") + ggml_type_name(type) +
                                        " is not supported: use f16, bf16, q8_0, q5_0, q5_1, q4_0, q4_1 or iq4_nl");
        }
    }
    if (settings.plan && (model.hparams.n_embd_head_k() % ggml_blck_size(params.type_k) != 0 ||
                             model.hparams.n_embd_head_v() % ggml_blck_size(params.type_v) != 0)) {
        throw std::invalid_argument("the plan's cache types do not fit the model's head sizes");
    }
    if (settings.retain_block() + settings.window == 0 || settings.pool_type == GGML_TYPE_COUNT) {
        return;
    }
    const int64_t n = ggml_blck_size(settings.pool_type);
    if (model.hparams.n_embd_head_k() % n != 0 || model.hparams.n_embd_head_v() % n != 0) {
        throw std::invalid_argument(std::string("pool type ") + ggml_type_name(settings.pool_type) +
                                    " needs head sizes that are multiples of " + std::to_string(n) + ": use f16");
    }
}

// what the context is to use; a draft head keeps a plain cache of its own, of a layer or two
static std::optional<minicache_settings> requested(const llama_memory_params & params) {
    try {
        return params.ctx_type == LLAMA_CONTEXT_TYPE_DEFAULT ? minicache_settings_requested() : std::nullopt;
    } catch (const std::exception & e) {
        minicache_set_error(e.what());
        throw;
    }
}

llama_kv_cache_minicache * llama_kv_cache_minicache::create(
    const llama_model & model, const llama_memory_params & given, const llama_cparams & cparams, const layer_filter_cb & filter) {
    const auto settings = requested(given);

    if (!settings || model.hparams.is_mla()) {
        return nullptr;
    }
    llama_memory_params params = given;
    if (settings->plan) {
        params.type_k = settings->plan->type_k;
        params.type_v = settings->plan->type_v;
    }
    try {
        if (!cparams.flash_attn) {
            throw std::invalid_argument("merged layers need flash attention: do not switch it off");
        }
        check_types(model, params, *settings);
        if (settings->plan) {
            minicache_check_plan(*settings->plan, model);
        }

        const minicache_grouping grouping = minicache_make_grouping(model, cparams, cparams.offload_kqv, *settings);
        if (grouping.groups.empty() && !settings->observe && !(settings->plan && settings->plan->groups.empty())) {
            LLAMA_LOG_WARN("%s: no two layers of this model can be merged, its cache is a plain one\n", __func__);
        }
        return new llama_kv_cache_minicache(model, params, cparams, filter, *settings, grouping);
    } catch (const std::bad_alloc &) {
        minicache_set_error(format("failed to allocate the %u cells of the KV cache in main memory", cparams.n_ctx));
        throw;
    } catch (const std::exception & e) {
        minicache_set_error(e.what());
        throw;
    }
}

void llama_kv_cache_minicache::check_created(
    llama_memory_i * created, const llama_model & model, const llama_memory_params & params) {
    std::unique_ptr<llama_memory_i> owned(created);

    // nothing is asked for a second time where the cache is ours: a plan in LLAMA_MINICACHE would be read again
    const bool is_ours  = dynamic_cast<llama_kv_cache_minicache *>(created) != nullptr;
    const auto settings = is_ours ? std::nullopt : requested(params);
    if (settings) {
        const std::string message = minicache_why_not_model(model);
        if (settings->strict) {
            minicache_set_error(message);
            throw std::invalid_argument(message);
        }
        LLAMA_LOG_WARN("%s: MiniCache is off: %s\n", __func__, message.c_str());
    }
    owned.release();
}

// settings without the plan, whose matrices are large and live on in the cache's own tensors
static minicache_settings without_plan(minicache_settings settings) {
    settings.plan = nullptr;
    return settings;
}

llama_kv_cache_minicache::llama_kv_cache_minicache(const llama_model & model, const llama_memory_params & params,
    const llama_cparams & cparams, const layer_filter_cb & filter, const minicache_settings & settings,
    const minicache_grouping & grouping) :
    llama_kv_cache(
        model, model.hparams, params.type_k, params.type_v, /*v_trans =*/false, cparams.offload_kqv, cparams.kv_unified,
        cparams.n_ctx_seq, cparams.n_seq_max, /*n_pad =*/1, model.hparams.n_swa, model.hparams.swa_type, nullptr,
        [](int32_t) { return false; }, nullptr, nullptr),
    settings(without_plan(settings)), grouping(grouping),
    mode(grouping.groups.empty() ? LLAMA_MINICACHE_MODE_SLERP : settings.mode),
    rope_block(is_coded() ? settings.plan->rope_block : 0), plan_hash(settings.plan ? settings.plan->hash : 0),
    cache_type_k(params.type_k), cache_type_v(params.type_v), block(settings.retain_block()), window(settings.window),
    group_of_layer(grouping.layers.size(), -1), own_op(model.hparams.n_layer_all, false) {
    add_plain_layers(settings.plan.get(), filter, cparams.offload_kqv);
    add_groups();
    std::vector<minicache_rope_turn> turns;
    if (is_coded()) {
        turns = add_shapes(*settings.plan, cparams);
    }
    allocate(settings.plan.get(), cparams.offload_kqv);
    init_rotation();
    if (is_coded()) {
        offsets.assign(n_stream, std::vector<int32_t>(get_size()));
        write_codecs(*settings.plan, turns);
    }
    if (mode == LLAMA_MINICACHE_MODE_ALIGNED) {
        write_bases(*settings.plan);
    }

    LLAMA_LOG_INFO("%s: %s\n", __func__, describe().c_str());
}

// what the plan says of the group
static const minicache_plan_group & planned(const minicache_plan & plan, const minicache_group & wanted) {
    return *std::find_if(
        plan.groups.begin(), plan.groups.end(), [&](const auto & group) { return group.layers == wanted.layers; });
}

void llama_kv_cache_minicache::add_groups() {
    for (const minicache_layers & layers : grouping.groups) {
        minicache_group group = {};
        group.layers          = layers;
        group.d_k             = hparams.n_embd_head_k(group.first());
        group.d_v             = hparams.n_embd_head_v(group.first());
        group.n_head_kv       = hparams.n_head_kv(group.first());
        for (const int32_t il : layers) {
            group_of_layer[il] = groups.size();
        }
        groups.push_back(group);
    }
}

std::vector<minicache_rope_turn> llama_kv_cache_minicache::add_shapes(
    const minicache_plan & plan, const llama_cparams & cparams) {
    std::vector<minicache_rope_turn> turns;
    for (minicache_group & group : groups) {
        turns.push_back(minicache_rope_of(model, cparams, group.first()));

        group.shape       = planned(plan, group).shape;
        group.shape.n_rot = (int16_t) turns.back().n_rot;
        group.shape.rope  = turns.back().kind;
    }
    return turns;
}

// Which of the ops of a group like this the device's backend has not, "" if it has all. The graph's own ops are the same but for
// the numbers of cells and tokens, which no backend looks at.
std::string llama_kv_cache_minicache::missing_ops(ggml_backend_dev_t dev, const minicache_group & group) const {
    if (ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU) {
        return "";
    }
    ggml_init_params params = { /*.mem_size =*/64 * ggml_tensor_overhead(), /*.mem_buffer =*/nullptr, /*.no_alloc =*/true };
    ggml_context_ptr owner{ ggml_init(params) };
    ggml_context *   ctx = owner.get();

    const int64_t n_cells  = 256;
    const int64_t n_slot   = window + ggml_minicache_n_slot(n_cells, block);
    const int64_t n_embd_k = group.d_k * group.n_head_kv;
    const int64_t n_embd_v = group.d_v * group.n_head_kv;
    const bool    own      = settings.pool_type == GGML_TYPE_COUNT;

    const auto rows = [&](ggml_type type, int64_t row, int64_t n) {
        return ggml_new_tensor_4d(ctx, type, row, group.n_head_kv, n, 1);
    };
    const auto pool = [&](ggml_type type, int64_t d) {
        return n_slot > 0 ? rows(own ? type : settings.pool_type, d, n_slot) : nullptr;
    };
    const auto pools = [&](const ggml_tensor * x) {
        return x ? ggml_new_tensor_4d(ctx, x->type, x->ne[0] * x->ne[1], n_slot, 1, group.n_layer()) : nullptr;
    };
    const auto flat = [&](ggml_tensor * x) { return ggml_reshape_2d(ctx, x, x->ne[0] * x->ne[1], x->ne[2]); };

    ggml_tensor * q     = ggml_new_tensor_4d(ctx, GGML_TYPE_F32, group.d_k, 1, hparams.n_head(group.first()), 1);
    ggml_tensor * kv    = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n_embd_k + n_embd_v, 1);
    ggml_tensor * mask  = ggml_new_tensor_4d(ctx, GGML_TYPE_F16, n_cells, 1, 1, 1);
    ggml_tensor * cells = ggml_new_tensor_3d(ctx, GGML_TYPE_I32, n_cells, 1, is_coded() ? 2 : 1);
    ggml_tensor * slots = ggml_new_tensor_3d(ctx, GGML_TYPE_I32, 2, n_slot + GGML_MINICACHE_SLOT_STATS, 1);
    ggml_tensor * at    = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, 1);

    ggml_tensor * const kvs[MINICACHE_CODE_LAYERS] = { kv, kv, kv, kv };

    ggml_tensor * pool_k = pool(cache_type_k, group.d_k);
    ggml_tensor * pool_v = pool(cache_type_v, group.d_v);

    std::string missing;
    const auto  look = [&](const char * name, ggml_tensor * op) {
        if (!ggml_backend_dev_supports_op(dev, op)) {
            missing += (missing.empty() ? "" : ", ") + std::string(name);
        }
        return op;
    };
    if (n_slot > 0) {
        look("index", ggml_minicache_index(ctx, cells, slots, block, window));
    }
    const ggml_minicache_attn_params attn = { 1.0f, hparams.f_max_alibi_bias, 0.0f, 0, block, 0, window };

    ggml_tensor * stored;
    if (is_coded()) {
        ggml_tensor * codec  = ggml_new_tensor_1d(ctx, GGML_TYPE_I8, minicache_codec_offsets_of(group.shape).size);
        ggml_tensor * code_k = rows(GGML_TYPE_I8, minicache_code_bytes(group.shape.layout_k), n_cells);
        ggml_tensor * code_v = rows(GGML_TYPE_I8, minicache_code_bytes(group.shape.layout_v), n_cells);
        ggml_tensor * bases  = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, 1);
        look("attention over codes",
            ggml_minicache_attn_code(ctx, q, code_k, code_v, codec, pool_k, pool_v, kv, mask, cells, nullptr, attn, group.shape));
        stored = look("encode", ggml_minicache_encode(ctx, kvs, codec, flat(code_k), flat(code_v), at, bases, group.shape));
    } else {
        look("attention", ggml_minicache_attn(ctx, q, rows(cache_type_k, group.d_k, n_cells),
                              rows(cache_type_v, group.d_v, n_cells), nullptr, pool_k, pool_v, kv, mask, cells, nullptr, attn));
        stored = look("merge",
            ggml_minicache_merge(ctx, kv, kv, { (int32_t) group.d_k, (int32_t) group.d_v, (int32_t) group.n_head_kv, 0.5f, 0 }));
    }
    look("retain",
        ggml_minicache_retain(ctx, slots, stored, at, cells, kvs, pools(pool_k), pools(pool_v),
            { (int32_t) group.d_k, (int32_t) group.d_v, (int32_t) group.n_head_kv, group.n_layer(), block, n_cells, 0, window }));
    return missing;
}

// the first is told, in the log and in the report
void llama_kv_cache_minicache::note_fallback(const std::string & what) {
    if (fallback.empty()) {
        fallback = what;
        LLAMA_LOG_WARN("%s: %s: layers attend on the CPU, which is SLOW for a model on that device\n", __func__, what.c_str());
    }
}

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
        if (total > 0) {  // main memory is not told
            message += format(", of whose %.2f MiB %.2f are free", total / 1024.0 / 1024.0, free / 1024.0 / 1024.0);
        }
        throw std::runtime_error(message);
    }
    LLAMA_LOG_INFO("%s: %10s KV buffer size = %8.2f MiB\n", __func__, ggml_backend_buffer_name(buf),
        ggml_backend_buffer_get_size(buf) / 1024.0 / 1024.0);
    return buf;
}

void llama_kv_cache_minicache::allocate(const minicache_plan * plan, bool offload) {
    std::map<ggml_backend_buffer_type_t, ggml_context_ptr> contexts;
    std::map<ggml_backend_buffer_type_t, ggml_context_ptr> codec_contexts;

    for (minicache_group & group : groups) {
        ggml_backend_buffer_type_t buft = ggml_backend_cpu_buffer_type();
        if (offload) {
            ggml_backend_dev_t dev     = model.dev_layer(group.first());
            const std::string  missing = missing_ops(dev, group);
            if (missing.empty()) {
                buft = ggml_backend_dev_buffer_type(dev);
            } else {
                note_fallback(format("%s has no MiniCache kernels for %s (head size %d, %s, %s)", ggml_backend_dev_name(dev),
                    missing.c_str(), (int) group.d_k, is_coded() ? "codes" : ggml_type_name(cache_type_k),
                    is_coded() ? "codes" : ggml_type_name(cache_type_v)));
            }
        }

        const auto context_of = [&](auto & map) -> ggml_context_ptr & {
            ggml_context_ptr & ctx = map[buft];
            if (!ctx) {
                ctx.reset(ggml_init({ /*.mem_size =*/8 * groups.size() * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true }));
            }
            return ctx;
        };
        ggml_context_ptr & ctx = context_of(contexts);

        const int64_t kv_size = get_size();
        const int64_t n_slot  = get_n_slot();

        const auto new_tensor = [&](const char * name, ggml_type type, int64_t row, int64_t n, int64_t n_layer = 1) {
            ggml_tensor * x = ggml_new_tensor_4d(ctx.get(), type, row, n, n_stream, n_layer);
            ggml_format_name(x, "minicache_%s_l%d", name, group.first());
            return x;
        };

        const int64_t n_embd_k = group.d_k * group.n_head_kv;
        const int64_t n_embd_v = group.d_v * group.n_head_kv;

        if (is_coded()) {
            group.codec =
                ggml_new_tensor_1d(context_of(codec_contexts).get(), GGML_TYPE_I8, minicache_codec_offsets_of(group.shape).size);
            ggml_format_name(group.codec, "minicache_codec_l%d", group.first());

            group.dir_k =
                new_tensor("code_k", GGML_TYPE_I8, minicache_code_bytes(group.shape.layout_k) * group.n_head_kv, kv_size);
            group.dir_v =
                new_tensor("code_v", GGML_TYPE_I8, minicache_code_bytes(group.shape.layout_v) * group.n_head_kv, kv_size);
        } else {
            group.dir_k = new_tensor("dir_k", cache_type_k, n_embd_k, kv_size);
            group.dir_v = new_tensor("dir_v", cache_type_v, n_embd_v, kv_size);
        }
        if (mode == LLAMA_MINICACHE_MODE_SLERP || mode == LLAMA_MINICACHE_MODE_ALIGNED) {
            group.mag = new_tensor("mag", GGML_TYPE_F16, 4 * group.n_head_kv, kv_size);
        }
        const auto new_basis = [&](const char * name, int side, int64_t d) {
            ggml_tensor * x = ggml_new_tensor_3d(context_of(codec_contexts).get(), GGML_TYPE_F32, d, d, group.n_head_kv);
            ggml_format_name(x, "minicache_%s_l%d", name, group.layers[side]);
            return x;
        };
        for (int side = 0; side < 2 && mode == LLAMA_MINICACHE_MODE_ALIGNED; ++side) {
            if (!planned(*plan, group).basis_k[side].empty()) {
                group.basis_k[side] = new_basis("basis_k", side, group.d_k);
            }
            if (!planned(*plan, group).basis_v[side].empty()) {
                group.basis_v[side] = new_basis("basis_v", side, group.d_v);
                group.basis_o[side] = new_basis("basis_o", side, group.d_v);
            }
        }
        group.slots = new_tensor("slots", GGML_TYPE_I32, 2, n_slot + GGML_MINICACHE_SLOT_STATS);

        if (n_slot > 0) {
            const bool own = settings.pool_type == GGML_TYPE_COUNT;
            group.pool_k   = new_tensor("pool_k", own ? cache_type_k : settings.pool_type, n_embd_k, n_slot, group.n_layer());
            group.pool_v   = new_tensor("pool_v", own ? cache_type_v : settings.pool_type, n_embd_v, n_slot, group.n_layer());
        }
    }

    for (auto & [buft, ctx] : contexts) {
        ggml_backend_buffer_t buf = allocate_tensors(ctx.get(), buft, hparams.no_alloc);
        ggml_backend_buffer_clear(buf, 0);
        ctxs_bufs.emplace_back(std::move(ctx), buf);
    }
    for (auto & [buft, ctx] : codec_contexts) {
        ggml_backend_buffer_t buf = allocate_tensors(ctx.get(), buft, hparams.no_alloc);
        codec_bufs.emplace_back(std::move(ctx), buf);
    }
}

// The plan's codecs, with the model's frequencies before what the plan has.
void llama_kv_cache_minicache::write_codecs(const minicache_plan & plan, const std::vector<minicache_rope_turn> & turns) {
    if (hparams.no_alloc) {
        return;
    }
    for (size_t ig = 0; ig < groups.size(); ++ig) {
        const minicache_group &      group  = groups[ig];
        const minicache_plan_group & source = planned(plan, group);
        const minicache_rope_turn &  turn   = turns[ig];

        std::vector<uint8_t> codec(turn.freq.size() * sizeof(float));
        for (size_t i = 0; i < turn.freq.size(); ++i) {
            const float freq = (float) turn.freq[i];
            memcpy(codec.data() + i * sizeof(float), &freq, sizeof(freq));
        }
        codec.insert(codec.end(), source.codec.begin(), source.codec.end());

        GGML_ASSERT(codec.size() == ggml_nbytes(group.codec));
        ggml_backend_tensor_set(group.codec, codec.data(), 0, codec.size());
    }
}

// rows of n in x times the Hadamard matrix H of n, Sylvester's, as upstream rotates by it
static void hadamard_rows(std::vector<float> & x, int64_t n) {
    const float scale = 1.0f / sqrtf((float) n);
    for (size_t row = 0; row < x.size(); row += n) {
        for (int64_t half = 1; half < n; half *= 2) {
            for (int64_t i = 0; i < n; ++i) {
                if (!(i & half)) {
                    const float a     = x[row + i];
                    const float b     = x[row + i + half];
                    x[row + i]        = a + b;
                    x[row + i + half] = a - b;
                }
            }
        }
        for (int64_t i = 0; i < n; ++i) {
            x[row + i] *= scale;
        }
    }
}

// each of the d x d matrices transposed
static std::vector<float> transposed(const std::vector<float> & x, int64_t d) {
    std::vector<float> y(x.size());
    for (size_t m = 0; m < x.size(); m += d * d) {
        for (int64_t i = 0; i < d; ++i) {
            for (int64_t j = 0; j < d; ++j) {
                y[m + j * d + i] = x[m + i * d + j];
            }
        }
    }
    return y;
}

// A basis W for vectors that upstream has rotated by H, in blocks of n: H W H, so that what is merged is H W x.
static std::vector<float> rotated_basis(std::vector<float> basis, int64_t d, int64_t n) {
    for (int i = 0; i < 2 && n > 0; ++i) {
        hadamard_rows(basis, n);
        basis = transposed(basis, d);
    }
    return basis;
}

// The plan's bases are the model's own. Upstream's rotation of quantized types stays, as it makes them lose less.
void llama_kv_cache_minicache::write_bases(const minicache_plan & plan) {
    if (hparams.no_alloc) {
        return;
    }
    int64_t n_k = rotates_k(groups[0].first()) ? 64 : 0;
    while (n_k > 0 && n_embd_head_k_all % (2 * n_k) == 0) {
        n_k *= 2;  // as build_input_k_rot() does
    }
    const int64_t n_v = rotates_v(groups[0].first()) ? 64 : 0;

    const auto set = [](ggml_tensor * dst, const std::vector<float> & x) {
        GGML_ASSERT(x.size() * sizeof(float) == ggml_nbytes(dst));
        ggml_backend_tensor_set(dst, x.data(), 0, ggml_nbytes(dst));
    };
    for (const minicache_group & group : groups) {
        const minicache_plan_group & source = planned(plan, group);
        for (int side = 0; side < 2; ++side) {
            if (group.basis_k[side]) {
                set(group.basis_k[side], rotated_basis(source.basis_k[side], group.d_k, n_k));
            }
            if (group.basis_v[side]) {
                const std::vector<float> basis = rotated_basis(source.basis_v[side], group.d_v, n_v);
                set(group.basis_v[side], basis);
                set(group.basis_o[side], transposed(basis, group.d_v));
            }
        }
    }
}

std::map<ggml_backend_buffer_type_t, size_t> llama_kv_cache_minicache::memory_breakdown() const {
    std::map<ggml_backend_buffer_type_t, size_t> sizes = llama_kv_cache::memory_breakdown();
    for (const auto & [ctx, buf] : codec_bufs) {
        GGML_UNUSED(ctx);
        sizes[ggml_backend_buffer_get_type(buf.get())] += ggml_backend_buffer_get_size(buf.get());
    }
    return sizes;
}

std::string llama_kv_cache_minicache::describe() const {
    if (is_coded()) {
        return format("%zu groups of layers coded, K relative to the last multiple of %d positions, one token in %d retained, "
                      "the latest %d exact, "
                      "other layers K (%s), V (%s), %.2f MiB with them",
            groups.size(), rope_block, block, window, ggml_type_name(cache_type_k), ggml_type_name(cache_type_v),
            total_size() / 1024.0 / 1024.0);
    }
    const std::string how   = mode == LLAMA_MINICACHE_MODE_AVERAGE ? "averaged" : format("merged, t = %g", settings.t);
    const std::string bases = mode == LLAMA_MINICACHE_MODE_ALIGNED ? " in a plan's bases" : "";
    const char *      shift = get_can_shift() ? "" : ", positions can't be shifted";
    return format(
        "%zu pairs %s%s, one token in %d retained, the latest %d exact%s, K (%s), V (%s), %.2f MiB with the plain layers",
        groups.size(), how.c_str(), bases.c_str(), block, window, shift, ggml_type_name(cache_type_k),
        ggml_type_name(cache_type_v), total_size() / 1024.0 / 1024.0);
}

//
// graph
//

int32_t llama_kv_cache_minicache::find_group(int32_t il) const {
    return il >= 0 && (size_t) il < group_of_layer.size() ? group_of_layer[il] : -1;
}

int64_t llama_kv_cache_minicache::get_n_slot() const { return window + ggml_minicache_n_slot(get_size(), block); }

void llama_kv_cache_minicache::set_offsets(const llama_ubatch & ubatch, const slot_info & sinfo) const {
    for (size_t s = 0; s < sinfo.n_stream(); ++s) {
        for (size_t i = 0; i < sinfo.size(); ++i) {
            const llama_pos pos = ubatch.pos[s * sinfo.size() + i];

            offsets[sinfo.strm[s]][sinfo.idxs[s][i]] = rope_block > 0 ? pos % rope_block : pos;
        }
    }
}

void llama_kv_cache_minicache::set_input_cells(ggml_tensor * dst, const slot_info & sinfo) const {
    GGML_ASSERT(ggml_backend_buffer_is_host(dst->buffer));

    const int64_t n_kv     = dst->ne[0];
    const int64_t n_stream = dst->ne[1];

    for (size_t s = 0; s < sinfo.n_stream(); ++s) {
        const uint32_t strm  = sinfo.strm[s];
        const auto &   cells = v_cells[strm];
        auto *         data  = (int32_t *) dst->data + (strm - sinfo.s0) * n_kv;

        for (int64_t i = 0; i < n_kv; ++i) {
            data[i] = cells.is_empty(i) ? GGML_MINICACHE_CELL_EMPTY : GGML_MINICACHE_CELL_MERGED;
        }
        for (size_t i = 0; i < sinfo.size(); ++i) {
            data[sinfo.idxs[s][i]] = (int32_t) i;
        }
        for (int64_t i = 0; i < n_kv && dst->ne[2] == 2; ++i) {
            data[n_stream * n_kv + i] = cells.is_empty(i) ? 0 : base_of(strm, i);
        }
    }
}

void llama_kv_cache_minicache::set_input_bases(ggml_tensor * dst, const slot_info & sinfo) const {
    GGML_ASSERT(ggml_backend_buffer_is_host(dst->buffer));

    for (size_t s = 0; s < sinfo.n_stream(); ++s) {
        for (size_t i = 0; i < sinfo.size(); ++i) {
            ((int32_t *) dst->data)[s * sinfo.size() + i] = base_of(sinfo.strm[s], sinfo.idxs[s][i]);
        }
    }
}

std::vector<int32_t> llama_kv_cache_minicache::read_slots(const minicache_group & group) const {
    std::vector<int32_t> slots(ggml_nelements(group.slots));
    ggml_backend_tensor_get(group.slots, slots.data(), 0, ggml_nbytes(group.slots));
    return slots;
}

//
// updates: copies of streams, and shifts of K
//

bool llama_kv_cache_minicache::get_can_shift() const {
    const bool turned = mode == LLAMA_MINICACHE_MODE_ALIGNED && hparams.rope_type != LLAMA_ROPE_TYPE_NONE;
    const bool bf16   = std::any_of(layers.begin(), layers.end(),
        [&](const kv_layer & layer) { return layer.k->type == GGML_TYPE_BF16 && hparams.has_rope(layer.il); });
    return !turned && !bf16 && llama_kv_cache::get_can_shift();
}

bool llama_kv_cache_minicache::update(llama_context * lctx, bool do_shift, const stream_copy_info & sc_info) {
    if (!sc_info.empty()) {
        llama_synchronize(lctx);
    }
    for (size_t i = 0; i < sc_info.ssrc.size(); ++i) {
        for (const minicache_group & group : groups) {
            for (ggml_tensor * x : group.tensors()) {
                std::vector<uint8_t> stream(x->nb[2]);
                for (int64_t side = 0; side < x->ne[3]; ++side) {
                    const size_t from = side * x->nb[3];
                    ggml_backend_tensor_get(x, stream.data(), from + sc_info.ssrc[i] * x->nb[2], x->nb[2]);
                    ggml_backend_tensor_set(x, stream.data(), from + sc_info.sdst[i] * x->nb[2], x->nb[2]);
                }
            }
        }
        if (is_coded()) {
            offsets[sc_info.sdst[i]] = offsets[sc_info.ssrc[i]];
        }
    }
    // A code keeps K relative to its base, and a shift moves the base alone: where nothing else holds K, nothing is computed.
    if (do_shift && layers.empty() && is_coded() && get_n_slot() == 0) {
        for (uint32_t s = 0; s < n_stream; ++s) {
            v_cells[s].reset_shift();
        }
        do_shift = false;
    }
    return llama_kv_cache::update(lctx, do_shift, sc_info);
}

void llama_kv_cache_minicache::set_input_slot_shift(ggml_tensor * dst, const minicache_group & group) const {
    GGML_ASSERT(ggml_backend_buffer_is_host(dst->buffer));

    const int64_t n_slot = get_n_slot();
    const int64_t n_row  = group.slots->ne[1];

    const std::vector<int32_t> slots = read_slots(group);

    for (uint32_t s = 0; s < n_stream; ++s) {
        for (int64_t i = 0; i < n_slot; ++i) {
            const int32_t cell                      = slots[2 * (s * n_row + i)] - 1;
            ((int32_t *) dst->data)[s * n_slot + i] = cell < 0 || v_cells[s].is_empty(cell) ? 0 : v_cells[s].get_shift(cell);
        }
    }
}

class llm_graph_input_k_shift_minicache : public llm_graph_input_i {
  public:
    llm_graph_input_k_shift_minicache(const llama_kv_cache_minicache * kv) : kv(kv) {}

    void set_input(const llama_ubatch * ubatch) override {
        GGML_UNUSED(ubatch);

        // an input that no layer uses is left unallocated
        if (cell_shift->buffer) {
            kv->set_input_k_shift(cell_shift);
        }
        for (const auto & [group, shift] : slot_shift) {
            kv->set_input_slot_shift(shift, *group);
        }
        if (rot && rot->buffer) {
            kv->set_input_k_rot(rot);
        }
    }

    ggml_tensor * cell_shift;  // I32 [kv_size*n_stream]
    ggml_tensor * rot;         // upstream's rotation or null

    std::vector<std::pair<const minicache_group *, ggml_tensor *>> slot_shift;  // I32 [n_slot*n_stream]

    const llama_kv_cache_minicache * kv;
};

ggml_cgraph * llama_kv_cache_minicache::build_graph_shift(llm_graph_result * res, llama_context * lctx) const {
    // the base class takes for granted that it has a layer
    ggml_cgraph *  gf  = layers.empty() ? res->get_gf() : llama_kv_cache::build_graph_shift(res, lctx);
    ggml_context * ctx = res->get_ctx();

    const auto & cparams = lctx->get_cparams();

    auto inp = std::make_unique<llm_graph_input_k_shift_minicache>(this);

    inp->rot        = build_input_k_rot(ctx);
    inp->cell_shift = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, (int64_t) get_size() * n_stream);
    ggml_set_input(inp->cell_shift);

    // M-RoPE is shifted as NEOX, as upstream does
    const bool is_mrope  = hparams.rope_type == LLAMA_ROPE_TYPE_MROPE || hparams.rope_type == LLAMA_ROPE_TYPE_IMROPE;
    const int  rope_type = is_mrope ? (int) LLAMA_ROPE_TYPE_NEOX : (int) hparams.rope_type;

    // The rotation by a shift is linear and the same for all layers of a group: it turns their common direction as it
    // turns each of them.
    const auto shift_rows = [&](const minicache_group & group, ggml_tensor * k, ggml_tensor * shift) {
        const uint32_t il  = group.first();
        ggml_tensor *  rot = rotates_k(il) ? inp->rot : nullptr;

        ggml_tensor * rows = ggml_reshape_3d(ctx, k, group.d_k, group.n_head_kv, k->ne[1] * k->ne[2]);
        ggml_tensor * cur  = ggml_cast(ctx, rows, GGML_TYPE_F32);
        if (rot) {
            cur = llama_mul_mat_hadamard(ctx, cur, rot);
        }
        cur = ggml_rope_ext(ctx, cur, shift, model.get_rope_factors(cparams, il), hparams.n_rot(il), rope_type,
            cparams.n_ctx_orig_yarn, model.get_rope_freq_base(cparams, il), model.get_rope_freq_scale(cparams, il),
            cparams.yarn_ext_factor, cparams.yarn_attn_factor, cparams.yarn_beta_fast, cparams.yarn_beta_slow);
        if (rot) {
            cur = llama_mul_mat_hadamard(ctx, cur, rot);
        }
        ggml_build_forward_expand(gf, ggml_cpy(ctx, cur, rows));
    };

    for (const minicache_group & group : groups) {
        if (!hparams.has_rope(group.first())) {
            continue;
        }
        if (!group.is_coded()) {
            shift_rows(group, group.dir_k, inp->cell_shift);
        }
        if (get_n_slot() > 0) {
            ggml_tensor * slot_shift = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, get_n_slot() * n_stream);
            ggml_set_input(slot_shift);
            inp->slot_shift.emplace_back(&group, slot_shift);

            for (int32_t side = 0; side < group.n_layer(); ++side) {
                ggml_tensor * pool = group.pool_k;
                shift_rows(group,
                    ggml_view_3d(ctx, pool, pool->ne[0], pool->ne[1], pool->ne[2], pool->nb[1], pool->nb[2], side * pool->nb[3]),
                    slot_shift);
            }
        }
    }

    res->add_input(std::move(inp));

    return gf;
}
