#pragma once

// Saved states of memories of several parts, of which one is our cache.

#include "llama-memory-minicache.h"
#include "llama-minicache-error.h"
#include "llama-minicache-io.h"

#include <cstdint>
#include <stdexcept>
#include <vector>

// What stands before the parts' own states.
struct minicache_state_frame {
    uint32_t magic;
    uint32_t size;           // of this struct
    uint32_t n_window;       // tokens of sliding windows, in the stream that has most of them
    uint32_t flags;          // which parts there are, as llama.cpp numbers them
    uint64_t configuration;  // hash of the model and of what the parts of llama.cpp are like
    uint64_t payload_size;
    uint64_t hash;  // of the frame, with 0 here, and of the payload
};

minicache_state_frame minicache_frame_of(
    const minicache_memory_parts & parts, llama_seq_id seq_id, llama_state_seq_flags flags, const std::vector<uint8_t> & payload);

// The payload behind a frame. Throws std::runtime_error where it is damaged, of another configuration, or larger than the sliding
// windows have room for.
//   bytes: of the memory
std::vector<uint8_t> minicache_read_framed(
    llama_io_read_i & io, const minicache_memory_parts & parts, llama_seq_id seq_id, llama_state_seq_flags flags, size_t bytes);

// A memory whose saved states are taken whole or not at all: everything for which a part could refuse its state is checked before
// any part is changed. States that stay on a device are llama.cpp's own.
template <typename Memory>
class minicache_whole_states : public Memory {
  public:
    using Memory::Memory;

    void state_write(llama_io_write_i & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) const override {
        if (flags & LLAMA_STATE_SEQ_FLAGS_ON_DEVICE) {
            Memory::state_write(io, seq_id, flags);
            return;
        }
        llama_io_write_vector payload;
        Memory::state_write(payload, seq_id, flags);

        const minicache_state_frame frame = minicache_frame_of(parts(), seq_id, flags, payload.data);
        io.write(&frame, sizeof(frame));
        io.write(payload.data.data(), payload.data.size());
    }

    void state_read(llama_io_read_i & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) override {
        if (flags & LLAMA_STATE_SEQ_FLAGS_ON_DEVICE) {
            Memory::state_read(io, seq_id, flags);
            return;
        }
        try {
            const std::vector<uint8_t> payload = read_checked(io, seq_id, flags);
            llama_io_read_vector       reader(payload);
            Memory::state_read(reader, seq_id, flags);
        } catch (const std::exception & e) {
            minicache_set_error(e.what());  // llama.cpp logs the reason and returns 0
            throw;
        }
    }

    // Reads a saved state to its end, and changes nothing. Throws std::runtime_error where state_read() would refuse it.
    void check_state(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
        read_checked(io, seq_id, flags);
    }

  protected:
    // The same for the part that comes first: our cache, unless only the other parts are saved.
    virtual void check_first(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
        if (!(flags & LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)) {
            static_cast<const llama_kv_cache_minicache &>(*parts().grows).check_state(io, seq_id);
        }
    }

  private:
    minicache_memory_parts parts() const { return minicache_parts_of(const_cast<minicache_whole_states *>(this)); }

    std::vector<uint8_t> read_checked(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
        size_t bytes = 0;
        for (const auto & [buft, size] : Memory::memory_breakdown()) {
            GGML_UNUSED(buft);
            bytes += size;
        }
        std::vector<uint8_t> payload = minicache_read_framed(io, parts(), seq_id, flags, bytes);
        llama_io_read_vector reader(payload);
        check_first(reader, seq_id, flags);
        return payload;
    }
};
