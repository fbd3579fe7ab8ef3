#include "llama-kv-cache-minicache.h"

#include "ggml-minicache.h"
#include "llama-context.h"
#include "llama-cparams.h"
#include "llama-impl.h"
#include "llama-io.h"
#include "llama-minicache-error.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <stdexcept>

std::vector<ggml_tensor *> minicache_pair::tensors() const {
    std::vector<ggml_tensor *> all = { dir_k, dir_v, mag, slots };
    for (int side = 0; side < 2; ++side) {
        if (pool_k[side]) {
            all.push_back(pool_k[side]);
            all.push_back(pool_v[side]);
        }
    }
    return all;
}

//
// creation
//

static void check_types(const llama_model & model, const llama_memory_params & params, const minicache_settings & settings) {
    for (const ggml_type type : { params.type_k, params.type_v }) {
        switch (type) {
            case GGML_TYPE_F16:
            case GGML_TYPE_BF16:
            case GGML_TYPE_Q8_0:
            case GGML_TYPE_Q5_0:
            case GGML_TYPE_Q5_1:
            case GGML_TYPE_Q4_0:
            case GGML_TYPE_Q4_1:
            case GGML_TYPE_IQ4_NL:
                break;
            default:
                throw std::invalid_argument(std::string("cache type ") + ggml_type_name(type) +
                                            " is not supported: use f16, bf16, q8_0, q5_0, q5_1, q4_0, q4_1 or iq4_nl");
        }
    }
    if (settings.retain_block() == 0 || settings.pool_type == GGML_TYPE_COUNT) {
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
    return params.ctx_type == LLAMA_CONTEXT_TYPE_DEFAULT ? minicache_settings_requested() : std::nullopt;
}

llama_kv_cache_minicache * llama_kv_cache_minicache::create(const llama_model & model, const llama_memory_params & params,
    const llama_cparams & cparams, const layer_filter_cb & filter) {
    const auto settings = requested(params);

    if (!settings) {
        return nullptr;
    }
    try {
        if (!cparams.flash_attn) {
            throw std::invalid_argument("merged layers need flash attention: do not switch it off");
        }
        check_types(model, params, *settings);

        const minicache_pairing pairing = minicache_make_pairing(model, cparams, cparams.offload_kqv, *settings);
        if (pairing.pairs.empty()) {
            LLAMA_LOG_WARN("%s: no two layers of this model can be merged, its cache is a plain one\n", __func__);
        }
        return new llama_kv_cache_minicache(model, params, cparams, filter, *settings, pairing);
    } catch (const std::exception & e) {
        minicache_set_error(e.what());
        throw;
    }
}

void llama_kv_cache_minicache::check_created(
    llama_memory_i * created, const llama_model & model, const llama_memory_params & params) {
    std::unique_ptr<llama_memory_i> owned(created);

    const auto settings = requested(params);

    if (settings && !dynamic_cast<llama_kv_cache_minicache *>(created)) {
        const std::string message = minicache_why_not_model(model);
        if (settings->strict) {
            minicache_set_error(message);
            throw std::invalid_argument(message);
        }
        LLAMA_LOG_WARN("%s: MiniCache is off: %s\n", __func__, message.c_str());
    }
    owned.release();
}

llama_kv_cache_minicache::llama_kv_cache_minicache(const llama_model & model, const llama_memory_params & params,
    const llama_cparams & cparams, const layer_filter_cb & filter, const minicache_settings & settings,
    const minicache_pairing & pairing) :
    llama_kv_cache(
        model, model.hparams, params.type_k, params.type_v, /*v_trans =*/false, cparams.offload_kqv, cparams.kv_unified,
        cparams.n_ctx_seq, cparams.n_seq_max, /*n_pad =*/1, model.hparams.n_swa, model.hparams.swa_type, nullptr,
        [&](int32_t il) { return (!filter || filter(il)) && ((size_t) il >= pairing.layers.size() || !pairing.merged(il)); }, nullptr,
        nullptr),
    settings(settings), pairing(pairing), cache_type_k(params.type_k), cache_type_v(params.type_v), block(settings.retain_block()),
    pair_of_layer(pairing.layers.size(), -1) {
    for (const auto & [a, b] : pairing.pairs) {
        pair_of_layer[a] = pairs.size();
        pair_of_layer[b] = pairs.size();

        minicache_pair pair = {};
        pair.il_a           = a;
        pair.il_b           = b;
        pair.d_k            = hparams.n_embd_head_k(a);
        pair.d_v            = hparams.n_embd_head_v(a);
        pair.n_head_kv      = hparams.n_head_kv(a);
        pairs.push_back(pair);
    }
    allocate(cparams.offload_kqv);
    init_rotation();

    LLAMA_LOG_INFO("%s: %s\n", __func__, describe().c_str());
}

// whether the device's backend has the op; any other runs it on the CPU, so its pairs are kept there
static bool has_minicache_op(ggml_backend_dev_t dev) {
    if (ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU) {
        return true;
    }
    ggml_init_params params = { /*.mem_size =*/8 * ggml_tensor_overhead(), /*.mem_buffer =*/nullptr, /*.no_alloc =*/true };
    ggml_context_ptr ctx{ ggml_init(params) };

    ggml_tensor * kv = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 128, 1);
    return ggml_backend_dev_supports_op(dev, ggml_minicache_merge(ctx.get(), kv, kv, { 64, 64, 1, 0.5f }));
}

void llama_kv_cache_minicache::allocate(bool offload) {
    std::map<ggml_backend_buffer_type_t, ggml_context_ptr> contexts;

    bool told = false;

    for (minicache_pair & pair : pairs) {
        ggml_backend_buffer_type_t buft = ggml_backend_cpu_buffer_type();
        if (offload) {
            ggml_backend_dev_t dev = model.dev_layer(pair.il_a);
            if (has_minicache_op(dev)) {
                buft = ggml_backend_dev_buffer_type(dev);
            } else if (!told) {
                LLAMA_LOG_WARN("%s: %s has no MiniCache kernels: merged layers attend on the CPU, which is SLOW for a model "
                               "on that device\n",
                    __func__, ggml_backend_dev_name(dev));
                told = true;
            }
        }

        ggml_context_ptr & ctx = contexts[buft];
        if (!ctx) {
            ctx.reset(ggml_init({ /*.mem_size =*/8 * pairs.size() * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true }));
        }

        const int64_t kv_size = get_size();
        const int64_t n_slot  = get_n_slot();

        const auto new_tensor = [&](const char * name, ggml_type type, int64_t row, int64_t n) {
            ggml_tensor * x = ggml_new_tensor_3d(ctx.get(), type, row, n, n_stream);
            ggml_format_name(x, "minicache_%s_l%u", name, pair.il_a);
            return x;
        };

        const int64_t n_embd_k = pair.d_k * pair.n_head_kv;
        const int64_t n_embd_v = pair.d_v * pair.n_head_kv;

        pair.dir_k = new_tensor("dir_k", cache_type_k, n_embd_k, kv_size);
        pair.dir_v = new_tensor("dir_v", cache_type_v, n_embd_v, kv_size);
        pair.mag   = new_tensor("mag", GGML_TYPE_F16, 4 * pair.n_head_kv, kv_size);
        pair.slots = new_tensor("slots", GGML_TYPE_I32, 2, n_slot + GGML_MINICACHE_SLOT_STATS);

        for (int side = 0; side < 2 && n_slot > 0; ++side) {
            const bool own = settings.pool_type == GGML_TYPE_COUNT;
            pair.pool_k[side] =
                new_tensor(side ? "pool_k_b" : "pool_k_a", own ? cache_type_k : settings.pool_type, n_embd_k, n_slot);
            pair.pool_v[side] =
                new_tensor(side ? "pool_v_b" : "pool_v_a", own ? cache_type_v : settings.pool_type, n_embd_v, n_slot);
        }
    }

    for (auto & [buft, ctx] : contexts) {
        ggml_backend_buffer_t buf;
        if (hparams.no_alloc) {
            buf = ggml_backend_buft_alloc_buffer(buft, /*size =*/0);
            for (ggml_tensor * t = ggml_get_first_tensor(ctx.get()); t; t = ggml_get_next_tensor(ctx.get(), t)) {
                t->buffer = buf;
            }
        } else {
            buf = ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), buft);
        }
        if (!buf) {
            throw std::runtime_error(format("failed to allocate %.2f MiB for merged layers on %s",
                ggml_backend_alloc_ctx_tensors_from_buft_size(ctx.get(), buft) / 1024.0 / 1024.0, ggml_backend_buft_name(buft)));
        }
        LLAMA_LOG_INFO("%s: %10s KV buffer size = %8.2f MiB\n", __func__, ggml_backend_buffer_name(buf),
            ggml_backend_buffer_get_size(buf) / 1024.0 / 1024.0);

        ggml_backend_buffer_clear(buf, 0);
        ctxs_bufs.emplace_back(std::move(ctx), buf);
    }
}

// The base class derives upstream's Hadamard rotation from its own layers. Where every layer is merged it has none, and the
// rotation is set up here, by the same rule.
void llama_kv_cache_minicache::init_rotation() {
    if (!layers.empty() || pairs.empty()) {
        return;
    }
    const char * env     = getenv("LLAMA_ATTN_ROT_DISABLE");
    const bool   disable = env && atoi(env) != 0;

    n_embd_head_k_all = pairs[0].d_k;
    n_embd_head_v_all = pairs[0].d_v;
    attn_rot_k        = !disable && ggml_is_quantized(cache_type_k) && n_embd_head_k_all % 64 == 0;
    attn_rot_v        = !disable && ggml_is_quantized(cache_type_v) && n_embd_head_v_all % 64 == 0;

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

std::string llama_kv_cache_minicache::describe() const {
    return format("%zu pairs merged, t = %g, one token in %d retained, K (%s), V (%s), %.2f MiB with the plain layers",
        pairs.size(), settings.t, block, ggml_type_name(cache_type_k), ggml_type_name(cache_type_v),
        total_size() / 1024.0 / 1024.0);
}

//
// graph
//

int32_t llama_kv_cache_minicache::find_pair(int32_t il) const {
    return il >= 0 && (size_t) il < pair_of_layer.size() ? pair_of_layer[il] : -1;
}

int64_t llama_kv_cache_minicache::get_n_slot() const { return ggml_minicache_n_slot(get_size(), block); }

void llama_kv_cache_minicache::set_input_cells(ggml_tensor * dst, const slot_info & sinfo) const {
    GGML_ASSERT(ggml_backend_buffer_is_host(dst->buffer));

    const int64_t n_kv = dst->ne[0];

    for (size_t s = 0; s < sinfo.n_stream(); ++s) {
        const auto & cells = v_cells[sinfo.strm[s]];
        auto *       data  = (int32_t *) dst->data + (sinfo.strm[s] - sinfo.s0) * n_kv;

        for (int64_t i = 0; i < n_kv; ++i) {
            data[i] = cells.is_empty(i) ? GGML_MINICACHE_CELL_EMPTY : GGML_MINICACHE_CELL_MERGED;
        }
        for (size_t i = 0; i < sinfo.size(); ++i) {
            data[sinfo.idxs[s][i]] = (int32_t) i;
        }
    }
}

std::vector<int32_t> llama_kv_cache_minicache::read_slots(const minicache_pair & pair) const {
    std::vector<int32_t> slots(ggml_nelements(pair.slots));
    ggml_backend_tensor_get(pair.slots, slots.data(), 0, ggml_nbytes(pair.slots));
    return slots;
}

//
// updates: copies of streams, and shifts of K
//

bool llama_kv_cache_minicache::update(llama_context * lctx, bool do_shift, const stream_copy_info & sc_info) {
    if (!sc_info.empty()) {
        llama_synchronize(lctx);
    }
    for (size_t i = 0; i < sc_info.ssrc.size(); ++i) {
        for (const minicache_pair & pair : pairs) {
            for (ggml_tensor * x : pair.tensors()) {
                std::vector<uint8_t> stream(x->nb[2]);
                ggml_backend_tensor_get(x, stream.data(), sc_info.ssrc[i] * x->nb[2], x->nb[2]);
                ggml_backend_tensor_set(x, stream.data(), sc_info.sdst[i] * x->nb[2], x->nb[2]);
            }
        }
    }
    return llama_kv_cache::update(lctx, do_shift, sc_info);
}

void llama_kv_cache_minicache::set_input_slot_shift(ggml_tensor * dst, const minicache_pair & pair) const {
    GGML_ASSERT(ggml_backend_buffer_is_host(dst->buffer));

    const int64_t n_slot = get_n_slot();
    const int64_t n_row  = pair.slots->ne[1];

    const std::vector<int32_t> slots = read_slots(pair);

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
        for (size_t i = 0; i < slot_shift.size(); ++i) {
            kv->set_input_slot_shift(slot_shift[i], kv->get_pair(i));
        }
        if (rot && rot->buffer) {
            kv->set_input_k_rot(rot);
        }
    }

    ggml_tensor *              cell_shift;  // I32 [kv_size*n_stream]
    std::vector<ggml_tensor *> slot_shift;  // I32 [n_slot*n_stream] per pair
    ggml_tensor *              rot;         // upstream's rotation or null

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

    // The rotation by a shift is linear and the same for both layers of a pair: it turns their common direction as it
    // turns each of them.
    const auto shift_rows = [&](const minicache_pair & pair, ggml_tensor * k, ggml_tensor * shift) {
        const uint32_t il = pair.il_a;

        ggml_tensor * rows = ggml_reshape_3d(ctx, k, pair.d_k, pair.n_head_kv, k->ne[1] * k->ne[2]);
        ggml_tensor * cur  = ggml_cast(ctx, rows, GGML_TYPE_F32);
        if (inp->rot) {
            cur = llama_mul_mat_hadamard(ctx, cur, inp->rot);
        }
        cur = ggml_rope_ext(ctx, cur, shift, model.get_rope_factors(cparams, il), hparams.n_rot(il), rope_type,
            cparams.n_ctx_orig_yarn, model.get_rope_freq_base(cparams, il), model.get_rope_freq_scale(cparams, il),
            cparams.yarn_ext_factor, cparams.yarn_attn_factor, cparams.yarn_beta_fast, cparams.yarn_beta_slow);
        if (inp->rot) {
            cur = llama_mul_mat_hadamard(ctx, cur, inp->rot);
        }
        ggml_build_forward_expand(gf, ggml_cpy(ctx, cur, rows));
    };

    for (const minicache_pair & pair : pairs) {
        if (!hparams.has_rope(pair.il_a)) {
            continue;
        }
        shift_rows(pair, pair.dir_k, inp->cell_shift);

        if (block > 0) {
            ggml_tensor * slot_shift = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, get_n_slot() * n_stream);
            ggml_set_input(slot_shift);
            inp->slot_shift.push_back(slot_shift);

            shift_rows(pair, pair.pool_k[0], slot_shift);
            shift_rows(pair, pair.pool_k[1], slot_shift);
        }
    }

    res->add_input(std::move(inp));

    return gf;
}

//
// state
//

// A saved state is a header that names the configuration, the number of cells of each stream, and the base class's state,
// into which the pairs' rows are woven stream by stream. Its length and checksum are in the header: what is cut short or
// damaged is refused before anything is changed.

static const uint32_t STATE_MAGIC   = 0x564b434d;  // "MCKV"
static const uint32_t STATE_VERSION = 1;

struct state_header {
    uint32_t magic   = STATE_MAGIC;
    uint32_t version = STATE_VERSION;

    int32_t  type_k    = 0;
    int32_t  type_v    = 0;
    int32_t  pool_type = 0;
    int32_t  block     = 0;
    float    t         = 0.0f;
    uint32_t n_pair    = 0;

    uint64_t pairs = 0;  // hash of the layer numbers
    uint64_t basis = 0;  // hash of the bases that directions are kept in; 0: the layers' own

    uint64_t payload_size = 0;
    uint64_t payload_hash = 0;

    uint32_t n_stream = 0;
    uint32_t unused   = 0;
};

// FNV-1a over words of 8 bytes
static uint64_t hash_of(const uint8_t * data, size_t size) {
    uint64_t h = 0xcbf29ce484222325ull;
    for (size_t i = 0; i < size; i += 8) {
        uint64_t word = 0;
        memcpy(&word, data + i, std::min<size_t>(8, size - i));
        h = (h ^ word) * 0x100000001b3ull;
        h ^= h >> 32;
    }
    return h;
}

class llama_io_write_vector : public llama_io_write_i {
  public:
    void write(const void * src, size_t size) override {
        data.insert(data.end(), (const uint8_t *) src, (const uint8_t *) src + size);
    }

    void write_tensor(ggml_tensor * tensor, size_t offset, size_t size) override {
        data.resize(data.size() + size);
        ggml_backend_tensor_get(tensor, data.data() + data.size() - size, offset, size);
    }

    size_t n_bytes() override { return data.size(); }

    std::vector<uint8_t> data;
};

class llama_io_read_vector : public llama_io_read_i {
  public:
    llama_io_read_vector(const std::vector<uint8_t> & data) : data(data) {}

    void read(void * dst, size_t size) override { memcpy(dst, take(size), size); }

    void read_tensor(ggml_tensor * tensor, size_t offset, size_t size) override {
        ggml_backend_tensor_set(tensor, take(size), offset, size);
    }

    size_t n_bytes() override { return pos; }

  private:
    const uint8_t * take(size_t size) {
        if (size > data.size() - pos) {
            throw std::runtime_error("the saved state ends too early");
        }
        pos += size;
        return data.data() + pos - size;
    }

    const std::vector<uint8_t> & data;
    size_t                       pos = 0;
};

static state_header header_of(const llama_kv_cache_minicache & kv) {
    std::vector<uint32_t> layers;
    for (const minicache_pair & pair : kv.get_pairs()) {
        layers.push_back(pair.il_a);
        layers.push_back(pair.il_b);
    }
    state_header h;
    h.type_k    = kv.get_type_k();
    h.type_v    = kv.get_type_v();
    h.pool_type = kv.get_settings().pool_type;
    h.block     = kv.get_block();
    h.t         = kv.get_settings().t;
    h.n_pair    = kv.get_pairs().size();
    h.pairs     = hash_of((const uint8_t *) layers.data(), layers.size() * sizeof(uint32_t));
    h.n_stream  = kv.get_n_stream();
    return h;
}

// what of the configuration differs, "" if nothing
static std::string difference(const state_header & saved, const state_header & own) {
    const auto type_name = [](int32_t type) {
        return type >= 0 && type < GGML_TYPE_COUNT ? ggml_type_name((ggml_type) type) : "the cache's";
    };
    if (saved.n_pair != own.n_pair || saved.pairs != own.pairs) {
        return format("%u pairs of layers, here %u, or not the same ones", saved.n_pair, own.n_pair);
    }
    if (saved.type_k != own.type_k || saved.type_v != own.type_v) {
        return format("cache types %s and %s, here %s and %s", type_name(saved.type_k), type_name(saved.type_v),
            type_name(own.type_k), type_name(own.type_v));
    }
    if (saved.t != own.t) {
        return format("t = %g, here %g", saved.t, own.t);
    }
    if (saved.block != own.block) {
        return format("one token in %d retained, here one in %d", saved.block, own.block);
    }
    if (saved.block > 0 && saved.pool_type != own.pool_type) {
        return format("pool type %s, here %s", type_name(saved.pool_type), type_name(own.pool_type));
    }
    if (saved.basis != own.basis) {
        return "another plan's bases";
    }
    if (saved.n_stream != own.n_stream) {
        return format("%u streams, here %u", saved.n_stream, own.n_stream);
    }
    return "";
}

void llama_kv_cache_minicache::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    llama_io_write_vector payload;
    llama_kv_cache::state_write(payload, seq_id, flags);

    state_header header = header_of(*this);
    header.payload_size = payload.data.size();
    header.payload_hash = hash_of(payload.data.data(), payload.data.size());
    io.write(&header, sizeof(header));

    for (uint32_t s = 0; s < n_stream; ++s) {
        uint32_t n = 0;
        for (uint32_t i = 0; i < v_cells[s].size(); ++i) {
            n += !v_cells[s].is_empty(i) && (seq_id == -1 || v_cells[s].seq_has(i, seq_id));
        }
        io.write(&n, sizeof(n));
    }

    io.write(payload.data.data(), payload.data.size());
}

void llama_kv_cache_minicache::check_room(const std::vector<uint32_t> & cell_counts, llama_seq_id seq_id) const {
    for (uint32_t s = 0; s < n_stream; ++s) {
        const auto & cells = v_cells[seq_id == -1 ? s : seq_to_stream[seq_id]];

        uint32_t room = 0;
        for (uint32_t i = 0; i < cells.size(); ++i) {
            room += seq_id == -1 || cells.is_empty(i) || (cells.seq_has(i, seq_id) && cells.seq_count(i) == 1);
        }
        if (cell_counts[s] > room) {
            throw std::runtime_error(format("the saved state has %u tokens, there is room for %u", cell_counts[s], room));
        }
    }
}

void llama_kv_cache_minicache::state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    state_header header;
    io.read(&header, sizeof(header));

    if (header.magic != STATE_MAGIC || header.version != STATE_VERSION) {
        throw std::runtime_error("the saved state is not of a MiniCache context of this version");
    }
    const std::string differs = difference(header, header_of(*this));
    if (!differs.empty()) {
        throw std::runtime_error("the saved state is of another configuration: " + differs);
    }

    std::vector<uint32_t> cell_counts(n_stream);
    io.read(cell_counts.data(), cell_counts.size() * sizeof(uint32_t));

    // no whole state is larger than all there is to save; a damaged length must not be allocated
    if (header.payload_size > 2 * total_size() + ((size_t) 1 << 30)) {
        throw std::runtime_error("the saved state is damaged: its length makes no sense");
    }
    std::vector<uint8_t> payload(header.payload_size);
    io.read(payload.data(), payload.size());

    if (hash_of(payload.data(), payload.size()) != header.payload_hash) {
        throw std::runtime_error("the saved state is damaged: its checksum differs");
    }
    check_room(cell_counts, seq_id);

    llama_io_read_vector reader(payload);
    llama_kv_cache::state_read(reader, seq_id, flags);
}

void llama_kv_cache_minicache::state_write_data(llama_io_write_i & io, const cell_ranges_t & cr) const {
    llama_kv_cache::state_write_data(io, cr);

    for (const minicache_pair & pair : pairs) {
        for (ggml_tensor * x : { pair.dir_k, pair.dir_v, pair.mag }) {
            for (const auto & [from, to] : cr.data) {
                io.write_tensor(x, cr.strm * x->nb[2] + from * x->nb[1], (to - from) * x->nb[1]);
            }
        }
        if (block > 0) {
            write_retained(io, pair, cr);
        }
    }
}

// a retained token in a saved state: its number among the saved cells, and its distance
struct saved_slot {
    uint32_t token;
    int32_t  distance;  // f32 bits
};

void llama_kv_cache_minicache::write_retained(
    llama_io_write_i & io, const minicache_pair & pair, const cell_ranges_t & cr) const {
    const std::vector<int32_t> all   = read_slots(pair);
    const int32_t *            slots = all.data() + cr.strm * 2 * pair.slots->ne[1];

    std::vector<saved_slot> saved;
    std::vector<uint32_t>   rows;

    uint32_t token = 0;
    for (const auto & [from, to] : cr.data) {
        for (uint32_t cell = from; cell < to; ++cell, ++token) {
            const uint32_t slot = cell / block;
            if (slots[2 * slot] == (int32_t) cell + 1) {
                saved.push_back({ token, slots[2 * slot + 1] });
                rows.push_back(slot);
            }
        }
    }

    const uint32_t n_saved = saved.size();
    io.write(&n_saved, sizeof(n_saved));
    io.write(saved.data(), saved.size() * sizeof(saved_slot));

    for (const uint32_t row : rows) {
        for (int side = 0; side < 2; ++side) {
            for (ggml_tensor * x : { pair.pool_k[side], pair.pool_v[side] }) {
                io.write_tensor(x, cr.strm * x->nb[2] + row * x->nb[1], x->nb[1]);
            }
        }
    }
}

bool llama_kv_cache_minicache::state_read_data(
    llama_io_read_i & io, uint32_t strm, uint32_t cell_count, const slot_info & sinfo) {
    if (!llama_kv_cache::state_read_data(io, strm, cell_count, sinfo)) {
        return false;
    }

    const auto & cells = sinfo.idxs[0];

    for (const minicache_pair & pair : pairs) {
        for (ggml_tensor * x : { pair.dir_k, pair.dir_v, pair.mag }) {
            // whole runs of neighbouring cells at once
            for (uint32_t from = 0, to = 0; from < cell_count; from = to) {
                for (to = from + 1; to < cell_count && cells[to] == cells[to - 1] + 1;) {
                    ++to;
                }
                io.read_tensor(x, strm * x->nb[2] + cells[from] * x->nb[1], (to - from) * x->nb[1]);
            }
        }
        if (block > 0) {
            read_retained(io, pair, strm, sinfo);
        }
    }
    return true;
}

// The cells may be others than those saved, so that two retained tokens can meet in one block: the more distant one stays,
// as ever, and the other falls back to its merged entry.
void llama_kv_cache_minicache::read_retained(
    llama_io_read_i & io, const minicache_pair & pair, uint32_t strm, const slot_info & sinfo) {
    const auto & cells = sinfo.idxs[0];

    std::vector<int32_t> all   = read_slots(pair);
    int32_t *            slots = all.data() + strm * 2 * pair.slots->ne[1];

    for (const uint32_t cell : cells) {
        const int32_t held = slots[2 * (cell / block)] - 1;
        if (held == (int32_t) cell || (held >= 0 && v_cells[strm].is_empty(held))) {
            slots[2 * (cell / block)] = 0;
        }
    }

    uint32_t n_saved;
    io.read(&n_saved, sizeof(n_saved));

    std::vector<saved_slot> saved(std::min<size_t>(n_saved, cells.size()));
    io.read(saved.data(), saved.size() * sizeof(saved_slot));

    std::vector<uint8_t> row;
    for (const saved_slot & s : saved) {
        if (s.token >= cells.size()) {
            throw std::runtime_error("the saved state is damaged: it retains a token it does not have");
        }
        const uint32_t cell = cells[s.token];
        int32_t *      slot = slots + 2 * (cell / block);

        float distance;
        float distance_held;
        memcpy(&distance, &s.distance, sizeof(distance));
        memcpy(&distance_held, &slot[1], sizeof(distance_held));

        const bool keep = slot[0] == 0 || distance > distance_held;
        if (keep) {
            slot[0] = (int32_t) cell + 1;
            slot[1] = s.distance;
        }
        for (int side = 0; side < 2; ++side) {
            for (ggml_tensor * x : { pair.pool_k[side], pair.pool_v[side] }) {
                row.resize(x->nb[1]);
                io.read(row.data(), row.size());
                if (keep) {
                    ggml_backend_tensor_set(x, row.data(), strm * x->nb[2] + cell / block * x->nb[1], row.size());
                }
            }
        }
    }

    ggml_backend_tensor_set(pair.slots, slots, strm * pair.slots->nb[2], pair.slots->nb[2]);
}
