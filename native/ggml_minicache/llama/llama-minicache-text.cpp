#include "llama-minicache-settings.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <locale>
#include <map>
#include <sstream>
#include <stdexcept>

// The one parser of settings in text form, for LLAMA_MINICACHE, llama_minicache_parse_params() and Python. llama-minicache.h
// has the grammar.

static const char * const KEYS =
    "mode, start, t, retain, window, pairs, pool, type, type_k (or k), type_v (or v), first, last, plan and strict";

static const char * const WHAT_TO_WRITE =
    "write plan=PLAN, a file that `minicache calibrate MODEL -o PLAN` makes, or slerp for the settings of the paper";

static void check(bool ok, const std::string & message) {
    if (!ok) {
        throw std::invalid_argument(message);
    }
}

static std::string trimmed(const std::string & text) {
    const char * const blanks = " \t\r\n";
    const size_t       first  = text.find_first_not_of(blanks);
    return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(blanks) + 1 - first);
}

static std::string lower(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return (char) std::tolower(c); });
    return text;
}

static std::vector<std::string> split(const std::string & text, char separator) {
    std::vector<std::string> parts;
    size_t                   from = 0;
    while (from <= text.size()) {
        const size_t to = std::min(text.find(separator, from), text.size());
        parts.push_back(trimmed(text.substr(from, to - from)));
        from = to + 1;
    }
    return parts;
}

//
// quotes and paths
//

static bool is_quote(char c) { return c == '"' || c == '\''; }

// the text within the quotes that it stands in, or the text
static std::string unquoted(const std::string & text) {
    const bool quoted = text.size() >= 2 && is_quote(text.front()) && text.find(text.front(), 1) == text.size() - 1;
    return quoted ? text.substr(1, text.size() - 2) : text;
}

// The parts of a text between commas. A part, or the value in it, may stand in quotes, within which a comma is one of a path.
static std::vector<std::string> items_of(const std::string & text) {
    std::vector<std::string> items(1);
    char                     quote = 0;  // the one that is open
    for (const char c : text) {
        std::string & item = items.back();
        if (quote != 0) {
            quote = c == quote ? 0 : quote;
        } else if (is_quote(c) && (trimmed(item).empty() || trimmed(item).back() == '=')) {
            quote = c;
        } else if (c == ',') {
            items.emplace_back();
            continue;
        }
        item += c;
    }
    check(quote == 0, "a quote in '" + text + "' is not closed");
    std::transform(items.begin(), items.end(), items.begin(), trimmed);
    return items;
}

// Whether the text is the path of a plan without a key: in quotes, or ending in .gguf and not beginning as key=value does.
static bool is_path(const std::string & text) {
    if (unquoted(text) != text) {
        return true;
    }
    const std::string suffix = ".gguf";
    if (text.size() <= suffix.size() || is_quote(text[0]) || lower(text.substr(text.size() - suffix.size())) != suffix) {
        return false;
    }
    const size_t      equals = text.find('=');
    const std::string before = trimmed(text.substr(0, equals));
    return equals == std::string::npos ||
           !std::all_of(before.begin(), before.end(), [](unsigned char c) { return std::isalpha(c) || c == '_'; });
}

// Shells leave the ~ alone in the middle of a word, such as plan=~/model.plan.gguf.
static std::string with_home(const std::string & path) {
#ifdef _WIN32
    const char * home = std::getenv("USERPROFILE");
#else
    const char * home = std::getenv("HOME");
#endif
    const bool in_home = !path.empty() && path[0] == '~' && (path.size() == 1 || path[1] == '/' || path[1] == '\\');
    return in_home && home && *home ? home + path.substr(1) : path;
}

//
// values
//

static bool is_digits(const std::string & text) {
    return !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
}

// drops a sign
static std::string unsigned_part(const std::string & text) {
    return !text.empty() && (text[0] == '-' || text[0] == '+') ? text.substr(1) : text;
}

// Digits, with a point and an exponent if need be. strtod() would also take hexadecimal numbers and "nan", and follow the locale.
static bool is_decimal(const std::string & text) {
    const size_t e      = text.find_first_of("eE");
    std::string  digits = unsigned_part(text.substr(0, e));
    const size_t point  = digits.find('.');
    if (point != std::string::npos) {
        digits.erase(point, 1);
    }
    return is_digits(digits) && (e == std::string::npos || is_digits(unsigned_part(text.substr(e + 1))));
}

static float number_of(const std::string & key, const std::string & value) {
    check(is_decimal(value), key + "=" + value + " is not a number such as 0.5");

    std::istringstream in(value);
    in.imbue(std::locale::classic());
    double x = 0.0;
    in >> x;
    return (float) x;
}

static int32_t whole_number_of(const std::string & key, const std::string & value) {
    check(is_digits(value) && value.size() <= 7, key + "=" + value + " is not a whole number from 0 to 9999999");
    return (int32_t) std::stol(value);
}

static ggml_type cache_type_of(const std::string & key, const std::string & value) {
    const std::optional<ggml_type> type = minicache_cache_type_named(value);
    check(type.has_value(), key + "=" + value + " is not a cache type: it must be " MINICACHE_CACHE_TYPES);
    return *type;
}

static ggml_type pool_type_of(const std::string & value) {
    if (value == "cache") {
        return GGML_TYPE_COUNT;
    }
    check(value == "f16" || value == "q8_0", "pool=" + value + " is not a pool type: it must be f16, q8_0 or cache");
    return value == "f16" ? GGML_TYPE_F16 : GGML_TYPE_Q8_0;
}

static bool is_mode(const std::string & word) { return word == "slerp" || word == "average" || word == "plain"; }

static llama_minicache_mode mode_of(const std::string & value) {
    check(is_mode(value), "mode=" + value + " is not a mode: it must be slerp, average or plain");
    return value == "slerp"   ? LLAMA_MINICACHE_MODE_SLERP :
           value == "average" ? LLAMA_MINICACHE_MODE_AVERAGE :
                                LLAMA_MINICACHE_MODE_PLAIN;
}

// 2:q8_0, or 2:q8_0/q4_0 for K and V
static minicache_edge edge_of(const std::string & key, const std::string & value) {
    const std::vector<std::string> parts = split(value, ':');
    const std::vector<std::string> types = parts.size() == 2 ? split(parts[1], '/') : std::vector<std::string>();
    check(types.size() == 1 || types.size() == 2, key + "=" + value + " is not of the form 2:q8_0 or 2:q8_0/q4_0");
    return { whole_number_of(key, parts[0]), { cache_type_of(key, types.front()), cache_type_of(key, types.back()) } };
}

static std::vector<minicache_layers> pairs_of(const std::string & value) {
    std::vector<minicache_layers> pairs;
    for (const std::string & pair : split(value, ';')) {
        const std::vector<std::string> ab = split(pair, '-');
        check(ab.size() == 2 && is_digits(ab[0]) && is_digits(ab[1]), "pairs=" + value + " is not of the form 8-9;10-11");
        pairs.push_back({ whole_number_of("pairs", ab[0]), whole_number_of("pairs", ab[1]) });
    }
    return pairs;
}

static void set_key(minicache_settings & s, const std::string & key, const std::string & value) {
    if (key == "mode") {
        s.mode = mode_of(value);
    } else if (key == "start") {
        s.start_layer = is_digits(value) ? whole_number_of(key, value) : -1;
        s.start       = is_digits(value) ? s.start : number_of(key, value);
    } else if (key == "t") {
        s.t = number_of(key, value);
    } else if (key == "retain") {
        s.retain = number_of(key, value);
    } else if (key == "window") {
        s.window = whole_number_of(key, value);
    } else if (key == "pairs") {
        s.groups = pairs_of(value);
    } else if (key == "pool") {
        s.pool_type = pool_type_of(value);
    } else if (key == "type_k" || key == "k") {
        s.type_k = cache_type_of(key, value);
    } else if (key == "type_v" || key == "v") {
        s.type_v = cache_type_of(key, value);
    } else if (key == "first") {
        s.first = edge_of(key, value);
    } else if (key == "last") {
        s.last = edge_of(key, value);
    } else if (key == "plan") {
        s.plan = minicache_read_plan(with_home(unquoted(value)));
    } else if (key == "strict") {
        check(value == "0" || value == "1", "strict=" + value + " is neither 0 nor 1");
        s.strict = value == "1";
    } else {
        check(false, "unknown key " + key + ": the keys are " + KEYS);
    }
}

//
// texts
//

// the values of a text by their keys, in small letters but for paths; a word for the mode before them is one of them
static std::map<std::string, std::string> values_of(const std::string & text) {
    std::map<std::string, std::string> values;

    std::string       rest  = text;
    const size_t      colon = std::min(rest.find(':'), rest.size());
    const std::string word  = lower(trimmed(rest.substr(0, colon)));
    if (is_mode(word)) {
        values["mode"] = word;
        rest           = colon < rest.size() ? trimmed(rest.substr(colon + 1)) : "";
    }
    const std::vector<std::string> items = is_path(rest) ? std::vector<std::string>{ rest } : items_of(rest);
    for (const std::string & item : items) {
        if (item.empty()) {
            continue;
        }
        const size_t      equals = is_path(item) ? item.size() : std::min(item.find('='), item.size());
        const std::string key    = is_path(item) ? "plan" : lower(trimmed(item.substr(0, equals)));
        const std::string value  = is_path(item) ? item : equals < item.size() ? trimmed(item.substr(equals + 1)) : "";
        check(!key.empty() && !value.empty(),
            "'" + item + "' is not of the form key=value" + (equals == item.size() ? std::string("; ") + WHAT_TO_WRITE : ""));
        check(values.emplace(key, key == "plan" ? value : lower(value)).second, key + " is given twice");
    }
    check(!values.empty(), "'" + text + "' names no settings: the keys are " + KEYS);
    return values;
}

// words that people write where a text should say how the cache is to be kept
static void refuse_words(const std::string & text) {
    const std::string word = lower(text);
    if (word == "auto") {
        throw std::invalid_argument("auto is not possible here, where nothing can be calibrated: make a plan with "
                                    "`minicache calibrate MODEL -o PLAN`, and write plan=PLAN");
    }
    for (const char * yes : { "1", "on", "true", "yes" }) {
        check(word != yes, text + " does not say how the cache is to be kept: " + WHAT_TO_WRITE);
    }
    check(!minicache_cache_type_named(word),
        text + " is a cache type, which is the program's own option for a cache that is not merged: " + WHAT_TO_WRITE);
}

bool minicache_text_is_off(const std::string & text) {
    const std::string word = lower(unquoted(trimmed(text)));
    return word.empty() || word == "0" || word == "off" || word == "false" || word == "no" || word == "none";
}

minicache_settings minicache_settings_parse(const std::string & given) {
    const std::string text = trimmed(unquoted(trimmed(given)));
    refuse_words(text);

    minicache_settings                       s;
    const std::map<std::string, std::string> values = values_of(text);
    if (values.count("type")) {  // before type_k and type_v, which say more
        s.type_k = s.type_v = cache_type_of("type", values.at("type"));
    }
    if (values.count("mode") && values.at("mode") != "slerp") {
        s.retain = 0.0f;  // averages retain nothing in the paper, and plain layers have nothing to retain
    }
    for (const auto & item : values) {
        check(!values.count("plan") || item.first == "plan" || item.first == "strict",
            item.first + " is given beside plan, which decides it: leave one of them out");
    }
    check(!(values.count("k") && values.count("type_k")) && !(values.count("v") && values.count("type_v")),
        "k is type_k, and v is type_v: give each once");
    for (const auto & [key, value] : values) {
        if (key != "type") {
            set_key(s, key, value);
        }
    }
    for (const char * merging : { "start", "t", "retain", "window", "pairs", "pool" }) {
        check(s.mode != LLAMA_MINICACHE_MODE_PLAIN || !values.count(merging),
            std::string(merging) + " is given beside plain, which merges nothing: leave it out");
    }
    minicache_settings_finish(s);
    // SLERP loses more than a plan does, so a text means SLERP only if it names it
    check(values.count("plan") || values.count("mode"),
        "'" + text + "' names no mode: write slerp:, average: or plain: before it, or plan=PLAN in its place");
    return s;
}
