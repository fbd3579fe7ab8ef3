#include "perf.h"

#include "ggml-cpp.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <numeric>
#include <thread>

// the middle case, and the values that are varied from there
static const int  MIDDLE_KV   = 16384;
static const int  MIDDLE_HEAD = 128;
static const int  MIDDLE_GQA  = 4;
static const int  ALL_KV[]    = { 1024, 4096, 16384, 32768 };
static const int  ALL_HEAD[]  = { 64, 128 };
static const int  ALL_GQA[]   = { 1, 4, 8 };
static const int  ALL_BATCH[] = { 1, 4, 16 };
static const int  PREFILL     = 512;
static const auto MAX_ROUNDS  = 1000;

// of --matrix: how often and how long slow ops are timed
static const int    MATRIX_SHORT   = 512;
static const int    MATRIX_ROUNDS  = 3;
static const double MATRIX_SECONDS = 0.3;
static const double MATRIX_SLOW    = 2.0;  // an op that takes this many seconds is run once, without warming up

const std::vector<std::string> & perf_types() {
    static const std::vector<std::string> types = { "f16", "q8_0", "q4_0", "slerp", "code", "code3", "code2" };
    return types;
}

//
// options
//

static bool parse_ints(const char * text, std::vector<int> & out) {
    out.clear();
    for (const char * at = text; *at;) {
        char *     end   = nullptr;
        const long value = strtol(at, &end, 10);
        if (end == at || value < 1 || value > 1 << 20 || (*end && *end != ',')) {
            return false;
        }
        out.push_back((int) value);
        at = *end ? end + 1 : end;
    }
    return !out.empty();
}

static bool parse_types(const std::string & text, std::vector<std::string> & out) {
    out.clear();
    for (size_t at = 0; at <= text.size();) {
        const size_t      end  = std::min(text.find(',', at), text.size());
        const std::string type = text.substr(at, end - at);
        if (std::find(perf_types().begin(), perf_types().end(), type) == perf_types().end()) {
            return false;
        }
        out.push_back(type);
        at = end + 1;
    }
    return true;
}

bool perf_parse(int argc, char ** argv, int & i, perf_options & opts) {
    const std::string arg = argv[i];
    if (arg == "--json" || arg == "--all" || arg == "--matrix") {
        (arg == "--json" ? opts.json : arg == "--all" ? opts.all : opts.matrix) = true;
        return true;
    }
    if (i + 1 >= argc) {
        return false;
    }
    const char *     value = argv[++i];
    std::vector<int> one;
    if (arg == "--kv") {
        return parse_ints(value, opts.n_kv);
    }
    if (arg == "--head-size") {
        return parse_ints(value, opts.head_size) &&
               std::all_of(opts.head_size.begin(), opts.head_size.end(), [](int d) { return d % 32 == 0; });
    }
    if (arg == "--gqa") {
        return parse_ints(value, opts.n_gqa);
    }
    if (arg == "--batch") {
        return parse_ints(value, opts.n_batch);
    }
    if (arg == "--prefill") {
        return parse_ints(value, opts.n_prefill);
    }
    if (arg == "--threads") {
        return parse_ints(value, opts.n_threads);
    }
    if (arg == "--type") {
        return parse_types(value, opts.types);
    }
    if (arg == "--heads" || arg == "--rounds") {
        if (!parse_ints(value, one) || one.size() != 1) {
            return false;
        }
        (arg == "--heads" ? opts.n_head_kv : opts.rounds) = one[0];
        return true;
    }
    if (arg == "--seconds") {
        opts.seconds = atof(value);
        return opts.seconds > 0.0;
    }
    return false;
}

void perf_usage() {
    printf("options of perf, for attention; lists are separated by commas:\n");
    printf("  --kv N          cells in the cache            16384, varied: 1024,4096,16384,32768\n");
    printf("  --head-size N   numbers of a head             128,   varied: 64,128\n");
    printf("  --gqa N         query heads on a KV head      4,     varied: 1,4,8\n");
    printf("  --batch N       sequences, one token of each  1,     varied: 1,4,16\n");
    printf("  --prefill N     tokens of one sequence        none,  varied: 512\n");
    printf("  --heads N       KV heads                      8\n");
    printf("  --type NAME     f16, q8_0, q4_0: plain rows, beside upstream's flash attention on the same data;\n");
    printf("                  slerp: q4_0 directions, magnitudes, 5 %% of the tokens retained in q8_0;\n");
    printf("                  code, code3, code2: code rows of 3 bits for K and 1 for V, of 3 and of 2 for both,\n");
    printf("                  per value, bases 128 tokens apart; these beside q4_0 rows of the same layer\n");
    printf("  --threads N     default: 1, and all of the machine's\n");
    printf("  --all           all combinations of the varied values, not one change at a time\n");
    printf("  --matrix        the table of docs/speed.md, in a few minutes: one token of one sequence in all\n");
    printf("                  combinations, on one thread and on all; on all, 4 and 16 sequences, and prefill; an op\n");
    printf("                  of more than 2 s is run once; --type, --kv, --threads, --rounds and --seconds limit it\n");
    printf("  --rounds N      least number of rounds (5; with --matrix 3)\n");
    printf("  --seconds S     seconds for a case (1; with --matrix 0.3)\n");
    printf("  --json          one JSON object\n");
    printf("\nexample: minicache-test perf --type q4_0,code --kv 16384,32768 --prefill 512 --threads 2\n");
}

//
// cases
//

static void add_shape(test_cases & cases, const perf_shape & shape) {
    auto test = new_attn_perf(shape);
    cases.push_back(test ? std::move(test) : new_attn_code_perf(shape));
}

template <typename T>
static std::vector<int> either(const std::vector<int> & given, bool all, const T & varied, int middle) {
    return !given.empty() ? given : all ? std::vector<int>(std::begin(varied), std::end(varied)) : std::vector<int>{ middle };
}

static test_cases attn_cases(const perf_options & o) {
    const bool given = !o.n_kv.empty() || !o.head_size.empty() || !o.n_gqa.empty() || !o.n_batch.empty() || !o.n_prefill.empty();
    test_cases cases;

    std::vector<std::pair<int, int>> works;  // streams, tokens of each
    if (!o.n_batch.empty() || !o.n_prefill.empty()) {
        for (const int n : o.n_batch) {
            works.push_back({ n, 1 });
        }
        for (const int n : o.n_prefill) {
            works.push_back({ 1, n });
        }
    } else {
        for (const int n : ALL_BATCH) {
            works.push_back({ n, 1 });
        }
        works.push_back({ 1, PREFILL });
        works.resize(o.all || !given ? works.size() : 1);
    }
    const bool spread = o.all || !given;

    for (const std::string & type : o.types.empty() ? perf_types() : o.types) {
        for (const int n_kv : either(o.n_kv, spread, ALL_KV, MIDDLE_KV)) {
            for (const int d : either(o.head_size, spread, ALL_HEAD, MIDDLE_HEAD)) {
                for (const int n_gqa : either(o.n_gqa, spread, ALL_GQA, MIDDLE_GQA)) {
                    for (const auto & [n_stream, n_tps] : works) {
                        const int off =
                            (n_kv != MIDDLE_KV) + (d != MIDDLE_HEAD) + (n_gqa != MIDDLE_GQA) + (n_stream * n_tps != 1);
                        if (o.all || given || off <= 1) {
                            add_shape(cases, { type, n_kv, d, n_gqa, n_stream, n_tps, o.n_head_kv });
                        }
                    }
                }
            }
        }
    }
    return cases;
}

// The cases of the table in docs/speed.md. `all_threads` only: those that take too long on one thread.
static test_cases matrix_cases(const perf_options & o, bool all_threads) {
    std::vector<int> kv = o.n_kv;
    if (kv.empty()) {
        kv.assign(std::begin(ALL_KV), std::end(ALL_KV));
        kv.insert(kv.begin(), MATRIX_SHORT);
    }
    test_cases cases;
    for (const std::string & type : o.types.empty() ? perf_types() : o.types) {
        for (const int n_kv : kv) {
            for (const int d : ALL_HEAD) {
                for (const int n_gqa : ALL_GQA) {
                    add_shape(cases, { type, n_kv, d, n_gqa, 1, 1, o.n_head_kv });
                }
            }
            for (const int n_stream : ALL_BATCH) {
                if (all_threads && n_stream > 1) {
                    add_shape(cases, { type, n_kv, MIDDLE_HEAD, MIDDLE_GQA, n_stream, 1, o.n_head_kv });
                }
            }
            // upstream's time beside q4_0 is the same for all codes, so one of them stands for the others
            const bool other_code = type == "code2" || type == "code3";
            if (all_threads && !other_code && (n_kv == MATRIX_SHORT || n_kv == MIDDLE_KV)) {
                add_shape(cases, { type, n_kv, MIDDLE_HEAD, MIDDLE_GQA, 1, PREFILL, o.n_head_kv });
            }
        }
    }
    return cases;
}

//
// measurement
//

static double quantile(std::vector<double> x, double q) {
    std::sort(x.begin(), x.end());
    return x[(size_t) (q * (double) (x.size() - 1) + 0.5)];
}

struct timed_op {
    rival               what;
    ggml_cgraph *       gf;
    std::vector<double> us;
    std::vector<double> cpu_us;  // processor time of all threads, which is the most reliable on a busy machine

    double median() const { return quantile(us, 0.5); }

    double cpu_median() const { return quantile(cpu_us, 0.5); }

    double gbps() const { return (double) what.bytes / median() * 1e-3; }
};

// GB/s at which all threads together read memory that is far larger than the caches.
static double measure_memory_read(int n_threads) {
    static const size_t N = (size_t) 32 << 20;  // words of 8 bytes in all

    static const std::vector<uint64_t> data(N, 1);

    double                best = 0.0;
    std::vector<uint64_t> sums(n_threads);
    for (int round = 0; round < 5; ++round) {
        const int64_t            start = ggml_time_us();
        std::vector<std::thread> threads;
        for (int t = 0; t < n_threads; ++t) {
            threads.emplace_back([&, t] {
                const uint64_t * x      = data.data() + N / n_threads * t;
                uint64_t         sum[8] = {};
                for (size_t i = 0; i + 8 <= N / n_threads; i += 8) {
                    for (int j = 0; j < 8; ++j) {
                        sum[j] += x[i + j];
                    }
                }
                sums[t] = std::accumulate(sum, sum + 8, (uint64_t) 0);
            });
        }
        for (std::thread & thread : threads) {
            thread.join();
        }
        const double us = (double) (ggml_time_us() - start);
        GGML_ASSERT(std::accumulate(sums.begin(), sums.end(), (uint64_t) 0) == N / n_threads / 8 * 8 * n_threads);
        best = std::max(best, (double) (N * sizeof(uint64_t)) / us * 1e-3);
    }
    return best;
}

// Times the ops' graphs in turns.
static bool time_ops(const test_device & device, int n_threads, const perf_options & opts, std::vector<timed_op> & ops) {
    const double slow_us = (opts.matrix ? MATRIX_SLOW : INFINITY) * 1e6;

    const auto once = [&](timed_op & op, bool count) {
        const std::clock_t cpu_start = std::clock();
        const int64_t      start     = ggml_time_us();
        const bool         ok        = device.compute(op.gf, n_threads);
        const double       us        = (double) std::max<int64_t>(1, ggml_time_us() - start);
        if (count || us > slow_us) {
            op.us.push_back(us);
            op.cpu_us.push_back(std::max(1.0, (double) (std::clock() - cpu_start) * 1e6 / CLOCKS_PER_SEC));
        }
        return ok;
    };
    for (timed_op & op : ops) {
        if (!once(op, false)) {
            return false;
        }
    }
    const int64_t start = ggml_time_us();
    for (int round = 0; round < MAX_ROUNDS; ++round) {
        if (round >= opts.rounds && (double) (ggml_time_us() - start) > opts.seconds * 1e6) {
            break;
        }
        for (timed_op & op : ops) {
            const bool enough = !op.us.empty() && op.us[0] > slow_us;
            if (!enough && !once(op, true)) {
                return false;
            }
        }
    }
    return true;
}

static void print_json(const test_case & test, int n_threads, double memory_read, const std::vector<timed_op> & ops, bool first) {
    printf("%s\n  {\"op\": \"%s\", \"case\": \"%s\", \"threads\": %d, \"memory_read_gbps\": %.2f, \"results\": [",
        first ? "" : ",", test.op(), test.perf_name().c_str(), n_threads, memory_read);
    for (size_t i = 0; i < ops.size(); ++i) {
        const timed_op & op = ops[i];
        printf("%s\n    {\"name\": \"%s\", \"rounds\": %zu, \"median_us\": %.1f, \"q1_us\": %.1f, \"q3_us\": %.1f, \"min_us\": "
               "%.1f, "
               "\"cpu_us\": %.1f, \"bytes\": %zu, \"gbps\": %.3f, \"times_ours\": %.3f, \"cpu_times_ours\": %.3f}",
            i ? "," : "", op.what.name.c_str(), op.us.size(), op.median(), quantile(op.us, 0.25), quantile(op.us, 0.75),
            quantile(op.us, 0.0), op.cpu_median(), op.what.bytes, op.gbps(), op.median() / ops[0].median(),
            op.cpu_median() / ops[0].cpu_median());
    }
    printf("]}");
}

static void print_text(const test_case & test, int n_threads, double memory_read, const std::vector<timed_op> & ops) {
    for (const timed_op & op : ops) {
        printf(
            "%s(%s,threads=%d): %-13s %10.1f us (%.1f to %.1f, least %.1f), x%.2f; CPU %.1f us, x%.2f; %.0f %% of memory read, "
            "%.2f GB/s\n",
            test.op(), test.perf_name().c_str(), n_threads, op.what.name.c_str(), op.median(), quantile(op.us, 0.25),
            quantile(op.us, 0.75), quantile(op.us, 0.0), op.median() / ops[0].median(), op.cpu_median(),
            op.cpu_median() / ops[0].cpu_median(), 100.0 * op.gbps() / memory_read, op.gbps());
    }
}

// Runs all cases on this many threads. Returns false if one fails.
static bool run_cases(const test_device & device, const test_cases & cases, const std::vector<int> & threads,
    const perf_options & opts, bool & first) {
    std::vector<double> memory_read;
    for (const int n : threads) {
        memory_read.push_back(measure_memory_read(n));
        if (!opts.json) {
            printf("memory read, %d threads: %.1f GB/s\n", n, memory_read.back());
        }
    }
    for (const auto & test : cases) {
        const bool selected = (std::string(test->op()) + "(" + test->perf_name() + ")").find(opts.filter) != std::string::npos;
        if (!selected) {
            continue;
        }
        const ggml_init_params params = { 256 * ggml_tensor_overhead() + 8 * ggml_graph_overhead(), nullptr, true };
        const ggml_context_ptr ctx(ggml_init(params));

        std::vector<timed_op> ops;
        ops.push_back({ { "ours", nullptr, 0 }, ggml_new_graph(ctx.get()), {}, {} });
        test->on_gpu = !device.is_cpu();
        test->build(ctx.get(), ops[0].gf, true);
        for (const rival & r : test->rivals(ctx.get())) {
            ops.push_back({ r, ggml_new_graph(ctx.get()), {}, {} });
            ggml_build_forward_expand(ops.back().gf, r.out);
        }
        const auto unsupported = [&](const timed_op & op) { return !device.supports(op.gf); };
        if (unsupported(ops[0])) {
            fprintf(stderr, "%s(%s): not supported\n", test->op(), test->perf_name().c_str());
            continue;
        }
        ops.erase(std::remove_if(ops.begin(), ops.end(), unsupported), ops.end());
        const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), device.get()));
        rng_t                         rng(opts.seed);
        test->initialize(rng);
        ops[0].what.bytes = test->bytes();

        for (size_t i = 0; i < threads.size(); ++i) {
            for (timed_op & op : ops) {
                op.us.clear();
                op.cpu_us.clear();
            }
            if (!time_ops(device, threads[i], opts, ops)) {
                fprintf(stderr, "%s(%s): failed\n", test->op(), test->perf_name().c_str());
                return false;
            }
            if (opts.json) {
                print_json(*test, threads[i], memory_read[i], ops, first);
            } else {
                print_text(*test, threads[i], memory_read[i], ops);
            }
            first = false;
            fflush(stdout);
        }
    }
    return true;
}

int run_perf(const test_device & device, const perf_options & given) {
    perf_options opts = given;
    if (opts.matrix) {
        opts.rounds  = opts.rounds > 0 ? opts.rounds : MATRIX_ROUNDS;
        opts.seconds = opts.seconds > 0.0 ? opts.seconds : MATRIX_SECONDS;
    } else {
        opts.rounds  = opts.rounds > 0 ? opts.rounds : 5;
        opts.seconds = opts.seconds > 0.0 ? opts.seconds : 1.0;
    }
    std::vector<int> threads = opts.n_threads;
    if (!device.is_cpu()) {
        threads = { 1 };
    } else if (threads.empty()) {
        threads = { 1, std::max(1, (int) std::thread::hardware_concurrency()) };
        threads.resize(threads[1] == 1 ? 1 : 2);
    }
    bool first = true;
    bool ok    = true;
    if (opts.json) {
        printf("{\"rows\": [");
    }
    if (opts.matrix) {
        for (const int n : threads) {
            ok = ok && run_cases(device, matrix_cases(opts, n == threads.back()), { n }, opts, first);
        }
    } else {
        test_cases cases = attn_cases(opts);
        add_merge_cases(cases, true);
        add_index_cases(cases, true);
        add_retain_cases(cases, true);
        add_encode_cases(cases, true);
        ok = run_cases(device, cases, threads, opts, first);
    }
    if (opts.json) {
        printf("\n]}\n");
    }
    return !ok || first;
}
