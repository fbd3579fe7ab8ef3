#include "llama-memory-minicache-state.h"

#include "llama-impl.h"
#include "llama-memory-recurrent.h"
#include "minicache-hash.h"

#include <algorithm>

static const uint32_t STATE_MAGIC = 0x504b434d;  // "MCKP"

static const llama_kv_cache_minicache & ours(const minicache_memory_parts & parts) {
    return *static_cast<const llama_kv_cache_minicache *>(parts.grows);
}

static uint64_t configuration_of(const minicache_memory_parts & parts) {
    const llama_hparams & hp = ours(parts).get_hparams();

    std::vector<uint64_t> numbers = { ours(parts).get_model_hash() };
    if (parts.window && !parts.window->get_layer_ids().empty()) {
        numbers.insert(numbers.end(),
            { (uint64_t) parts.window->type_k(), (uint64_t) parts.window->type_v(), parts.window->get_n_stream() });
        for (const uint32_t il : parts.window->get_layer_ids()) {
            numbers.insert(numbers.end(), { il, hp.n_embd_k_gqa(il), hp.n_embd_v_gqa(il) });
        }
    }
    for (size_t il = 0; parts.state && il < parts.state->r_l.size(); ++il) {
        if (parts.state->r_l[il]) {
            numbers.insert(numbers.end(), { il, hp.n_embd_r(), hp.n_embd_s() });
        }
    }
    return minicache_hash(numbers.data(), numbers.size() * sizeof(uint64_t));
}

static uint64_t hash_of(minicache_state_frame frame, const std::vector<uint8_t> & payload) {
    frame.hash = 0;
    return minicache_hash(payload.data(), payload.size(), minicache_hash(&frame, sizeof(frame)));
}

// Whether llama.cpp saves a token of a sliding window: of one sequence, those that are in its window still.
static bool is_saved(const llama_kv_cells & cells, uint32_t i, const llama_hparams & hp, llama_seq_id seq_id) {
    if (cells.is_empty(i) || (seq_id != -1 && !cells.seq_has(i, seq_id))) {
        return false;
    }
    return seq_id == -1 || !llama_hparams::is_masked_swa(hp.n_swa, hp.swa_type, cells.pos_get(i), cells.seq_pos_max(seq_id));
}

// Whether llama.cpp can put a token of the sequence into a cell, whose own tokens it removes before.
static bool is_free(const llama_kv_cells & cells, uint32_t i, const llama_hparams & hp, llama_seq_id seq_id) {
    if (cells.is_empty(i) || seq_id == -1) {
        return true;
    }
    if (cells.seq_count(i) != 1) {
        return false;
    }
    const llama_seq_id own = cells.seq_get(i);
    return own == seq_id || llama_hparams::is_masked_swa(hp.n_swa, hp.swa_type, cells.pos_get(i), cells.seq_pos_max(own) + 1);
}

template <typename Counts>
static uint32_t count_cells(const llama_kv_cells & cells, const llama_hparams & hp, llama_seq_id seq_id, const Counts & counts) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < cells.size(); ++i) {
        n += counts(cells, i, hp, seq_id);
    }
    return n;
}

minicache_state_frame minicache_frame_of(const minicache_memory_parts & parts, llama_seq_id seq_id, llama_state_seq_flags flags,
    const std::vector<uint8_t> & payload) {
    minicache_state_frame frame = {};

    frame.magic         = STATE_MAGIC;
    frame.size          = sizeof(frame);
    frame.flags         = flags;
    frame.configuration = configuration_of(parts);
    frame.payload_size  = payload.size();
    for (uint32_t s = 0; parts.window && s < parts.window->get_n_stream(); ++s) {
        frame.n_window =
            std::max(frame.n_window, count_cells(parts.window->get_cells(s), ours(parts).get_hparams(), seq_id, is_saved));
    }
    frame.hash = hash_of(frame, payload);
    return frame;
}

// Throws if the tokens of a saved window do not fit.
static void check_room(const minicache_memory_parts & parts, llama_seq_id seq_id, uint32_t n_saved) {
    if (!parts.window) {
        return;
    }
    const uint32_t s    = seq_id == -1 || parts.window->get_n_stream() == 1 ? 0 : seq_id;
    const uint32_t room = count_cells(parts.window->get_cells(s), ours(parts).get_hparams(), seq_id, is_free);
    if (n_saved > room) {
        throw std::runtime_error(
            format("the saved state has %u tokens in sliding windows, but there is room for %u only", n_saved, room));
    }
}

std::vector<uint8_t> minicache_read_framed(
    llama_io_read_i & io, const minicache_memory_parts & parts, llama_seq_id seq_id, llama_state_seq_flags flags, size_t bytes) {
    minicache_state_frame frame;
    io.read(&frame, sizeof(frame));
    if (frame.magic != STATE_MAGIC || frame.size != sizeof(frame)) {
        throw std::runtime_error("the saved state is not of a MiniCache context of this version");
    }
    if (frame.flags != flags) {
        throw std::runtime_error("the saved state has other parts of the cache than those that are asked for");
    }
    if (frame.configuration != configuration_of(parts)) {
        throw std::runtime_error("the saved state is of another model, or of other types of sliding windows");
    }
    std::vector<uint8_t> payload = minicache_read_payload(io, frame.payload_size, minicache_max_payload(bytes));
    if (hash_of(frame, payload) != frame.hash) {
        throw std::runtime_error("the saved state is damaged: its checksum differs");
    }
    check_room(parts, seq_id, frame.n_window);
    return payload;
}
