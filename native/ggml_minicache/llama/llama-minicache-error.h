#pragma once

// The last failure of the calling thread, and the frame of every function of the C API, which lets no exception out.

#include <exception>
#include <string>

void                minicache_set_error(const char * message) noexcept;
void                minicache_set_error(const std::string & message) noexcept;
const std::string & minicache_get_error();

// Runs f. Returns false and keeps the reason if it throws.
template <typename F>
bool minicache_guarded(const F & f) {
    minicache_set_error("");
    try {
        f();
        return true;
    } catch (const std::exception & e) {
        minicache_set_error(e.what());
        return false;
    }
}
