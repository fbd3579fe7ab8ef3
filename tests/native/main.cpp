// Tests of the MiniCache ops: their results are compared with scalar code of the tests' own, and their speed is measured.

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"
#include "perf.h"
#include "test-case.h"
#include "test-device.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

struct options {
    bool         perf    = false;
    bool         verbose = false;
    std::string  filter;
    std::string  device = "CPU";
    unsigned     seed   = 1;
    int          most   = -1;  // cases to run, -1 for all
    perf_options speed;
};

// The graph of one case, allocated and filled.
struct test_graph {
    ggml_context_ptr        ctx;
    ggml_backend_buffer_ptr buffer;
    ggml_cgraph *           gf = nullptr;

    test_graph(test_case & test, const test_device & device, unsigned seed) {
        const size_t           size   = 256 * ggml_tensor_overhead() + ggml_graph_overhead();
        const ggml_init_params params = { size, nullptr, true };

        ctx.reset(ggml_init(params));
        gf          = ggml_new_graph(ctx.get());
        test.on_gpu = !device.is_cpu();
        test.build(ctx.get(), gf, false);
        buffer.reset(ggml_backend_alloc_ctx_tensors(ctx.get(), device.get()));

        rng_t rng(seed);
        test.initialize(rng);
    }
};

static bool selected(const test_case & test, const options & opts) {
    return (std::string(test.op()) + "(" + test.vars() + ")").find(opts.filter) != std::string::npos;
}

static int run_tests(const test_device & device, const test_cases & cases, const options & opts) {
    int    n_run     = 0;
    int    n_skipped = 0;
    int    n_failed  = 0;
    double worst     = 0.0;

    for (const auto & test : cases) {
        if (!selected(*test, opts) || n_run == opts.most) {
            continue;
        }
        const unsigned   seed = opts.seed + n_run++;
        const test_graph graph(*test, device, seed);
        if (!device.supports(graph.gf)) {
            --n_run;
            ++n_skipped;
            if (opts.verbose) {
                printf("not supported: %s(%s)\n", test->op(), test->vars().c_str());
            }
            continue;
        }
        const bool   computed = device.compute(graph.gf, test->n_threads());
        const double error    = computed ? test->error() : INFINITY;
        const double bound    = device.is_cpu() ? test->max_nmse() : test->max_nmse_on_gpu();
        const bool   ok       = error <= bound;  // false for NaN

        n_failed += !ok;
        worst = std::max(worst, ok ? error : 0.0);
        if (opts.verbose || !ok) {
            printf("%s %s(%s): nmse %.3g, bound %.3g, seed %u\n", ok ? "ok  " : "FAIL", test->op(), test->vars().c_str(), error,
                bound, seed);
        }
    }
    printf("%d of %d tests passed on %s, seeds from %u on, largest nmse of these %.3g", n_run - n_failed, n_run,
        opts.device.c_str(), opts.seed, worst);
    printf(n_skipped > 0 ? "; %d not supported there\n" : "\n", n_skipped);

    return n_run == 0 || n_failed > 0;
}

static void usage(const char * program) {
    printf("usage: %s [test|perf] [-d DEVICE] [-o TEXT] [-n COUNT] [-s SEED] [-v] [options of perf]\n\n", program);
    printf("  test     compare the ops with scalar code (default); exit code 1 if any differs\n");
    printf("  perf     time the ops, each beside upstream's where there is one, in turns\n");
    printf("  -d NAME  where: CPU (default), CUDA0 and so on, or cuda-on-cpu0, which runs the CUDA kernels on the CPU\n");
    printf("  -o TEXT  only cases whose name contains TEXT, such as ATTN or type_k=q4_0\n");
    printf("  -n COUNT only the first COUNT of them\n");
    printf("  -s SEED  first seed (default 1)\n");
    printf("  -v       show every case\n\n");
    perf_usage();
}

static bool parse(int argc, char ** argv, options & opts) {
    for (int i = 1; i < argc; ++i) {
        const std::string arg = argv[i];
        if (arg == "test" || arg == "perf") {
            opts.perf = arg == "perf";
        } else if (arg == "-v") {
            opts.verbose = true;
        } else if (arg == "-o" && i + 1 < argc) {
            opts.filter = argv[++i];
        } else if (arg == "-n" && i + 1 < argc) {
            opts.most = atoi(argv[++i]);
        } else if (arg == "-d" && i + 1 < argc) {
            opts.device = argv[++i];
        } else if (arg == "-s" && i + 1 < argc) {
            opts.seed = (unsigned) strtoul(argv[++i], nullptr, 10);
        } else if (!perf_parse(argc, argv, i, opts.speed)) {
            return false;
        }
    }
    opts.speed.filter = opts.filter;
    opts.speed.seed   = opts.seed;
    return true;
}

int main(int argc, char ** argv) {
    if (argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        usage(argv[0]);
        return 0;
    }
    options opts;
    if (!parse(argc, argv, opts)) {
        usage(argv[0]);
        return 2;
    }

    ggml_time_init();
    const test_device device(opts.device);
    if (!device.get()) {
        fprintf(stderr, "there is no device %s\n", opts.device.c_str());
        return 2;
    }

    if (opts.perf) {
        return run_perf(device, opts.speed);
    }
    test_cases cases;
    add_shared_cases(cases, false);
    add_merge_cases(cases, false);
    add_index_cases(cases, false);
    add_retain_cases(cases, false);
    add_attn_cases(cases);
    add_encode_cases(cases, false);
    add_attn_code_cases(cases);
    add_guard_cases(cases);
    add_packing_cases(cases);

    return run_tests(device, cases, opts);
}
