#pragma once

// Saved states in main memory, where they are checked before a cache is changed, and hashed before they are written.

#include "ggml-backend.h"
#include "llama-io.h"

#include <cstring>
#include <stdexcept>
#include <vector>

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

// Throws std::runtime_error where more is read than there is.
class llama_io_read_vector : public llama_io_read_i {
  public:
    llama_io_read_vector(const std::vector<uint8_t> & data) : data(data) {}

    void read(void * dst, size_t size) override {
        const uint8_t * src = take(size);
        if (size > 0) {
            memcpy(dst, src, size);
        }
    }

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

// The bytes that the payload of a saved state may have. A length beyond is a damaged one, which must not be allocated: no state is
// much larger than the memory that it is of.
//   bytes: of that memory
inline size_t minicache_max_payload(size_t bytes) { return 2 * bytes + ((size_t) 1 << 30); }

// The payload of a saved state. Throws std::runtime_error where it is longer than max_size.
inline std::vector<uint8_t> minicache_read_payload(llama_io_read_i & io, uint64_t length, size_t max_size) {
    if (length > max_size) {
        throw std::runtime_error("the saved state is damaged: its length makes no sense");
    }
    std::vector<uint8_t> payload(length);
    io.read(payload.data(), payload.size());
    return payload;
}
