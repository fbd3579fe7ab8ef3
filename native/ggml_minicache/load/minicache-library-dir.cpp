#include "minicache-library-dir.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

std::filesystem::path minicache_library_dir() {
    HMODULE       module = nullptr;
    wchar_t       file[32768];
    const DWORD   flags   = GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
    const LPCWSTR address = reinterpret_cast<LPCWSTR>(&minicache_library_dir);
    if (!GetModuleHandleExW(flags, address, &module) || !GetModuleFileNameW(module, file, 32768)) {
        return {};
    }
    return std::filesystem::path(file).parent_path();
}

#else
#include <dlfcn.h>

std::filesystem::path minicache_library_dir() {
    Dl_info info;
    if (!dladdr(reinterpret_cast<void *>(&minicache_library_dir), &info) || !info.dli_fname) {
        return {};
    }
    return std::filesystem::path(info.dli_fname).parent_path();
}

#endif
