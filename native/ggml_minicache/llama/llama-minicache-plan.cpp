#include "llama-minicache-plan.h"

#include "llama-minicache-plan-reader.h"
#include "llama-minicache-settings.h"
#include "minicache-hash.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

static const uint32_t MOST_LAYERS     = 65536;
static const uint32_t MOST_ROPE_BLOCK = 1 << 20;  // positions

// of the n_head_kv KV heads of a group, from the numbers of units of each width; `at` is moved behind them
static std::vector<minicache_code_layout> take_layouts(
    const minicache_plan_reader & reader, const std::vector<int32_t> & counts, size_t & at, const minicache_code_shape & shape) {
    reader.check_that(MINICACHE_CODE_WIDTHS * (size_t) shape.n_head_kv <= counts.size() - at, "its lists differ in length");

    std::vector<minicache_code_layout> layouts;
    const int32_t * wrong = minicache_make_layouts(counts.data() + at, shape.n_head_kv, shape.n_layer, layouts);
    reader.check_that(!wrong, wrong ? "a code has " + std::to_string(*wrong) + " units of one width" : "");
    at += MINICACHE_CODE_WIDTHS * (size_t) shape.n_head_kv;
    return layouts;
}

std::string minicache_codec_flaw(const minicache_code_shape & shape, const void * codec) {
    const minicache_codec_offsets o = minicache_codec_offsets_of(shape);

    std::vector<float> x((o.dec_k - o.freq) / sizeof(float));
    memcpy(x.data(), (const char *) codec + o.freq, o.dec_k - o.freq);
    if (!std::all_of(x.begin(), x.end(), [](float value) { return std::isfinite(value); })) {
        return "numbers that are not finite";
    }
    for (int64_t i = (o.mag - o.freq) / sizeof(float) + 1; i < (o.weight_k - o.freq) / (int64_t) sizeof(float); i += 2) {
        if (x[i] <= 0.0f) {
            return "a step of magnitudes that is not above 0";
        }
    }
    std::vector<ggml_fp16_t> halves((o.size - o.dec_k) / sizeof(ggml_fp16_t));
    memcpy(halves.data(), (const char *) codec + o.dec_k, halves.size() * sizeof(ggml_fp16_t));
    if (std::any_of(halves.begin(), halves.end(), [](ggml_fp16_t h) { return (h & 0x7C00) == 0x7C00; })) {
        return "decoders that are not finite";
    }
    return "";
}

// of a group, whose layers, sizes and layouts are known
static void read_code(const minicache_plan_reader & reader, minicache_plan_group & group) {
    const std::string first = std::to_string(group.layers[0]);
    const int         n     = group.shape.n_layer;

    const std::vector<minicache_head_layout> heads = minicache_set_heads(group.shape, group.layouts);
    reader.check_that(
        group.shape.r_k <= n * group.shape.d_k && group.shape.r_v <= n * group.shape.d_v, "a code is longer than what it codes");

    const minicache_codec_offsets o    = minicache_codec_offsets_of(group.shape);
    const std::vector<uint8_t>    rest = reader.codec("group." + first + ".codec");
    reader.check_that((int64_t) rest.size() == o.size - o.freq, "the codec of layer " + first + " has the wrong size");

    const auto * bytes = (const uint8_t *) heads.data();
    group.codec.assign(bytes, bytes + heads.size() * sizeof(heads[0]));
    group.codec.insert(group.codec.end(), rest.begin(), rest.end());

    const std::string flaw = minicache_codec_flaw(group.shape, group.codec.data());
    reader.check_that(flaw.empty(), "the codec of layer " + first + " has " + flaw);
}

// the layers of each group
static std::vector<minicache_layers> read_layers(const minicache_plan_reader & reader, const minicache_plan & plan) {
    const std::vector<int32_t> all   = reader.ints("minicache.groups");
    const std::vector<int32_t> sizes = reader.ints("minicache.group_sizes");

    std::vector<minicache_layers> groups;
    std::set<int32_t>             seen;
    size_t                        at = 0;
    for (const int32_t n : sizes) {
        reader.check_that(
            n >= 1 && n <= MINICACHE_CODE_LAYERS && (size_t) n <= all.size() - at, "a group has no layers, or too many");
        groups.emplace_back(all.begin() + at, all.begin() + at + n);
        at += n;

        const minicache_layers & layers = groups.back();
        reader.check_that(std::is_sorted(layers.begin(), layers.end()), "layers of a group are not in order");
        reader.check_that(plan.mode == LLAMA_MINICACHE_MODE_CODE || n == 2, "a group is not of two layers");
        for (const int32_t il : layers) {
            reader.check_that(il >= 0 && il < plan.n_layer && seen.insert(il).second,
                "layer " + std::to_string(il) + " is in two groups, or there is none");
        }
    }
    reader.check_that(at == all.size(), "its lists differ in length");
    return groups;
}

static uint64_t hash_group(const minicache_plan_group & group, uint64_t h) {
    const uint64_t n_layer = group.layers.size();

    h = minicache_hash(&n_layer, sizeof(n_layer), h);
    h = minicache_hash(group.layers.data(), n_layer * sizeof(int32_t), h);
    h = minicache_hash(&group.shape, sizeof(group.shape), h);
    h = minicache_hash(group.codec.data(), group.codec.size(), h);
    for (const auto * basis : { &group.basis_k[0], &group.basis_k[1], &group.basis_v[0], &group.basis_v[1] }) {
        const uint64_t n = basis->size();

        h = minicache_hash(&n, sizeof(n), h);
        h = minicache_hash(basis->data(), n * sizeof(float), h);
    }
    return h;
}

static void read_groups(const minicache_plan_reader & reader, minicache_plan & plan) {
    const std::vector<minicache_layers> layers = read_layers(reader, plan);
    const std::vector<int32_t>          sizes  = reader.ints("minicache.heads");

    reader.check_that(sizes.size() == 3 * layers.size(), "its lists differ in length");

    const bool coded = plan.mode == LLAMA_MINICACHE_MODE_CODE;

    const std::vector<int32_t> units_k = coded ? reader.ints("minicache.units_k") : std::vector<int32_t>();
    const std::vector<int32_t> units_v = coded ? reader.ints("minicache.units_v") : std::vector<int32_t>();

    size_t at_k = 0;
    size_t at_v = 0;
    for (size_t i = 0; i < layers.size(); ++i) {
        minicache_plan_group group = {};
        group.layers               = layers[i];
        for (int j = 0; j < 3; ++j) {
            reader.check_that(sizes[3 * i + j] > 0 && sizes[3 * i + j] <= 4096, "a head size makes no sense");
        }
        group.shape.n_layer   = (int16_t) group.layers.size();
        group.shape.n_head_kv = (int16_t) sizes[3 * i];
        group.shape.d_k       = (int16_t) sizes[3 * i + 1];
        group.shape.d_v       = (int16_t) sizes[3 * i + 2];
        if (coded) {
            group.layouts = {
                take_layouts(reader, units_k, at_k, group.shape),
                take_layouts(reader, units_v, at_v, group.shape),
            };
            read_code(reader, group);
        } else {
            const std::string name = "group." + std::to_string(group.layers[0]) + ".basis_";
            reader.basis(name + "k", group.shape.d_k, group.shape.n_head_kv, group.basis_k);
            reader.basis(name + "v", group.shape.d_v, group.shape.n_head_kv, group.basis_v);
        }
        plan.hash = hash_group(group, plan.hash);
        plan.groups.push_back(std::move(group));
    }
    reader.check_that(at_k == units_k.size() && at_v == units_v.size(), "its lists differ in length");
}

// layers that are in no group and have types of their own: layer, type of K, type of V, as ggml numbers them
static void read_plain(const minicache_plan_reader & reader, minicache_plan & plan) {
    std::set<int32_t> kept;
    for (const minicache_plan_group & group : plan.groups) {
        kept.insert(group.layers.begin(), group.layers.end());
    }
    const std::vector<int32_t> numbers = reader.ints("minicache.plain");
    reader.check_that(numbers.size() % 3 == 0, "its lists differ in length");

    for (size_t i = 0; i < numbers.size(); i += 3) {
        const int32_t il = numbers[i];
        reader.check_that(il >= 0 && il < plan.n_layer && kept.insert(il).second,
            "layer " + std::to_string(il) + " is kept in two ways, or there is none");
        for (const int32_t type : { numbers[i + 1], numbers[i + 2] }) {
            reader.check_that(type >= 0 && type < GGML_TYPE_COUNT && minicache_is_cache_type((ggml_type) type),
                "layer " + std::to_string(il) + " has an unknown cache type");
        }
        plan.plain[il] = { (ggml_type) numbers[i + 1], (ggml_type) numbers[i + 2] };
    }
}

// plans of codes need not say so
static llama_minicache_mode mode_of(const minicache_plan_reader & reader) {
    const std::string mode = reader.has("minicache.mode") ? reader.text("minicache.mode") : "code";
    reader.check_that(mode == "code" || mode == "aligned", "mode " + mode + ", which this version does not know");
    return mode == "code" ? LLAMA_MINICACHE_MODE_CODE : LLAMA_MINICACHE_MODE_ALIGNED;
}

std::shared_ptr<const minicache_plan> minicache_read_plan(const std::string & path) {
    const minicache_plan_reader reader(path);

    auto plan         = std::make_shared<minicache_plan>();
    plan->path        = path;
    plan->header      = reader.header();
    plan->fingerprint = reader.text("minicache.fingerprint");
    plan->n_layer     = (int32_t) reader.u32_up_to("minicache.n_layer", MOST_LAYERS);
    plan->rope_block  = (int32_t) reader.u32_up_to("minicache.rope_block", MOST_ROPE_BLOCK);
    plan->type_k      = reader.cache_type("minicache.type_k");
    plan->type_v      = reader.cache_type("minicache.type_v");
    plan->pool_type   = reader.cache_type("minicache.pool_type");
    plan->retain      = reader.fraction("minicache.retain");
    plan->window =
        reader.has("minicache.window") ? (int32_t) reader.u32_up_to("minicache.window", LLAMA_MINICACHE_WINDOW_MAX) : 0;
    plan->mode = mode_of(reader);
    plan->t    = plan->mode == LLAMA_MINICACHE_MODE_ALIGNED ? reader.fraction("minicache.t") : 0.0f;
    reader.check_that(
        plan->pool_type == GGML_TYPE_F16 || plan->pool_type == GGML_TYPE_Q8_0, "minicache.pool_type is neither f16 nor q8_0");

    plan->hash = minicache_hash(&plan->rope_block, sizeof(plan->rope_block));
    plan->hash = minicache_hash(&plan->mode, sizeof(plan->mode), plan->hash);
    // GGUF has no empty lists: a plan without groups has none of these, and a damaged one misses some
    if (reader.has("minicache.groups") || reader.has("minicache.group_sizes") || reader.has("minicache.heads")) {
        read_groups(reader, *plan);
    }
    if (reader.has("minicache.plain")) {
        read_plain(reader, *plan);
    }

    return plan;
}
