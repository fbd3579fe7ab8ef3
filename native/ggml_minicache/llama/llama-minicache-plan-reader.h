#pragma once

// A plan file as GGUF: its keys, each of the type that it must have, and its tensors.

#include "ggml-cpp.h"
#include "gguf.h"

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

// All functions throw std::invalid_argument, which says what is wrong with the file and what to do.
class minicache_plan_reader {
  public:
    // Reads the header alone, because the file may turn out to be a model of many gigabytes, and checks that it is a plan's.
    explicit minicache_plan_reader(const std::string & path);

    // Throws, naming `flaw`, if `ok` is false.
    void check_that(bool ok, const std::string & flaw) const;

    // the bytes of the file that come before the tensors' data
    std::vector<uint8_t> header() const;

    bool has(const std::string & name) const;

    uint32_t             u32(const std::string & name) const;
    uint32_t             u32_up_to(const std::string & name, uint32_t most) const;
    float                fraction(const std::string & name) const;  // from 0 to 1
    std::string          text(const std::string & name) const;
    std::vector<int32_t> ints(const std::string & name) const;
    ggml_type            cache_type(const std::string & name) const;

    // a tensor of bytes
    std::vector<uint8_t> codec(const std::string & name) const;

    // basis matrices [n_side][n_head][d][d], one side after the other: of layers a and b, or of layer b alone; each must be
    // orthogonal
    void basis(const std::string & name, int64_t d, int64_t n_head, std::vector<float> (&sides)[2]) const;

  private:
    struct close_file {
        void operator()(FILE * f) const { fclose(f); }
    };

    const std::string path;

    std::unique_ptr<FILE, close_file> stream;

    size_t n_bytes = 0;  // of the file

    gguf_context_ptr file;
    ggml_context_ptr tensors;  // their types and sizes

    std::string damaged(const std::string & flaw) const;
    int64_t     key(const std::string & name, gguf_type type) const;

    // the bytes of a tensor; null where there is none of this name
    const ggml_tensor * tensor(const std::string & name, std::vector<uint8_t> & bytes) const;
};
