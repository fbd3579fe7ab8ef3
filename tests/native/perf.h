#pragma once

// Speed: every case beside its rivals, other ways to compute the same, in turns within one process, so that whatever else the
// machine does falls on all of them alike.

#include "test-case.h"
#include "test-device.h"

#include <string>
#include <vector>

struct perf_options {
    // Attention cases: all combinations. Empty: the middle one, 16384 cells, head size 128, 4 query heads on a KV head, one
    // token of one sequence; where nothing is given at all, also what differs from it in one point.
    std::vector<int>         n_kv;
    std::vector<int>         head_size;
    std::vector<int>         n_gqa;
    std::vector<int>         n_batch;    // sequences that decode a token each
    std::vector<int>         n_prefill;  // tokens of one sequence
    std::vector<int>         n_threads;  // empty: 1 and all
    std::vector<std::string> types;      // see perf_types()
    int                      n_head_kv = 8;

    bool        all     = false;  // all combinations of what is varied
    bool        matrix  = false;  // what docs/speed.md has a table of
    bool        json    = false;
    int         rounds  = 0;    // at least; 0: as many as is usual
    double      seconds = 0.0;  // of a case, rounds permitting; 0: likewise
    std::string filter;
    unsigned    seed = 1;
};

// what entries are kept as
const std::vector<std::string> & perf_types();

// reads one option at argv[i], false where it is none of these
bool perf_parse(int argc, char ** argv, int & i, perf_options & opts);

void perf_usage();

// the exit code
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

// null for a type that the file has none of
std::unique_ptr<test_case> new_attn_perf(const perf_shape & shape);
std::unique_ptr<test_case> new_attn_code_perf(const perf_shape & shape);
