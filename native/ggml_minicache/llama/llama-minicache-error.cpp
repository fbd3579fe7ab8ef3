#include "llama-minicache-error.h"

#include <new>

static thread_local std::string thread_error;

void minicache_set_error(const char * message) noexcept {
    try {
        thread_error = message;
    } catch (const std::bad_alloc &) {
        thread_error.clear();
        thread_error += "out of memory";  // short enough to need no memory
    }
}

void minicache_set_error(const std::string & message) noexcept { minicache_set_error(message.c_str()); }

const std::string & minicache_get_error() { return thread_error; }
