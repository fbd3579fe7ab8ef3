#include "llama-minicache-plan.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "gguf.h"
#include "llama-model.h"
#include "minicache-hash.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <stdexcept>

static const uint32_t PLAN_VERSION = 3;

static void check(bool ok, const std::string & message) {
    if (!ok) {
        throw std::invalid_argument(message);
    }
}

// the keys of a plan file, each of the type it must have
class plan_reader {
  public:
    explicit plan_reader(const std::string & path) : path(path) {
        ggml_context * tensors = nullptr;
        file.reset(gguf_init_from_file(path.c_str(), { /*.no_alloc =*/false, /*.ctx =*/&tensors }));
        data.reset(tensors);
        check((bool) file, "plan " + path + " cannot be read: it is missing, no GGUF file, or cut short");
    }

    int64_t key(const std::string & name, gguf_type type) const {
        const int64_t id = gguf_find_key(file.get(), name.c_str());
        check(id >= 0 && gguf_get_kv_type(file.get(), id) == type, "plan " + path + " has no valid " + name + no_plan);
        return id;
    }

    uint32_t u32(const std::string & name) const { return gguf_get_val_u32(file.get(), key(name, GGUF_TYPE_UINT32)); }

    float f32(const std::string & name) const { return gguf_get_val_f32(file.get(), key(name, GGUF_TYPE_FLOAT32)); }

    std::string text(const std::string & name) const { return gguf_get_val_str(file.get(), key(name, GGUF_TYPE_STRING)); }

    bool has(const std::string & name) const { return gguf_find_key(file.get(), name.c_str()) >= 0; }

    std::vector<int32_t> ints(const std::string & name) const {
        const int64_t id = key(name, GGUF_TYPE_ARRAY);
        check(gguf_get_arr_type(file.get(), id) == GGUF_TYPE_INT32, "plan " + path + " has no valid " + name + no_plan);
        const auto * x = (const int32_t *) gguf_get_arr_data(file.get(), id);
        return std::vector<int32_t>(x, x + gguf_get_arr_n(file.get(), id));
    }

    ggml_type type(const std::string & name) const {
        const std::string wanted = text(name);
        for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
            const char * known = ggml_type_name((ggml_type) i);
            if (known && wanted == known) {
                return (ggml_type) i;
            }
        }
        throw std::invalid_argument("plan " + path + ": " + name + " is " + wanted + ", which is no cache type");
    }

    std::vector<uint8_t> bytes(const std::string & name) const {
        const ggml_tensor * x = ggml_get_tensor(data.get(), name.c_str());
        check(x && x->type == GGML_TYPE_I8, "plan " + path + " has no codec " + name + no_plan);
        const auto * p = (const uint8_t *) x->data;
        return std::vector<uint8_t>(p, p + ggml_nbytes(x));
    }

    // [n_side][n_head][d][d] numbers, the sides one by one: of both layers, or of layer b alone
    void bases(const std::string & name, int64_t d, int64_t n_head, std::vector<float> (&sides)[2]) const {
        const ggml_tensor * x = ggml_get_tensor(data.get(), name.c_str());
        check(x && (x->type == GGML_TYPE_F32 || x->type == GGML_TYPE_F16), "plan " + path + " has no " + name + no_plan);
        check(x->ne[0] == d && x->ne[1] == d && x->ne[2] == n_head && (x->ne[3] == 1 || x->ne[3] == 2),
            "plan " + path + " is damaged: " + name + " has the wrong size");

        const int64_t n = d * d * n_head;
        for (int64_t i = 0; i < x->ne[3]; ++i) {
            std::vector<float> & side = sides[i + 2 - x->ne[3]];
            side.resize(n);
            if (x->type == GGML_TYPE_F16) {
                ggml_fp16_to_fp32_row((const ggml_fp16_t *) x->data + i * n, side.data(), n);
            } else {
                std::copy_n((const float *) x->data + i * n, n, side.data());
            }
            for (int64_t row = 0; row < d * n_head; ++row) {
                double squares = 0.0;
                for (int64_t j = 0; j < d; ++j) {
                    squares += (double) side[row * d + j] * side[row * d + j];
                }
                // written so that NaN fails
                check(squares > 0.98 && squares < 1.02, "plan " + path + " is damaged: " + name + " is not orthogonal");
            }
        }
    }

  private:
    const std::string path;
    const std::string no_plan = ": it is no plan of this version, make it anew with `minicache calibrate`";

    gguf_context_ptr file;
    ggml_context_ptr data;
};

// of each group, from the numbers of units of each width
static std::vector<minicache_code_layout> layouts_of(
    const std::string & path, const std::vector<int32_t> & counts, size_t n_group) {
    check(counts.size() == MINICACHE_CODE_WIDTHS * n_group, "plan " + path + " is damaged: its lists differ in length");

    std::vector<minicache_code_layout> layouts(n_group);
    for (size_t i = 0; i < counts.size(); ++i) {
        check(counts[i] >= 0 && counts[i] <= UINT8_MAX,
            "plan " + path + " is damaged: a code has " + std::to_string(counts[i]) + " units of one width");
        layouts[i / MINICACHE_CODE_WIDTHS].n_unit[i % MINICACHE_CODE_WIDTHS] = (uint8_t) counts[i];
    }
    return layouts;
}

std::string minicache_codec_flaw(const minicache_code_shape & shape, const void * codec) {
    const minicache_codec_offsets o = minicache_codec_offsets_of(shape);

    std::vector<float> x(o.dec_k / sizeof(float));
    memcpy(x.data(), codec, o.dec_k);
    if (!std::all_of(x.begin(), x.end(), [](float value) { return std::isfinite(value); })) {
        return "numbers that are not finite";
    }
    for (int64_t i = o.mag / sizeof(float) + 1; i < o.weight_k / (int64_t) sizeof(float); i += 2) {
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

// of a group, whose layers and sizes are known
static void read_code(const plan_reader & reader, const minicache_plan & plan, const minicache_code_layout & layout_k,
    const minicache_code_layout & layout_v, minicache_plan_group & group) {
    const std::string first = std::to_string(group.layers[0]);
    const int         n     = (int) group.layers.size();

    group.shape.layout_k         = layout_k;
    group.shape.layout_v         = layout_v;
    group.shape.layout_k.n_layer = group.shape.layout_v.n_layer = (uint8_t) n;
    check(minicache_code_size(layout_k) <= n * group.shape.d_k && minicache_code_size(layout_v) <= n * group.shape.d_v,
        "plan " + plan.path + " is damaged: a code is longer than what it codes");

    group.codec = reader.bytes("group." + first + ".codec");
    check((int64_t) group.codec.size() == minicache_codec_offsets_of(group.shape).size,
        "plan " + plan.path + " is damaged: the codec of layer " + first + " has the wrong size");

    const std::string flaw = minicache_codec_flaw(group.shape, group.codec.data());
    check(flaw.empty(), "plan " + plan.path + " is damaged: the codec of layer " + first + " has " + flaw);
}

// the layers of each group
static std::vector<minicache_layers> read_layers(const plan_reader & reader, const minicache_plan & plan) {
    const std::vector<int32_t> all   = reader.ints("minicache.groups");
    const std::vector<int32_t> sizes = reader.ints("minicache.group_sizes");

    std::vector<minicache_layers> groups;
    std::set<int32_t>             seen;
    size_t                        at = 0;
    for (const int32_t n : sizes) {
        check(n >= 1 && n <= MINICACHE_CODE_LAYERS && (size_t) n <= all.size() - at,
            "plan " + plan.path + " is damaged: a group has no layers, or too many");
        groups.emplace_back(all.begin() + at, all.begin() + at + n);
        at += n;

        const minicache_layers & layers = groups.back();
        check(std::is_sorted(layers.begin(), layers.end()),
            "plan " + plan.path + " is damaged: layers of a group are not in order");
        check(
            plan.mode == LLAMA_MINICACHE_MODE_CODE || n == 2, "plan " + plan.path + " is damaged: a group is not of two layers");
        for (const int32_t il : layers) {
            check(il >= 0 && il < plan.n_layer && seen.insert(il).second,
                "plan " + plan.path + " is damaged: layer " + std::to_string(il) + " is in two groups, or there is none");
        }
    }
    check(at == all.size(), "plan " + plan.path + " is damaged: its lists differ in length");
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

static void read_groups(const plan_reader & reader, minicache_plan & plan) {
    const std::vector<minicache_layers> layers = read_layers(reader, plan);
    const std::vector<int32_t>          sizes  = reader.ints("minicache.heads");

    check(sizes.size() == 3 * layers.size(), "plan " + plan.path + " is damaged: its lists differ in length");

    const bool coded = plan.mode == LLAMA_MINICACHE_MODE_CODE;

    std::vector<minicache_code_layout> layouts_k;
    std::vector<minicache_code_layout> layouts_v;
    if (coded) {
        layouts_k = layouts_of(plan.path, reader.ints("minicache.units_k"), layers.size());
        layouts_v = layouts_of(plan.path, reader.ints("minicache.units_v"), layers.size());
    }

    for (size_t i = 0; i < layers.size(); ++i) {
        minicache_plan_group group = {};
        group.layers               = layers[i];
        for (int j = 0; j < 3; ++j) {
            check(sizes[3 * i + j] > 0 && sizes[3 * i + j] <= 4096,
                "plan " + plan.path + " is damaged: a head size makes no sense");
        }
        group.shape.n_head_kv = (int16_t) sizes[3 * i];
        group.shape.d_k       = (int16_t) sizes[3 * i + 1];
        group.shape.d_v       = (int16_t) sizes[3 * i + 2];
        if (coded) {
            read_code(reader, plan, layouts_k[i], layouts_v[i], group);
        } else {
            const std::string name = "group." + std::to_string(group.layers[0]) + ".basis_";
            reader.bases(name + "k", group.shape.d_k, group.shape.n_head_kv, group.basis_k);
            reader.bases(name + "v", group.shape.d_v, group.shape.n_head_kv, group.basis_v);
        }
        plan.hash = hash_group(group, plan.hash);
        plan.groups.push_back(std::move(group));
    }
}

// layers that are in no group and have types of their own: layer, type of K, type of V, as ggml numbers them
static void read_plain(const plan_reader & reader, minicache_plan & plan) {
    std::set<int32_t> kept;
    for (const minicache_plan_group & group : plan.groups) {
        kept.insert(group.layers.begin(), group.layers.end());
    }
    const std::vector<int32_t> numbers = reader.ints("minicache.plain");
    check(numbers.size() % 3 == 0, "plan " + plan.path + " is damaged: its lists differ in length");

    for (size_t i = 0; i < numbers.size(); i += 3) {
        const int32_t il = numbers[i];
        check(il >= 0 && il < plan.n_layer && kept.insert(il).second,
            "plan " + plan.path + " is damaged: layer " + std::to_string(il) + " is kept in two ways, or there is none");
        for (const int32_t type : { numbers[i + 1], numbers[i + 2] }) {
            check(type >= 0 && type < GGML_TYPE_COUNT && ggml_blck_size((ggml_type) type) > 0,
                "plan " + plan.path + " is damaged: layer " + std::to_string(il) + " has an unknown cache type");
        }
        plan.plain[il] = { (ggml_type) numbers[i + 1], (ggml_type) numbers[i + 2] };
    }
}

// plans of codes need not say so
static llama_minicache_mode mode_of(const plan_reader & reader, const std::string & path) {
    const std::string mode = reader.has("minicache.mode") ? reader.text("minicache.mode") : "code";
    check(mode == "code" || mode == "aligned", "plan " + path + " is of mode " + mode + ", which this version does not know");
    return mode == "code" ? LLAMA_MINICACHE_MODE_CODE : LLAMA_MINICACHE_MODE_ALIGNED;
}

std::shared_ptr<const minicache_plan> minicache_read_plan(const std::string & path) {
    const plan_reader reader(path);

    check(reader.text("general.type") == "minicache-plan" && reader.u32("minicache.version") == PLAN_VERSION,
        path + " is no plan of this version: make it anew with `minicache calibrate`");

    auto plan         = std::make_shared<minicache_plan>();
    plan->path        = path;
    plan->fingerprint = reader.text("minicache.fingerprint");
    plan->n_layer     = (int32_t) reader.u32("minicache.n_layer");
    plan->rope_block  = (int32_t) reader.u32("minicache.rope_block");
    plan->type_k      = reader.type("minicache.type_k");
    plan->type_v      = reader.type("minicache.type_v");
    plan->pool_type   = reader.type("minicache.pool_type");
    plan->retain      = reader.f32("minicache.retain");
    plan->window      = reader.has("minicache.window") ? (int32_t) reader.u32("minicache.window") : 0;
    plan->mode        = mode_of(reader, path);
    plan->t           = plan->mode == LLAMA_MINICACHE_MODE_ALIGNED ? reader.f32("minicache.t") : 0.0f;
    check(plan->window >= 0 && plan->window <= MINICACHE_WINDOW_MAX, "plan " + path + " is damaged: its window makes no sense");
    plan->hash = minicache_hash(&plan->rope_block, sizeof(plan->rope_block));
    plan->hash = minicache_hash(&plan->mode, sizeof(plan->mode), plan->hash);

    check(plan->rope_block >= 0 && plan->rope_block <= 1 << 20, "plan " + path + " is damaged: its block makes no sense");
    if (reader.has("minicache.groups")) {  // GGUF has no empty lists
        read_groups(reader, *plan);
    }
    if (reader.has("minicache.plain")) {
        read_plain(reader, *plan);
    }

    return plan;
}

//
// fingerprint
//

static const int64_t FINGERPRINT_FLOATS = 256;  // of each norm; a whole model of them is read in no time

static uint64_t hash_norm(const llama_model & model, const std::string & name, uint64_t h) {
    const ggml_tensor * x = model.get_tensor(name.c_str());
    if (!x || x->type != GGML_TYPE_F32) {
        return h;
    }
    std::vector<float> data(std::min(FINGERPRINT_FLOATS, ggml_nelements(x)));
    ggml_backend_tensor_get(x, data.data(), 0, data.size() * sizeof(float));
    return minicache_hash(data.data(), data.size() * sizeof(float), h);
}

std::string minicache_fingerprint(const llama_model & model) {
    const std::string arch    = model.arch_name();
    const uint32_t    n_layer = model.hparams.n_layer();

    uint64_t h = minicache_hash(arch.data(), arch.size());

    const uint32_t sizes[2] = { n_layer, model.hparams.n_embd };
    h                       = minicache_hash(sizes, sizeof(sizes), h);
    for (uint32_t il = 0; il < n_layer; ++il) {
        for (const char * norm : { "attn_norm", "ffn_norm" }) {
            h = hash_norm(model, "blk." + std::to_string(il) + "." + norm + ".weight", h);
        }
    }
    h = hash_norm(model, "output_norm.weight", h);

    char text[17];
    snprintf(text, sizeof(text), "%016llx", (unsigned long long) h);
    return text;
}

void minicache_check_plan(const minicache_plan & plan, const llama_model & model) {
    const std::string own = minicache_fingerprint(model);
    check(plan.fingerprint == own && plan.n_layer == (int32_t) model.hparams.n_layer(),
        "plan " + plan.path + " was made for another model (" + plan.fingerprint + ", this one is " + own +
            "): make one with `minicache calibrate`");

    for (const minicache_plan_group & group : plan.groups) {
        const int32_t first = group.layers[0];
        check(group.shape.n_head_kv == (int64_t) model.hparams.n_head_kv(first) &&
                  group.shape.d_k == (int64_t) model.hparams.n_embd_head_k(first) &&
                  group.shape.d_v == (int64_t) model.hparams.n_embd_head_v(first),
            "plan " + plan.path + " does not fit the heads of layer " + std::to_string(first));
    }
}
