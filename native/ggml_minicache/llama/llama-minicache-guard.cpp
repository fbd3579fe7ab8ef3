#include "llama-minicache-guard.h"

#include "ggml.h"

#include <cstdio>
#include <exception>
#include <mutex>

static thread_local minicache_abort_guard * innermost = nullptr;

// MSVC takes it that functions of the C language do not throw: there everything ends the process as ever
#ifdef __GNUC__

extern "C" void ggml_print_backtrace(void);  // of ggml-impl.h, which lies in ggml's own sources

static ggml_abort_callback_t callback_before = nullptr;

// of a message "DIRECTORY/NAME:LINE: REASON"
static bool comes_from_cpp(const std::string & message) {
    const std::string path = message.substr(0, message.rfind(':', message.find(": ") - 1));
    const size_t      end  = path.rfind('/');
    if (end == std::string::npos || end == 0) {
        return false;
    }
    const size_t      begin     = path.rfind('/', end - 1) + 1;  // 0 where there is no other
    const std::string directory = path.substr(begin, end - begin);
    const std::string name      = path.substr(end + 1);

    const auto named = [&](const std::string & prefix) { return name.compare(0, prefix.size(), prefix) == 0; };

    return directory == "ggml-cuda" || directory == "template-instances" || named("minicache-cuda") ||
           (named("llama-") && (directory == "src" || directory == "ggml_minicache"));
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
    // what ggml_abort() does without a callback
    fprintf(stderr, "%s\n", message);
    ggml_print_backtrace();
}

// ggml's callback is the process's. Ours stays from the first guard on, and hands everything else to the one before.
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
