#include "ggml-alloc.h"
#include "ggml-backend-impl.h"
#include "ggml-cpp.h"
#include "ggml-minicache.h"
#include "llama-minicache-guard.h"
#include "test-case.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#ifndef _WIN32
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#endif

// Aborts inside a guard: which of them become exceptions, through which frames, and which end the process. The graph is a
// formality.
class test_guard : public test_case {
  public:
    test_guard(const char * name, bool (*holds)()) : name(name), holds(holds) {}

    const char * op() const override { return "GUARD"; }

    std::string vars() const override { return name; }

    double max_nmse() const override { return 0.0; }

    void build(ggml_context * ctx, ggml_cgraph * gf, bool) override {
        ggml_tensor * kv = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 2, 1);
        ggml_build_forward_expand(gf, ggml_minicache_merge(ctx, kv, kv, { 1, 1, 1, 0.5f, 0 }));
    }

    void initialize(rng_t &) override { held = holds(); }

    double error() const override { return held ? 0.0 : INFINITY; }

  private:
    const char * name;
    bool (*holds)();
    bool held = false;
};

#if !defined(_WIN32) && defined(__GNUC__)

static const char * const LLAMA    = "/x/src/llama-context.cpp";
static const char * const CUDA     = "/x/ggml/src/ggml-cuda/ggml-cuda.cu";
static const char * const OURS     = "/x/ggml_minicache/llama/llama-kv-cache-minicache.cpp";
static const char * const OUR_CUDA = "/x/ggml_minicache/cuda/minicache-cuda-attn.cu";
static const char * const CPU      = "/x/ggml/src/ggml-cpu/ops.cpp";

// The message of the exception that f throws inside a guard, "" if it throws none.
template <typename F>
static std::string caught(const F & f) {
    try {
        minicache_guard_aborts(f);
    } catch (const minicache_abort & e) {
        return e.what();
    }
    return "";
}

static bool aborts_become_exceptions() {
    for (const char * file : { LLAMA, CUDA, OURS, OUR_CUDA, "/x/ggml-cuda/template-instances/mmq.cu", "src/llama-batch.cpp" }) {
        int destroyed = 0;
        struct counter {
            int & n;
            ~counter() { ++n; }
        };
        const std::string message = caught([&] {
            const counter one{ destroyed };
            ggml_abort(file, 7, "error: %d", 5);
        });
        if (message != std::string(file) + ":7: error: 5" || destroyed != 1) {
            return false;
        }
    }
    return caught([] {}).empty();
}

// An exception that is caught on the way is still reported, and guards nest.
static bool guards_nest() {
    std::string inner;

    const std::string outer  = caught([&] {
        inner = caught([] { ggml_abort(CUDA, 1, "inner"); });
        try {
            ggml_abort(CUDA, 2, "outer");
        } catch (...) {
        }
    });
    const std::string passed = caught([] { minicache_guard_aborts([] { ggml_abort(CUDA, 3, "passed"); }); });
    return inner == std::string(CUDA) + ":1: inner" && outer == std::string(CUDA) + ":2: outer" &&
           passed == std::string(CUDA) + ":3: passed";
}

// A device whose memory cannot be allocated, below the frames of ggml-alloc.c.
static bool unwinds_through_c() {
    ggml_backend_buffer_type type = *ggml_backend_cpu_buffer_type();
    type.iface.alloc_buffer       = [](ggml_backend_buffer_type_t, size_t) -> ggml_backend_buffer_t {
        ggml_abort(CUDA, 1, "no memory");
    };
    type.iface.is_host = [](ggml_backend_buffer_type_t) { return false; };

    ggml_context_ptr ctx{ ggml_init({ 8 * ggml_tensor_overhead(), nullptr, true }) };
    ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, 32);
    return caught([&] { ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), &type); }) == std::string(CUDA) + ":1: no memory";
}

// Whether f(), in a process of its own, is ended by abort().
static bool ends_process(void (*f)()) {
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        setenv("GGML_NO_BACKTRACE", "1", 1);
        if (!freopen("/dev/null", "w", stderr)) {
            _exit(1);
        }
        signal(SIGABRT, SIG_DFL);
        f();
        _exit(0);
    }
    int status = 0;
    return child > 0 && waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

static bool others_end_the_process() {
    const bool of_cpu = ends_process([] { caught([] { ggml_abort(CPU, 1, "error"); }); });

    const bool elsewhere = ends_process([] { caught([] { std::thread([] { ggml_abort(CUDA, 1, "error"); }).join(); }); });
    const bool outside   = ends_process([] {
        caught([] {});
        ggml_abort(CUDA, 1, "error");
    });
    const bool unwinding = ends_process([] {
        caught([] {
            struct breaks {
                ~breaks() noexcept(false) { ggml_abort(CUDA, 2, "error"); }
            };
            const breaks one;
            ggml_abort(CUDA, 1, "error");
        });
    });
    return of_cpu && elsewhere && outside && unwinding;
}

void add_guard_cases(test_cases & cases) {
    cases.push_back(std::make_unique<test_guard>("exceptions", aborts_become_exceptions));
    cases.push_back(std::make_unique<test_guard>("nested", guards_nest));
    cases.push_back(std::make_unique<test_guard>("through C", unwinds_through_c));
    cases.push_back(std::make_unique<test_guard>("others", others_end_the_process));
}

#else

void add_guard_cases(test_cases &) {}

#endif
