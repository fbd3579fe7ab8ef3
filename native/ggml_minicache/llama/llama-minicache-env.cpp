#include "llama-minicache-env.h"

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <set>
#include <stdexcept>

static const std::string PREFIX = "LLAMA_MINICACHE: ";

std::optional<minicache_settings> minicache_env_settings() {
    const char * text = std::getenv("LLAMA_MINICACHE");
    if (!text || minicache_text_is_off(text)) {
        return std::nullopt;
    }
    try {
        const minicache_settings settings = minicache_settings_parse(text);
        if (settings.type_k || settings.type_v) {
            throw std::invalid_argument("a cache type is the program's own option: leave type, type_k and type_v out");
        }
        return settings;
    } catch (const std::invalid_argument & e) {
        throw std::invalid_argument(PREFIX + e.what());
    }
}

bool minicache_env_decides() { return minicache_used() == LLAMA_MINICACHE_USE_ENV; }

void minicache_env_report(const std::string & message) {
    static std::mutex            mutex;
    static std::set<std::string> reported;

    const std::lock_guard<std::mutex> lock(mutex);
    if (reported.insert(message).second) {
        const bool has_prefix = message.compare(0, PREFIX.size(), PREFIX) == 0;
        fprintf(stderr, "%s%s\n", has_prefix ? "" : PREFIX.c_str(), message.c_str());
        fflush(stderr);
    }
}
