#pragma once

// Turns aborts of llama.cpp and ggml-cuda, which would end the process, into exceptions.
//
// llama.cpp and ggml-cuda call ggml_abort() when they cannot go on: after a failed CUDA call or assertion. Inside a guard, on
// the thread that made the guard, ggml's abort callback throws instead. All frames that the exception passes through are C++,
// except those of ggml.c and ggml-alloc.c, which native/cmake/MinicacheSources.cmake compiles with -fexceptions. This is so
// only for aborts in llama.cpp's own files and in ggml-cuda. The CPU's kernels run between C and OpenMP frames while other
// threads wait for them, so their aborts still end the process. So do aborts on other threads, and aborts while another
// exception is being thrown.

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
    int                     unwinding;  // exceptions that were being thrown when the guard was made
    std::string             message;    // the abort's, "" if there was none
};

// Calls f(). Throws minicache_abort if f() would have ended the process, even if something on the way caught the exception.
template <typename F>
void minicache_guard_aborts(const F & f) {
    minicache_abort_guard guard;
    f();
    if (!guard.message.empty()) {
        throw minicache_abort(guard.message);
    }
}
