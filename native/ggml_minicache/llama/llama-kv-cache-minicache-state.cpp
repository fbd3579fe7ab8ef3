#include "llama-impl.h"
#include "llama-io.h"
#include "llama-kv-cache-minicache.h"
#include "llama-minicache-error.h"
#include "llama-minicache-io.h"
#include "llama-minicache-packing.h"
#include "llama-minicache-state-header.h"
#include "minicache-window.h"

#include <algorithm>
#include <stdexcept>

// A saved state is a header (llama-minicache-state-header.h), the number of cells of each stream, and the base class's state, in
// which the groups' rows follow those of the plain layers, stream by stream, packed (llama-minicache-packing.h).

namespace {
// Writes a payload and keeps where the rows of coded groups are in it.
class rows_writer : public llama_io_write_vector {
  public:
    std::vector<minicache_code_rows> rows;
};
}  // namespace

static std::vector<minicache_group_layouts> layouts_of(const std::vector<minicache_group> & groups) {
    std::vector<minicache_group_layouts> layouts;
    for (const minicache_group & group : groups) {
        layouts.push_back(group.layouts);
    }
    return layouts;
}

void llama_kv_cache_minicache::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    rows_writer raw;
    llama_kv_cache::state_write(raw, seq_id, flags);
    const std::vector<uint8_t> payload = minicache_pack(raw.data, raw.rows, layouts_of(groups));

    std::vector<uint32_t> cell_counts(n_stream, 0);
    for (uint32_t s = 0; s < n_stream; ++s) {
        for (uint32_t i = 0; i < v_cells[s].size(); ++i) {
            cell_counts[s] += !v_cells[s].is_empty(i) && (seq_id == -1 || v_cells[s].seq_has(i, seq_id));
        }
    }
    minicache_state_header header = minicache_state_header_of(*this);

    header.payload_size = payload.size();
    header.hash         = minicache_state_hash(header, cell_counts, payload);

    io.write(&header, sizeof(header));
    io.write(cell_counts.data(), cell_counts.size() * sizeof(uint32_t));
    io.write(payload.data(), payload.size());
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
    minicache_state_header header;
    io.read(&header, sizeof(header));

    if (header.magic != MINICACHE_STATE_MAGIC || header.version != MINICACHE_STATE_VERSION) {
        throw std::runtime_error("the saved state is not of a MiniCache context of this version");
    }
    const std::string differs = minicache_state_difference(header, minicache_state_header_of(*this));
    if (!differs.empty()) {
        throw std::runtime_error("the saved state is of another configuration: " + differs);
    }

    std::vector<uint32_t> cell_counts(n_stream);
    io.read(cell_counts.data(), cell_counts.size() * sizeof(uint32_t));

    const size_t               max_size = minicache_max_payload(total_size());
    const std::vector<uint8_t> packed   = minicache_read_payload(io, header.payload_size, max_size);

    if (minicache_state_hash(header, cell_counts, packed) != header.hash) {
        throw std::runtime_error("the saved state is damaged: its checksum differs");
    }
    check_room(cell_counts, seq_id);
    return minicache_unpack(packed, layouts_of(groups), max_size);
}

void llama_kv_cache_minicache::state_write_data(llama_io_write_i & io, const cell_ranges_t & cr) const {
    llama_kv_cache::state_write_data(io, cr);

    for (const auto & [from, to] : cr.data) {
        if (is_coded()) {
            io.write(offsets[cr.strm].data() + from, (to - from) * sizeof(int32_t));
        }
    }

    uint32_t n_token = 0;
    for (const auto & [from, to] : cr.data) {
        n_token += to - from;
    }
    auto * const packed = dynamic_cast<rows_writer *>(&io);
    for (size_t ig = 0; ig < groups.size(); ++ig) {
        const minicache_group & group = groups[ig];
        for (ggml_tensor * x : group.cell_tensors()) {
            if (packed && group.is_coded() && n_token > 0) {
                packed->rows.push_back({ io.n_bytes(), n_token, (uint16_t) ig, x == group.dir_v });
            }
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
