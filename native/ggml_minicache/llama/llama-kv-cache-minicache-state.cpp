#include "llama-impl.h"
#include "llama-io.h"
#include "llama-kv-cache-minicache.h"
#include "llama-minicache-error.h"
#include "llama-minicache-io.h"
#include "minicache-hash.h"
#include "minicache-window.h"

#include <algorithm>
#include <stdexcept>

// A saved state is a header that names the configuration, the number of cells of each stream, and the base class's state, in
// which the groups' rows follow those of the plain layers, stream by stream. The header has its length and checksum, so that a
// state that was cut short or damaged is refused before anything is changed.

static const uint32_t STATE_MAGIC   = 0x564b434d;  // "MCKV"
static const uint32_t STATE_VERSION = 6;

struct state_header {
    uint32_t magic   = STATE_MAGIC;
    uint32_t version = STATE_VERSION;

    int32_t  type_k    = 0;
    int32_t  type_v    = 0;
    int32_t  pool_type = 0;
    int32_t  block     = 0;
    float    t         = 0.0f;
    uint32_t n_group   = 0;

    uint64_t model  = 0;  // its fingerprint; 0 where it was loaded without its weights
    uint64_t groups = 0;  // hash of the layer numbers
    uint64_t plan   = 0;  // the plan's hash, which covers basis matrices and codecs; 0 without a plan
    uint64_t plain  = 0;  // hash of the types of the layers that are not merged

    uint64_t payload_size = 0;
    uint64_t hash         = 0;  // of the header itself, with 0 here, the numbers of cells and the payload

    uint32_t n_stream = 0;
    int32_t  mode     = 0;
    int32_t  window   = 0;
    uint32_t unused   = 0;
};

static state_header header_of(const llama_kv_cache_minicache & kv) {
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
    state_header h;
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

// Says what differs in the configuration, "" if nothing does.
static std::string difference(const state_header & saved, const state_header & own) {
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
    if (saved.window != own.window) {
        return format("a window of %d tokens, here %d", saved.window, own.window);
    }
    if (saved.block + saved.window > 0 && saved.pool_type != own.pool_type) {
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

static uint64_t hash_of(state_header header, const std::vector<uint32_t> & cell_counts, const std::vector<uint8_t> & payload) {
    header.hash = 0;

    uint64_t h = minicache_hash(&header, sizeof(header));
    h          = minicache_hash(cell_counts.data(), cell_counts.size() * sizeof(uint32_t), h);
    return minicache_hash(payload.data(), payload.size(), h);
}

void llama_kv_cache_minicache::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    llama_io_write_vector payload;
    llama_kv_cache::state_write(payload, seq_id, flags);

    std::vector<uint32_t> cell_counts(n_stream, 0);
    for (uint32_t s = 0; s < n_stream; ++s) {
        for (uint32_t i = 0; i < v_cells[s].size(); ++i) {
            cell_counts[s] += !v_cells[s].is_empty(i) && (seq_id == -1 || v_cells[s].seq_has(i, seq_id));
        }
    }
    state_header header = header_of(*this);
    header.payload_size = payload.data.size();
    header.hash         = hash_of(header, cell_counts, payload.data);

    io.write(&header, sizeof(header));
    io.write(cell_counts.data(), cell_counts.size() * sizeof(uint32_t));
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
            throw std::runtime_error(
                format("the saved state has %u tokens, but there is room for %u only", cell_counts[s], room));
        }
    }
}

// Upstream logs the reason of a refusal and returns 0, so it is kept here for llama_minicache_last_error().
void llama_kv_cache_minicache::state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    try {
        const std::vector<uint8_t> payload = read_checked(io, seq_id);
        llama_io_read_vector       reader(payload);
        llama_kv_cache::state_read(reader, seq_id, flags);
    } catch (const std::exception & e) {
        minicache_set_error(e.what());
        throw;
    }
}

void llama_kv_cache_minicache::check_state(llama_io_read_i & io, llama_seq_id seq_id) const { read_checked(io, seq_id); }

std::vector<uint8_t> llama_kv_cache_minicache::read_checked(llama_io_read_i & io, llama_seq_id seq_id) const {
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

    std::vector<uint8_t> payload = minicache_read_payload(io, header.payload_size, total_size());

    if (hash_of(header, cell_counts, payload) != header.hash) {
        throw std::runtime_error("the saved state is damaged: its checksum differs");
    }
    check_room(cell_counts, seq_id);
    return payload;
}

void llama_kv_cache_minicache::state_write_data(llama_io_write_i & io, const cell_ranges_t & cr) const {
    llama_kv_cache::state_write_data(io, cr);

    for (const auto & [from, to] : cr.data) {
        if (is_coded()) {
            io.write(offsets[cr.strm].data() + from, (to - from) * sizeof(int32_t));
        }
    }

    for (const minicache_group & group : groups) {
        for (ggml_tensor * x : group.cell_tensors()) {
            for (const auto & [from, to] : cr.data) {
                io.write_tensor(x, cr.strm * x->nb[2] + from * x->nb[1], (to - from) * x->nb[1]);
            }
        }
        if (get_n_slot() > 0) {
            write_retained(io, group, cr);
        }
    }
}

// A retained token in a saved state: its number among the saved cells, its distance, and whether the window holds it.
struct saved_slot {
    uint32_t token;
    int32_t  distance;  // f32 bits
    int32_t  in_window;
};

// The slots that may hold a cell: its block's and the window's; -1 if there is no such slot.
struct cell_slots {
    int64_t slot[2];
};

static cell_slots slots_of(uint32_t cell, int32_t window, int32_t block) {
    return { { block > 0 ? window + (int64_t) (cell / block) : -1, window > 0 ? minicache_window_slot(cell, window) : -1 } };
}

void llama_kv_cache_minicache::write_retained(
    llama_io_write_i & io, const minicache_group & group, const cell_ranges_t & cr) const {
    const std::vector<int32_t> all   = read_slots(group);
    const int32_t *            slots = all.data() + cr.strm * 2 * group.slots->ne[1];

    std::vector<saved_slot> saved;
    std::vector<uint32_t>   rows;

    uint32_t token = 0;
    for (const auto & [from, to] : cr.data) {
        for (uint32_t cell = from; cell < to; ++cell, ++token) {
            for (const int in_window : { 0, 1 }) {
                const int64_t slot = slots_of(cell, window, block).slot[in_window];
                if (slot >= 0 && slots[2 * slot] == (int32_t) cell + 1) {
                    saved.push_back({ token, slots[2 * slot + 1], in_window });
                    rows.push_back(slot);
                }
            }
        }
    }

    const uint32_t n_saved = saved.size();
    io.write(&n_saved, sizeof(n_saved));
    io.write(saved.data(), saved.size() * sizeof(saved_slot));

    for (const uint32_t row : rows) {
        for (int32_t side = 0; side < group.n_layer(); ++side) {
            for (ggml_tensor * x : group.pools()) {
                io.write_tensor(x, side * x->nb[3] + cr.strm * x->nb[2] + row * x->nb[1], x->nb[1]);
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

    if (is_coded()) {
        std::vector<int32_t> saved(cell_count);
        io.read(saved.data(), saved.size() * sizeof(int32_t));
        for (uint32_t i = 0; i < cell_count; ++i) {
            offsets[strm][cells[i]] = saved[i];
        }
    }
    for (const minicache_group & group : groups) {
        for (ggml_tensor * x : group.cell_tensors()) {
            // runs of neighbouring cells are read in one piece
            for (uint32_t from = 0, to = 0; from < cell_count; from = to) {
                for (to = from + 1; to < cell_count && cells[to] == cells[to - 1] + 1;) {
                    ++to;
                }
                io.read_tensor(x, strm * x->nb[2] + cells[from] * x->nb[1], (to - from) * x->nb[1]);
            }
        }
        if (get_n_slot() > 0) {
            read_retained(io, group, strm, sinfo);
        }
    }
    return true;
}

// The tokens may be restored to other cells than they were saved from, so two retained tokens can meet in one block: the more
// distant one stays, as always, and the other one falls back to its merged entry. In the window the later token stays.
void llama_kv_cache_minicache::read_retained(
    llama_io_read_i & io, const minicache_group & group, uint32_t strm, const slot_info & sinfo) {
    const auto & cells = sinfo.idxs[0];

    std::vector<int32_t> all   = read_slots(group);
    int32_t *            slots = all.data() + strm * 2 * group.slots->ne[1];

    for (const uint32_t cell : cells) {
        for (const int64_t slot : slots_of(cell, window, block).slot) {
            const int32_t held = slot < 0 ? -1 : slots[2 * slot] - 1;
            if (held == (int32_t) cell || (held >= 0 && v_cells[strm].is_empty(held))) {
                slots[2 * slot] = 0;
            }
        }
    }

    uint32_t n_saved;
    io.read(&n_saved, sizeof(n_saved));

    std::vector<saved_slot> saved(std::min<size_t>(n_saved, 2 * cells.size()));
    io.read(saved.data(), saved.size() * sizeof(saved_slot));

    std::vector<uint8_t> row;
    for (const saved_slot & s : saved) {
        if (s.token >= cells.size()) {
            throw std::runtime_error("the saved state is damaged: it retains a token it does not have");
        }
        const uint32_t cell   = cells[s.token];
        const int64_t  i_slot = slots_of(cell, window, block).slot[s.in_window ? 1 : 0];
        if (i_slot < 0) {
            throw std::runtime_error("the saved state is damaged: it retains a token where nothing is retained");
        }
        int32_t * slot = slots + 2 * i_slot;

        float distance;
        float distance_held;
        memcpy(&distance, &s.distance, sizeof(distance));
        memcpy(&distance_held, &slot[1], sizeof(distance_held));

        const bool keep = s.in_window || slot[0] == 0 || distance > distance_held;
        if (keep) {
            slot[0] = (int32_t) cell + 1;
            slot[1] = s.distance;
        }
        for (int32_t side = 0; side < group.n_layer(); ++side) {
            for (ggml_tensor * x : group.pools()) {
                row.resize(x->nb[1]);
                io.read(row.data(), row.size());
                if (keep) {
                    ggml_backend_tensor_set(x, row.data(), side * x->nb[3] + strm * x->nb[2] + i_slot * x->nb[1], row.size());
                }
            }
        }
    }

    ggml_backend_tensor_set(group.slots, slots, strm * group.slots->nb[2], group.slots->nb[2]);
}
