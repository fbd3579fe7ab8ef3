#pragma once

// What llama.cpp and ggml-cuda end the process with, as an exception.
//
// Both call ggml_abort() where they can't go on: a failed CUDA call, an assertion. Inside a guard, on the thread that made it,
// ggml's abort callback throws in its place, through frames that are C++ but for those of ggml.c and ggml-alloc.c, which
// native/cmake/MinicacheSources.cmake has compiled with -fexceptions. It does so for aborts of llama.cpp's own files and of
// ggml-cuda only. The CPU's kernels run between C and OpenMP frames while other threads wait for them, so their aborts, as
// all on other threads and all while another exception is on its way, end the process as ever.

#include <stdexcept>
#include <string>

// what() is ggml's message: file, line and reason
struct minicache_abort : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct minicache_abort_guard {
    minicache_abort_guard();
    ~minicache_abort_guard();

    minicache_abort_guard(const minicache_abort_guard &)             = delete;
    minicache_abort_guard & operator=(const minicache_abort_guard &) = delete;

    minicache_abort_guard * outer;
    int                     unwinding;  // exceptions on their way when the guard was made
    std::string             message;    // of the abort, "" for none
};

// f(), which throws minicache_abort where it would have ended the process, though somebody on the way may catch all exceptions
template <typename F>
void minicache_guard_aborts(const F & f) {
    minicache_abort_guard guard;
    f();
    if (!guard.message.empty()) {
        throw minicache_abort(guard.message);
    }
}
