#include "llama-minicache-plan-reader.h"

#include "llama-minicache-settings.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

static const uint32_t PLAN_VERSION = 4;

static const char * const MAKE_IT_ANEW = "make a new one with `minicache calibrate MODEL`";

static void check(bool ok, const std::string & message) {
    if (!ok) {
        throw std::invalid_argument(message);
    }
}

minicache_plan_reader::minicache_plan_reader(const std::string & path) : path(path), stream(ggml_fopen(path.c_str(), "rb")) {
    check(stream || errno != ENOENT, "the plan " + path + " does not exist");
    check((bool) stream, "the plan " + path + " cannot be opened: " + strerror(errno));

    // before GGUF's reader, which would complain in the log
    char magic[4] = {};
    check(fread(magic, sizeof(magic), 1, stream.get()) == 1 && memcmp(magic, GGUF_MAGIC, sizeof(magic)) == 0,
        path + " is not a plan; `minicache calibrate MODEL` makes one");
    check(fseek(stream.get(), 0, SEEK_END) == 0, "the plan " + path + " cannot be read: " + strerror(errno));
    n_bytes = (size_t) ftell(stream.get());
    rewind(stream.get());

    ggml_context * ctx = nullptr;
    file.reset(gguf_init_from_file_ptr(stream.get(), { /*.no_alloc =*/true, /*.ctx =*/&ctx }));
    tensors.reset(ctx);
    check_that((bool) file, "its header cannot be read");

    check(has("general.type") && text("general.type") == "minicache-plan",
        path + " is not a plan; `minicache calibrate MODEL` makes one");
    check(u32("minicache.version") == PLAN_VERSION, path + " is a plan of another version; " + MAKE_IT_ANEW);
}

std::string minicache_plan_reader::damaged(const std::string & flaw) const {
    return "the plan " + path + " is damaged (" + flaw + "); " + MAKE_IT_ANEW;
}

void minicache_plan_reader::check_that(bool ok, const std::string & flaw) const { check(ok, damaged(flaw)); }

std::vector<uint8_t> minicache_plan_reader::header() const {
    std::vector<uint8_t> bytes(gguf_get_data_offset(file.get()));
    rewind(stream.get());
    // GGUF's reader refuses files that end before their data begins
    check_that(fread(bytes.data(), 1, bytes.size(), stream.get()) == bytes.size(), "its header cannot be read");
    return bytes;
}

//
// keys
//

int64_t minicache_plan_reader::key(const std::string & name, gguf_type type) const {
    const int64_t id = gguf_find_key(file.get(), name.c_str());
    check_that(id >= 0 && gguf_get_kv_type(file.get(), id) == type, "no valid " + name);
    return id;
}

bool minicache_plan_reader::has(const std::string & name) const { return gguf_find_key(file.get(), name.c_str()) >= 0; }

uint32_t minicache_plan_reader::u32(const std::string & name) const {
    return gguf_get_val_u32(file.get(), key(name, GGUF_TYPE_UINT32));
}

uint32_t minicache_plan_reader::u32_up_to(const std::string & name, uint32_t most) const {
    const uint32_t x = u32(name);
    check_that(x <= most, name + " is " + std::to_string(x) + ", which is more than " + std::to_string(most));
    return x;
}

float minicache_plan_reader::fraction(const std::string & name) const {
    const float x = gguf_get_val_f32(file.get(), key(name, GGUF_TYPE_FLOAT32));
    check_that(x >= 0.0f && x <= 1.0f, name + " is not from 0 to 1");  // written so that NaN fails
    return x;
}

std::string minicache_plan_reader::text(const std::string & name) const {
    return gguf_get_val_str(file.get(), key(name, GGUF_TYPE_STRING));
}

std::vector<int32_t> minicache_plan_reader::ints(const std::string & name) const {
    const int64_t id = key(name, GGUF_TYPE_ARRAY);
    check_that(gguf_get_arr_type(file.get(), id) == GGUF_TYPE_INT32, "no valid " + name);
    const auto * x = (const int32_t *) gguf_get_arr_data(file.get(), id);
    return std::vector<int32_t>(x, x + gguf_get_arr_n(file.get(), id));
}

ggml_type minicache_plan_reader::cache_type(const std::string & name) const {
    const std::optional<ggml_type> type = minicache_cache_type_named(text(name));
    check_that(type.has_value(), name + " is " + text(name) + ", which is no cache type");
    return *type;
}

//
// tensors
//

const ggml_tensor * minicache_plan_reader::tensor(const std::string & name, std::vector<uint8_t> & bytes) const {
    const int64_t id = gguf_find_tensor(file.get(), name.c_str());
    if (id < 0) {
        return nullptr;
    }
    const size_t at = gguf_get_data_offset(file.get()) + gguf_get_tensor_offset(file.get(), id);
    const size_t n  = gguf_get_tensor_size(file.get(), id);
    // before memory is taken, because a damaged header may ask for any amount
    check_that(at <= n_bytes && n <= n_bytes - at, "it is cut short within " + name);
    bytes.resize(n);
    check_that(
        fseek(stream.get(), (long) at, SEEK_SET) == 0 && fread(bytes.data(), 1, n, stream.get()) == n, name + " cannot be read");
    return ggml_get_tensor(tensors.get(), name.c_str());
}

std::vector<uint8_t> minicache_plan_reader::codec(const std::string & name) const {
    std::vector<uint8_t> bytes;
    const ggml_tensor *  x = tensor(name, bytes);
    check_that(x && x->type == GGML_TYPE_I8, "no " + name);
    return bytes;
}

void minicache_plan_reader::basis(const std::string & name, int64_t d, int64_t n_head, std::vector<float> (&sides)[2]) const {
    std::vector<uint8_t> bytes;
    const ggml_tensor *  x = tensor(name, bytes);
    check_that(x && (x->type == GGML_TYPE_F32 || x->type == GGML_TYPE_F16), "no " + name);
    check_that(
        x->ne[0] == d && x->ne[1] == d && x->ne[2] == n_head && (x->ne[3] == 1 || x->ne[3] == 2), name + " has the wrong size");

    const int64_t n = d * d * n_head;
    for (int64_t i = 0; i < x->ne[3]; ++i) {
        std::vector<float> & side = sides[i + 2 - x->ne[3]];
        side.resize(n);
        if (x->type == GGML_TYPE_F16) {
            ggml_fp16_to_fp32_row((const ggml_fp16_t *) bytes.data() + i * n, side.data(), n);
        } else {
            std::copy_n((const float *) bytes.data() + i * n, n, side.data());
        }
        for (int64_t row = 0; row < d * n_head; ++row) {
            double squares = 0.0;
            for (int64_t j = 0; j < d; ++j) {
                squares += (double) side[row * d + j] * side[row * d + j];
            }
            // written so that NaN fails
            check_that(squares > 0.98 && squares < 1.02, name + " is not orthogonal");
        }
    }
}
