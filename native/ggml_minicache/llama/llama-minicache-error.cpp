#include "llama-minicache-error.h"

static thread_local std::string thread_error;

void minicache_set_error(const std::string & message) { thread_error = message; }

const std::string & minicache_get_error() { return thread_error; }
