#pragma once

// Speed: every case is timed beside its rivals, which are other ways to compute the same. They take turns in one process, so that
// whatever else the machine does affects all of them alike.

#include "test-case.h"
#include "test-device.h"

#include <string>
#include <vector>

struct perf_options {
    // Attention cases: all combinations of these lists. An empty list stands for the middle case: 16384 cells, head size 128, 4
    // query heads on a KV head, one token of one sequence. If all are empty, the cases that differ from the middle one in one
    // point are added.
    std::vector<int>         n_kv;
    std::vector<int>         head_size;
    std::vector<int>         n_gqa;
    std::vector<int>         n_batch;    // sequences that decode one token each
    std::vector<int>         n_prefill;  // tokens of one sequence
    std::vector<int>         n_threads;  // empty: 1, and all of the machine's
    std::vector<std::string> types;      // see perf_types()
    int                      n_head_kv = 8;

    bool        all     = false;  // all combinations of the varied values
    bool        matrix  = false;  // the cases of the table in docs/speed.md
    bool        json    = false;
    int         rounds  = 0;    // the least number of rounds; 0: the usual one
    double      seconds = 0.0;  // seconds for a case, if the rounds allow it; 0: the usual ones
    std::string filter;
    unsigned    seed = 1;
};

// the types that entries can have
const std::vector<std::string> & perf_types();

// Reads one option at argv[i]. Returns false if it is none of these.
bool perf_parse(int argc, char ** argv, int & i, perf_options & opts);

void perf_usage();

// Runs the cases. Returns the exit code.
int run_perf(const test_device & device, const perf_options & opts);

// an attention case of the table
struct perf_shape {
    std::string type;
    int         n_kv;
    int         head_size;
    int         n_gqa;
    int         n_stream;
    int         n_tps;
    int         n_head_kv;
};

// Make a case. They return null if the file has no case of this type.
std::unique_ptr<test_case> new_attn_perf(const perf_shape & shape);
std::unique_ptr<test_case> new_attn_code_perf(const perf_shape & shape);
