#include "llama-minicache-settings.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <set>
#include <stdexcept>

//
// checks
//

static std::string text_of(double x) {
    std::string s = std::to_string(x);
    s.erase(s.find_last_not_of('0') + 1);
    if (s.back() == '.') {
        s += '0';
    }
    return s;
}

static void check(bool ok, const std::string & message) {
    if (!ok) {
        throw std::invalid_argument(message);
    }
}

static void check_settings(const minicache_settings & s) {
    // written so that NaN fails
    check(s.t >= 0.0f && s.t <= 1.0f, "t = " + text_of(s.t) + " is out of range: it must be from 0 to 1");
    check(s.retain >= 0.0f && s.retain <= 1.0f, "retain = " + text_of(s.retain) + " is out of range: it must be from 0 to 1");
    check(s.window >= 0 && s.window <= MINICACHE_WINDOW_MAX, "window = " + std::to_string(s.window) +
                                                                 " is out of range: it must be from 0 to " +
                                                                 std::to_string(MINICACHE_WINDOW_MAX));
    check(s.start_layer >= -1,
        "start layer " + std::to_string(s.start_layer) + " is out of range: it must be a layer number of the model");
    check(s.start_layer >= 0 || (s.start >= 0.0f && s.start < 1.0f),
        "start = " + text_of(s.start) + " is out of range: a fraction must be at least 0 and below 1");
    check(s.pool_type == GGML_TYPE_F16 || s.pool_type == GGML_TYPE_Q8_0 || s.pool_type == GGML_TYPE_COUNT,
        "pool type must be f16, q8_0 or cache");

    std::set<int32_t> seen;
    for (const minicache_layers & pair : s.plan ? std::vector<minicache_layers>() : s.groups) {
        const int32_t     a    = pair[0];
        const int32_t     b    = pair[1];
        const std::string name = std::to_string(a) + "-" + std::to_string(b);
        check(a >= 0 && b > a, "pair " + name + " must be two layer numbers, the shallower first");
        check(seen.insert(a).second && seen.insert(b).second,
            "pair " + name + " overlaps another pair: a layer can be in one pair only");
    }
}

// what the plan decides takes the place of what stood there
static void apply_plan(minicache_settings & s) {
    s.mode      = s.plan->mode;
    s.retain    = s.plan->retain;
    s.window    = s.plan->window;
    s.pool_type = s.plan->pool_type;
    if (s.mode == LLAMA_MINICACHE_MODE_ALIGNED) {
        s.t = s.plan->t;
    }
    s.groups.clear();
    for (const minicache_plan_group & group : s.plan->groups) {
        s.groups.push_back(group.layers);
    }
}

int32_t minicache_settings::retain_block() const {
    if (retain <= 0.0f) {
        return 0;
    }
    const double block = std::round(1.0 / retain);
    return block < (1 << 30) ? (int32_t) block : 1 << 30;
}

minicache_settings minicache_settings_from(const llama_minicache_params & params) {
    minicache_settings s;

    s.start       = params.start;
    s.start_layer = params.start_layer;
    s.t           = params.t;
    s.retain      = params.retain;
    s.window      = params.window;
    s.pool_type   = params.pool_type;
    s.strict      = params.strict;
    s.observe     = params.observe;
    s.mode        = params.mode;

    check(params.n_pairs >= 0 && (params.n_pairs == 0 || params.pairs), "n_pairs says there are pairs, but none are given");
    for (int32_t i = 0; i < params.n_pairs; ++i) {
        s.groups.push_back({ params.pairs[2 * i], params.pairs[2 * i + 1] });
    }
    check(s.mode == LLAMA_MINICACHE_MODE_SLERP || s.mode == LLAMA_MINICACHE_MODE_AVERAGE || params.plan,
        "mode must be SLERP or AVERAGE: the others come with a plan");
    if (params.plan) {
        s.plan = minicache_read_plan(params.plan);
        apply_plan(s);
    }
    check_settings(s);

    return s;
}

//
// text form
//

static std::vector<std::string> split(const std::string & text, char separator) {
    std::vector<std::string> parts;
    size_t                   from = 0;
    while (from <= text.size()) {
        const size_t to = std::min(text.find(separator, from), text.size());
        parts.push_back(text.substr(from, to - from));
        from = to + 1;
    }
    return parts;
}

static double number_of(const std::string & key, const std::string & value) {
    char *       end = nullptr;
    const double x   = std::strtod(value.c_str(), &end);
    check(!value.empty() && *end == '\0', key + "=" + value + " is not a number");
    return x;
}

static int32_t whole_number_of(const std::string & key, const std::string & value) {
    const double x = number_of(key, value);
    check(x >= 0 && x < 1 << 20 && x == std::floor(x), key + "=" + value + " is not a whole number from 0 on");
    return (int32_t) x;
}

static ggml_type pool_type_of(const std::string & value) {
    if (value == "cache") {
        return GGML_TYPE_COUNT;
    }
    check(value == "f16" || value == "q8_0", "pool=" + value + " is not a pool type: it must be f16, q8_0 or cache");
    return value == "f16" ? GGML_TYPE_F16 : GGML_TYPE_Q8_0;
}

static llama_minicache_mode mode_of(const std::string & value) {
    check(value == "slerp" || value == "average", "mode=" + value + " is not a mode: it must be slerp or average");
    return value == "slerp" ? LLAMA_MINICACHE_MODE_SLERP : LLAMA_MINICACHE_MODE_AVERAGE;
}

static void set_key(minicache_settings & s, const std::string & key, const std::string & value) {
    if (key == "start") {
        const bool is_fraction = value.find('.') != std::string::npos;
        s.start_layer          = is_fraction ? -1 : whole_number_of(key, value);
        s.start                = is_fraction ? (float) number_of(key, value) : s.start;
    } else if (key == "t") {
        s.t = (float) number_of(key, value);
    } else if (key == "window") {
        s.window = whole_number_of(key, value);
    } else if (key == "retain") {
        s.retain = (float) number_of(key, value);
    } else if (key == "pool") {
        s.pool_type = pool_type_of(value);
    } else if (key == "strict") {
        check(value == "0" || value == "1", "strict=" + value + " must be 0 or 1");
        s.strict = value == "1";
    } else if (key == "pairs") {
        s.groups.clear();
        for (const std::string & pair : split(value, ';')) {
            const std::vector<std::string> ab = split(pair, '-');
            check(ab.size() == 2, "pairs=" + value + " must look like 8-9;10-11");
            s.groups.push_back({ whole_number_of(key, ab[0]), whole_number_of(key, ab[1]) });
        }
    } else if (key == "mode") {
        s.mode = mode_of(value);
    } else if (key == "plan") {
        s.plan = minicache_read_plan(value);
    } else {
        check(false, "unknown key " + key + ": the keys are mode, start, t, retain, window, pool, pairs, plan and strict");
    }
}

minicache_settings minicache_settings_parse(const char * text) {
    minicache_settings s;

    bool retains = false;  // it says what is retained

    if (strcmp(text, "1") != 0 && strcmp(text, "on") != 0) {
        for (const std::string & item : split(text, ',')) {
            const size_t eq = item.find('=');
            check(eq != std::string::npos, "'" + item + "' is not of the form key=value");
            set_key(s, item.substr(0, eq), item.substr(eq + 1));
            retains = retains || item.substr(0, eq) == "retain";
        }
    }
    if (s.mode == LLAMA_MINICACHE_MODE_AVERAGE && !retains) {
        s.retain = 0.0f;
    }
    if (s.plan) {
        apply_plan(s);  // whatever the order of the keys
    }
    check_settings(s);

    return s;
}

//
// the calling thread
//

static thread_local llama_minicache_use_kind thread_use = LLAMA_MINICACHE_USE_ENV;
static thread_local minicache_settings       thread_settings;

void minicache_use(llama_minicache_use_kind use, const minicache_settings & settings) {
    thread_use      = use;
    thread_settings = settings;
}

llama_minicache_use_kind minicache_used() { return thread_use; }

const minicache_settings & minicache_used_settings() { return thread_settings; }

std::optional<minicache_settings> minicache_settings_requested() {
    if (thread_use == LLAMA_MINICACHE_USE_PARAMS) {
        return thread_settings;
    }
    const char * env = thread_use == LLAMA_MINICACHE_USE_ENV ? std::getenv("LLAMA_MINICACHE") : nullptr;
    if (!env || *env == '\0' || strcmp(env, "0") == 0 || strcmp(env, "off") == 0) {
        return std::nullopt;
    }
    try {
        return minicache_settings_parse(env);
    } catch (const std::invalid_argument & e) {
        throw std::invalid_argument(std::string("LLAMA_MINICACHE: ") + e.what());
    }
}
