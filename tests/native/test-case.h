#pragma once

// The shape of a test of one MiniCache op: a case builds a small graph, fills its inputs, and says how
// far the computed outputs are from what its own scalar code expects.

#include "ggml.h"

#include <cstdint>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

using rng_t = std::mt19937;

// another way to compute what a case is about, for perf mode
struct rival {
    std::string   name;
    ggml_tensor * out;
    size_t        bytes;  // read and written at least
};

class test_case {
  public:
    virtual ~test_case() = default;

    virtual const char * op() const   = 0;
    virtual std::string  vars() const = 0;

    // what error() may return
    virtual double max_nmse() const = 0;

    // the same on a GPU
    virtual double max_nmse_on_gpu() const { return max_nmse(); }

    virtual int n_threads() const { return 1; }

    // tensors of the graph, the ops under test expanded into gf; without the scalar references where `perf`, and on a GPU,
    // which has none
    virtual void build(ggml_context * ctx, ggml_cgraph * gf, bool perf) = 0;

    // fill the inputs; called once, the tensors are allocated
    virtual void initialize(rng_t & rng) = 0;

    // normalised mean squared error of the worst output, infinite where something that must be exact is not
    virtual double error() const = 0;

    // perf mode: what the case is called, bytes that the op has to read and write once, and what it is compared with, built
    // after build()
    virtual std::string        perf_name() const { return vars(); }
    virtual size_t             bytes() const { return 0; }
    virtual std::vector<rival> rivals(ggml_context * ctx) {
        (void) ctx;
        return {};
    }

    bool on_gpu = false;  // set before build()
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

//
// helpers
//

// "name=value" pairs for vars()
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

// Σ(x - expected)² / Σ expected², infinite if anything is not finite
double nmse(const float * x, const float * expected, size_t n);

std::vector<float> random_floats(rng_t & rng, size_t n, float scale = 1.0f);

// rows of ne[0] numbers, converted to the tensor's type and back; the result is what the tensor then holds
std::vector<float> set_rows(ggml_tensor * tensor, const std::vector<float> & x);
std::vector<float> get_rows(const ggml_tensor * tensor);

// some random rows again and again, for tensors that are large and whose numbers don't matter
void fill_rows(rng_t & rng, ggml_tensor * tensor, float scale = 1.0f);

int   random_int(rng_t & rng, int first, int last);  // both included
bool  chance(rng_t & rng, double p);
float f32_of(int32_t bits);
