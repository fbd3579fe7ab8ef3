#include "llama-minicache-settings.h"

#include "llama-minicache-env.h"

#include <algorithm>
#include <cmath>
#include <locale>
#include <set>
#include <sstream>
#include <stdexcept>

//
// checks
//

// a number as people write it: in any locale with a point, by which it is no layer number
static std::string text_of(float x) {
    std::ostringstream out;
    out.imbue(std::locale::classic());
    out << x;
    const bool whole = out.str().find_first_not_of("-0123456789") == std::string::npos;
    return out.str() + (whole ? ".0" : "");
}

static void check(bool ok, const std::string & message) {
    if (!ok) {
        throw std::invalid_argument(message);
    }
}

bool minicache_is_cache_type(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16:
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_Q5_0:
        case GGML_TYPE_Q5_1:
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_IQ4_NL:
            return true;
        default:
            return false;
    }
}

std::optional<ggml_type> minicache_cache_type_named(const std::string & name) {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const char * known = ggml_type_name((ggml_type) i);
        if (known && name == known && minicache_is_cache_type((ggml_type) i)) {
            return (ggml_type) i;
        }
    }
    return std::nullopt;
}

static void check_settings(const minicache_settings & s) {
    // written so that NaN fails
    check(s.t >= 0.0f && s.t <= 1.0f, "t = " + text_of(s.t) + " is out of range: it must be from 0 to 1");
    check(s.retain >= 0.0f && s.retain <= 1.0f, "retain = " + text_of(s.retain) + " is out of range: it must be from 0 to 1");
    check(s.window >= 0 && s.window <= LLAMA_MINICACHE_WINDOW_MAX, "window = " + std::to_string(s.window) +
                                                                       " is out of range: it must be from 0 to " +
                                                                       std::to_string(LLAMA_MINICACHE_WINDOW_MAX));
    check(s.start_layer >= -1,
        "start layer " + std::to_string(s.start_layer) + " is out of range: it must be a layer number of the model");
    check(s.start_layer >= 0 || (s.start >= 0.0f && s.start < 1.0f),
        "start = " + text_of(s.start) + " is out of range: a fraction must be at least 0 and below 1");
    check(s.pool_type == GGML_TYPE_F16 || s.pool_type == GGML_TYPE_Q8_0 || s.pool_type == GGML_TYPE_COUNT,
        "pool type must be f16, q8_0 or cache");

    for (const minicache_edge & edge : { s.first, s.last }) {
        check(edge.n_layer >= 0 && (edge.n_layer == 0 || s.mode == LLAMA_MINICACHE_MODE_PLAIN),
            "first and last are for mode plain, and numbers of layers from 0 on");
        check(minicache_is_cache_type(edge.types.k) && minicache_is_cache_type(edge.types.v),
            "the types of the first and the last layers must be cache types");
    }

    std::set<int32_t> seen;
    for (const minicache_layers & pair : s.groups) {
        const int32_t     a    = pair[0];
        const int32_t     b    = pair[1];
        const std::string name = std::to_string(a) + "-" + std::to_string(b);
        check(a >= 0 && b > a, "pair " + name + " must be two layer numbers, the shallower first");
        check(seen.insert(a).second && seen.insert(b).second,
            "pair " + name + " overlaps another pair: a layer can be in one pair only");
    }
}

void minicache_settings_finish(minicache_settings & s) {
    if (!s.plan) {
        check_settings(s);
        return;
    }
    s.mode      = s.plan->mode;
    s.retain    = s.plan->retain;
    s.window    = s.plan->window;
    s.pool_type = s.plan->pool_type;
    s.t         = s.mode == LLAMA_MINICACHE_MODE_ALIGNED ? s.plan->t : s.t;
    s.groups.clear();
    for (const minicache_plan_group & group : s.plan->groups) {
        s.groups.push_back(group.layers);
    }
}

int32_t minicache_start_layer(float start, int32_t n_layer) { return (int32_t) (start * (float) n_layer); }

int32_t minicache_retain_block(float retain) {
    if (!(retain > 0.0f)) {
        return 0;
    }
    const double block = std::round(1.0 / retain);
    return block < (1 << 30) ? (int32_t) block : 1 << 30;
}

// Attention reads the nearest tokens most, and the longer the context, the less more of them add to its bytes.
int32_t minicache_window_at(int32_t window, ggml_type pool_type, int64_t n_cells) {
    const int64_t most  = 1024;
    const int64_t share = n_cells / (pool_type == GGML_TYPE_F16 ? 64 : 32);
    return window > 0 ? (int32_t) std::max<int64_t>(window, std::min(share, most)) : window;
}

int32_t minicache_settings::retain_block() const { return minicache_retain_block(retain); }

minicache_layer_types minicache_settings::types_of(
    int32_t il, const minicache_layers & kept, const minicache_layer_types & common) const {
    if (plan) {
        return plan->types_of(il);
    }
    const int32_t number = (int32_t) (std::find(kept.begin(), kept.end(), il) - kept.begin());
    if (number < first.n_layer) {
        return first.types;
    }
    return number >= (int32_t) kept.size() - last.n_layer ? last.types : common;
}

int32_t minicache_settings::first_layer(int32_t n_layer) const {
    check(start_layer < n_layer, "start layer " + std::to_string(start_layer) + " is out of range: the model has layers 0 to " +
                                     std::to_string(n_layer - 1));
    return start_layer < 0 ? minicache_start_layer(start, n_layer) : start_layer;
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
    s.first       = { params.first.n_layer, { params.first.type_k, params.first.type_v } };
    s.last        = { params.last.n_layer, { params.last.type_k, params.last.type_v } };

    check(params.n_pairs >= 0 && (params.n_pairs == 0 || params.pairs), "n_pairs says there are pairs, but none are given");
    for (int32_t i = 0; i < params.n_pairs; ++i) {
        s.groups.push_back({ params.pairs[2 * i], params.pairs[2 * i + 1] });
    }
    const bool own =
        s.mode == LLAMA_MINICACHE_MODE_SLERP || s.mode == LLAMA_MINICACHE_MODE_AVERAGE || s.mode == LLAMA_MINICACHE_MODE_PLAIN;
    check(own || params.plan, "mode must be SLERP, AVERAGE or PLAIN: the others come with a plan");
    if (params.plan) {
        s.plan = params.plan->plan;
    }
    minicache_settings_finish(s);

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
    return thread_use == LLAMA_MINICACHE_USE_ENV ? minicache_env_settings() : std::nullopt;
}
