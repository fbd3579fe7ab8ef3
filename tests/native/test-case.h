#pragma once

// The interface of a test of a MiniCache op: a case builds a small graph, fills its inputs, and says how far the computed outputs
// are from what its own scalar code expects.

#include "ggml.h"

#include <cstdint>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

using rng_t = std::mt19937;

// Another way to compute what a case computes, for perf mode.
struct rival {
    std::string   name;
    ggml_tensor * out;
    size_t        bytes;  // that have to be read and written at least
};

class test_case {
  public:
    virtual ~test_case() = default;

    virtual const char * op() const   = 0;
    virtual std::string  vars() const = 0;

    // the largest error() that passes
    virtual double max_nmse() const = 0;

    // the same on a GPU
    virtual double max_nmse_on_gpu() const { return max_nmse(); }

    virtual int n_threads() const { return 1; }

    // Makes the tensors of the graph, and expands the ops under test into gf. The scalar references are left out if `perf` is
    // set, and on a GPU, which has none.
    virtual void build(ggml_context * ctx, ggml_cgraph * gf, bool perf) = 0;

    // Fills the inputs. Called once, when the tensors are allocated.
    virtual void initialize(rng_t & rng) = 0;

    // The normalised mean squared error of the worst output, infinite if something is inexact that must be exact.
    virtual double error() const = 0;

    // For perf mode: the case's name, the bytes that the op has to read and write once, and the rivals, which are built after
    // build().
    virtual std::string        perf_name() const { return vars(); }
    virtual size_t             bytes() const { return 0; }
    virtual std::vector<rival> rivals(ggml_context * ctx) {
        (void) ctx;
        return {};
    }

    bool on_gpu = false;  // set before build() is called
};

using test_cases = std::vector<std::unique_ptr<test_case>>;

void add_shared_cases(test_cases & cases, bool perf);
void add_merge_cases(test_cases & cases, bool perf);
void add_index_cases(test_cases & cases, bool perf);
void add_retain_cases(test_cases & cases, bool perf);
void add_attn_cases(test_cases & cases);
void add_encode_cases(test_cases & cases, bool perf);
void add_attn_code_cases(test_cases & cases);
void add_guard_cases(test_cases & cases);
void add_packing_cases(test_cases & cases);

//
// helpers
//

// Makes "name=value" pairs for vars().
class var_list {
  public:
    template <typename T>
    var_list & add(const char * name, const T & value) {
        out << (first ? "" : ",") << name << "=" << value;
        first = false;
        return *this;
    }

    std::string str() const { return out.str(); }

  private:
    std::ostringstream out;
    bool               first = true;
};

// Σ(x - expected)² / Σ expected², infinite if any number is not finite.
double nmse(const float * x, const float * expected, size_t n);

std::vector<float> random_floats(rng_t & rng, size_t n, float scale = 1.0f);

// Stores rows of ne[0] numbers in the tensor's type. Returns what the tensor then holds.
std::vector<float> set_rows(ggml_tensor * tensor, const std::vector<float> & x);
std::vector<float> get_rows(const ggml_tensor * tensor);

// Fills a large tensor, whose numbers do not matter, with repetitions of a few random rows.
void fill_rows(rng_t & rng, ggml_tensor * tensor, float scale = 1.0f);

int   random_int(rng_t & rng, int first, int last);  // both inclusive
bool  chance(rng_t & rng, double p);
float f32_of(int32_t bits);
