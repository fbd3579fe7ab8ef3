#include "llama-minicache-packing.h"

#include "llama-minicache-bytes.h"
#include "llama-minicache-rans.h"
#include "minicache-code-unit.h"

#include <cstring>
#include <stdexcept>

// Layout: the header, a packed_rows for each place that has coded rows, the payload's other bytes, the coded rows.

struct packed_header {
    uint64_t size;    // of the payload
    uint64_t n_rows;  // how many packed_rows follow
};

struct packed_rows {
    minicache_code_rows rows;
    uint64_t            size;  // of the coded rows
};

static const minicache_code_layout & layout_of(const minicache_code_shape & shape, bool is_v) {
    return is_v ? shape.layout_v : shape.layout_k;
}

static size_t token_bytes(const minicache_code_shape & shape, bool is_v) {
    return (size_t) shape.n_head_kv * minicache_code_bytes(layout_of(shape, is_v));
}

// The columns of a token's symbols: for each KV head the magnitudes, then the levels. Heads share the distributions, and so do
// coefficients of one width, whose steps are such that their levels are alike: a distribution of each coefficient would save
// less than 2 % more, without the room that its frequencies take.
static minicache_symbol_columns columns_of(const minicache_code_shape & shape, bool is_v) {
    const minicache_code_layout & layout = layout_of(shape, is_v);

    const int mags = minicache_code_mag_bytes(layout);

    minicache_symbol_columns columns;
    columns.n_symbol.assign(mags, 256);
    std::vector<uint8_t> & head = columns.distribution;
    for (int i = 0; i < mags; ++i) {
        head.push_back((uint8_t) i);
    }
    for (int i = 0; i < MINICACHE_CODE_WIDTHS; ++i) {
        if (layout.n_unit[i] > 0) {
            head.insert(head.end(), MINICACHE_CODE_UNIT * layout.n_unit[i], (uint8_t) columns.n_symbol.size());
            columns.n_symbol.push_back((uint16_t) (1 << minicache_code_width(i)));
        }
    }
    const size_t n = head.size();
    for (int h = 1; h < shape.n_head_kv; ++h) {
        for (size_t i = 0; i < n; ++i) {
            head.push_back(head[i]);
        }
    }
    return columns;
}

// A code row as symbols, and back. The row is a copy, because words are read from it.
class row_symbols {
  public:
    row_symbols(const minicache_code_layout & layout) :
        layout(layout), mags(minicache_code_mag_bytes(layout)), row(minicache_code_bytes(layout) / sizeof(uint16_t)) {
        for (int u = 0; u < minicache_code_size(layout) / MINICACHE_CODE_UNIT; ++u) {
            units.push_back(minicache_code_unit_at(layout, u));
        }
    }

    size_t n_byte() const { return row.size() * sizeof(uint16_t); }

    size_t n_symbol() const { return mags + MINICACHE_CODE_UNIT * units.size(); }

    void read(const uint8_t * bytes, uint8_t * symbols) {
        memcpy(row.data(), bytes, n_byte());
        memcpy(symbols, bytes, mags);
        symbols += mags;
        for (const minicache_code_unit & unit : units) {
            reader read_unit{ words(unit.upper), words(unit.lower), symbols };
            minicache_unit_dispatch(unit.width, read_unit);
            symbols += MINICACHE_CODE_UNIT;
        }
    }

    void write(const uint8_t * symbols, uint8_t * bytes) {
        memcpy(row.data(), symbols, mags);
        symbols += mags;
        for (const minicache_code_unit & unit : units) {
            writer write_unit{ words(unit.upper), words(unit.lower), symbols };
            minicache_unit_dispatch(unit.width, write_unit);
            symbols += MINICACHE_CODE_UNIT;
        }
        memcpy(bytes, row.data(), n_byte());
    }

  private:
    struct reader {
        const uint16_t * upper;
        const uint16_t * lower;
        uint8_t *        symbols;

        template <int UPPER, int LOWER>
        void operator()() const {
            uint32_t pairs[8];
            minicache_unit_pairs<UPPER, LOWER>(upper, lower, pairs);
            for (int j = 0; j < 8; ++j) {
                symbols[j]     = (uint8_t) pairs[j];
                symbols[j + 8] = (uint8_t) (pairs[j] >> 16);
            }
        }
    };

    struct writer {
        uint16_t *      upper;
        uint16_t *      lower;
        const uint8_t * symbols;

        template <int UPPER, int LOWER>
        void operator()() const {
            minicache_unit_write<UPPER, LOWER>(symbols, upper, lower);
        }
    };

    uint16_t * words(int offset) { return row.data() + offset / sizeof(uint16_t); }

    const minicache_code_layout      layout;
    const size_t                     mags;
    std::vector<uint16_t>            row;
    std::vector<minicache_code_unit> units;
};

static std::vector<uint8_t> packed_of(const uint8_t * bytes, uint32_t n_token, const minicache_code_shape & shape, bool is_v) {
    row_symbols  row(layout_of(shape, is_v));
    const size_t n_row = (size_t) n_token * shape.n_head_kv;

    std::vector<uint8_t> symbols(n_row * row.n_symbol());
    for (size_t i = 0; i < n_row; ++i) {
        row.read(bytes + i * row.n_byte(), symbols.data() + i * row.n_symbol());
    }
    std::vector<uint8_t> packed;
    minicache_rans_encode(columns_of(shape, is_v), symbols.data(), n_token, packed);
    return packed;
}

static void unpack_rows(
    const uint8_t * packed, size_t size, uint32_t n_token, const minicache_code_shape & shape, bool is_v, uint8_t * bytes) {
    row_symbols  row(layout_of(shape, is_v));
    const size_t n_row = (size_t) n_token * shape.n_head_kv;

    std::vector<uint8_t> symbols(n_row * row.n_symbol());
    minicache_rans_decode(columns_of(shape, is_v), packed, size, n_token, symbols.data());
    for (size_t i = 0; i < n_row; ++i) {
        row.write(symbols.data() + i * row.n_symbol(), bytes + i * row.n_byte());
    }
}

std::vector<uint8_t> minicache_pack(const std::vector<uint8_t> & payload, const std::vector<minicache_code_rows> & rows,
    const std::vector<minicache_code_shape> & shapes) {
    std::vector<packed_rows> taken;
    std::vector<uint8_t>     coded;
    std::vector<uint8_t>     others;

    size_t at = 0;
    for (const minicache_code_rows & one : rows) {
        const minicache_code_shape & shape  = shapes[one.group];
        const size_t                 size   = one.n_token * token_bytes(shape, one.is_v);
        const std::vector<uint8_t>   packed = packed_of(payload.data() + one.at, one.n_token, shape, one.is_v);
        if (packed.size() + sizeof(packed_rows) >= size) {
            continue;  // a few tokens, whose frequencies would take more than they save
        }
        taken.push_back({ one, packed.size() });
        coded.insert(coded.end(), packed.begin(), packed.end());
        others.insert(others.end(), payload.begin() + at, payload.begin() + one.at);
        at = one.at + size;
    }
    others.insert(others.end(), payload.begin() + at, payload.end());

    const packed_header  header = { payload.size(), taken.size() };
    std::vector<uint8_t> result;
    result.reserve(sizeof(header) + taken.size() * sizeof(packed_rows) + others.size() + coded.size());
    minicache_append(result, &header, 1);
    minicache_append(result, taken.data(), taken.size());
    minicache_append(result, others.data(), others.size());
    minicache_append(result, coded.data(), coded.size());
    return result;
}

[[noreturn]] static void damaged() { throw std::runtime_error("the saved state is damaged: its parts make no sense"); }

struct packed_parts {
    std::vector<packed_rows> rows;
    uint64_t                 n_other;  // bytes of the payload that are in no rows
};

// What is packed, if all rows fit into the payload and all of them are there.
static packed_parts read_parts(
    const packed_header & header, const std::vector<uint8_t> & packed, const std::vector<minicache_code_shape> & shapes) {
    const size_t after = packed.size() - sizeof(header);
    if (header.n_rows > after / sizeof(packed_rows)) {
        damaged();
    }
    packed_parts               parts = { std::vector<packed_rows>(header.n_rows), header.size };
    std::vector<packed_rows> & found = parts.rows;
    if (!found.empty()) {
        memcpy(found.data(), packed.data() + sizeof(header), found.size() * sizeof(packed_rows));
    }
    uint64_t left = after - found.size() * sizeof(packed_rows);  // for other bytes and coded rows
    uint64_t at   = 0;
    for (const packed_rows & one : found) {
        const minicache_code_rows & rows = one.rows;
        if (rows.group >= shapes.size() || rows.is_v > 1 || rows.at < at || rows.at > header.size || one.size > left) {
            damaged();
        }
        const uint64_t size = rows.n_token * (uint64_t) token_bytes(shapes[rows.group], rows.is_v);
        if (size > header.size - rows.at) {
            damaged();
        }
        at = rows.at + size;
        left -= one.size;
        parts.n_other -= size;
    }
    if (left != parts.n_other) {
        damaged();
    }
    return parts;
}

std::vector<uint8_t> minicache_unpack(
    const std::vector<uint8_t> & packed, const std::vector<minicache_code_shape> & shapes, size_t max_size) {
    packed_header header;
    if (packed.size() < sizeof(header)) {
        damaged();
    }
    memcpy(&header, packed.data(), sizeof(header));
    if (header.size > max_size) {
        damaged();
    }
    const packed_parts parts = read_parts(header, packed, shapes);

    const uint8_t * other = packed.data() + sizeof(header) + parts.rows.size() * sizeof(packed_rows);
    const uint8_t * coded = other + parts.n_other;

    std::vector<uint8_t> payload;
    payload.reserve(header.size);
    for (const packed_rows & one : parts.rows) {
        const size_t before = one.rows.at - payload.size();
        payload.insert(payload.end(), other, other + before);
        other += before;

        const minicache_code_shape & shape = shapes[one.rows.group];
        payload.resize(payload.size() + one.rows.n_token * token_bytes(shape, one.rows.is_v));
        unpack_rows(coded, one.size, one.rows.n_token, shape, one.rows.is_v, payload.data() + one.rows.at);
        coded += one.size;
    }
    payload.insert(payload.end(), other, other + (header.size - payload.size()));
    return payload;
}
