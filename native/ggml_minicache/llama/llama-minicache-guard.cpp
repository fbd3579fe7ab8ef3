#include "llama-minicache-guard.h"

#include "ggml.h"

#include <cstdio>
#include <exception>
#include <mutex>

static thread_local minicache_abort_guard * innermost = nullptr;

// MSVC assumes that functions of the C language do not throw, so there all aborts end the process
#ifdef __GNUC__

extern "C" void ggml_print_backtrace(void);  // declared in ggml-impl.h, which is not a public header

static ggml_abort_callback_t callback_before = nullptr;

// Whether a message "DIRECTORY/NAME:LINE: REASON" comes from llama.cpp's files, ggml-cuda's, or ours beside them.
static bool comes_from_cpp(const std::string & message) {
    const std::string path = message.substr(0, message.rfind(':', message.find(": ") - 1));
    const size_t      end  = path.rfind('/');
    if (end == std::string::npos || end == 0) {
        return false;
    }
    const size_t      begin     = path.rfind('/', end - 1) + 1;  // 0 if there is no other
    const std::string directory = path.substr(begin, end - begin);
    const std::string name      = path.substr(end + 1);

    const auto named = [&](const std::string & prefix) { return name.compare(0, prefix.size(), prefix) == 0; };

    return directory == "ggml-cuda" || directory == "template-instances" || named("minicache-cuda") ||
           (named("llama-") && (directory == "src" || directory == "llama"));
}

static void on_abort(const char * message) {
    minicache_abort_guard * guard = innermost;
    if (guard && std::uncaught_exceptions() == guard->unwinding && comes_from_cpp(message)) {
        guard->message = message;
        throw minicache_abort(message);
    }
    if (callback_before) {
        callback_before(message);
        return;
    }
    // ggml_abort() does this when there is no callback
    fprintf(stderr, "%s\n", message);
    ggml_print_backtrace();
}

// ggml has one callback for the process. Ours is installed by the first guard, and passes on what is not for it to the callback
// that was there before.
static void install() {
    static std::once_flag once;
    std::call_once(once, [] { callback_before = ggml_set_abort_callback(on_abort); });
}

#else

static void install() {}

#endif

minicache_abort_guard::minicache_abort_guard() : outer(innermost), unwinding(std::uncaught_exceptions()) {
    install();
    innermost = this;
}

minicache_abort_guard::~minicache_abort_guard() { innermost = outer; }
