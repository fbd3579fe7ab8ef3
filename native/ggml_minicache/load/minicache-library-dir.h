#pragma once

#include <filesystem>

// The folder that libggml was loaded from, beside which GGML_BACKEND_DL has the backends. Empty where the system cannot tell.
std::filesystem::path minicache_library_dir();
