#include "llama-minicache-packing.h"

#include "llama-minicache-bytes.h"
#include "llama-minicache-rans.h"
#include "minicache-code-unit.h"

#include <algorithm>
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

typedef std::vector<minicache_code_layout> head_layouts;  // of all KV heads

static size_t token_bytes(const head_layouts & heads) {
    size_t n = 0;
    for (const minicache_code_layout & layout : heads) {
        n += minicache_code_bytes(layout);
    }
    return n;
}

// The columns of a token's symbols: for each KV head the magnitudes, then the levels. Heads share the distributions, and so do
// coefficients of one width, whose steps are such that their levels are alike: a distribution of each coefficient would save
// less than 2 % more, without the room that its frequencies take.
static minicache_symbol_columns columns_of(const head_layouts & heads) {
    const int mags = minicache_code_mag_bytes(heads[0]);

    minicache_symbol_columns columns;
    columns.n_symbol.assign(mags, 256);

    uint8_t of_width[MINICACHE_CODE_WIDTHS];
    for (int i = 0; i < MINICACHE_CODE_WIDTHS; ++i) {
        of_width[i] = (uint8_t) columns.n_symbol.size();
        if (std::any_of(heads.begin(), heads.end(), [i](const minicache_code_layout & one) { return one.n_unit[i] > 0; })) {
            columns.n_symbol.push_back((uint16_t) (1 << minicache_code_width(i)));
        }
    }
    std::vector<uint8_t> & distribution = columns.distribution;
    for (const minicache_code_layout & layout : heads) {
        for (int i = 0; i < mags; ++i) {
            distribution.push_back((uint8_t) i);
        }
        for (int i = 0; i < MINICACHE_CODE_WIDTHS; ++i) {
            distribution.insert(distribution.end(), MINICACHE_CODE_UNIT * layout.n_unit[i], of_width[i]);
        }
    }
    return columns;
}

// A code row as symbols, and back. The row is a copy, because words are read from it.
class row_symbols {
  public:
    explicit row_symbols(const minicache_code_layout & layout) :
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

// The code rows of a token as symbols, and back.
class token_symbols {
  public:
    explicit token_symbols(const head_layouts & layouts) : heads(layouts.begin(), layouts.end()) {}

    size_t n_symbol() const {
        size_t n = 0;
        for (const row_symbols & head : heads) {
            n += head.n_symbol();
        }
        return n;
    }

    void read(const uint8_t * bytes, uint8_t * symbols) {
        for (row_symbols & head : heads) {
            head.read(bytes, symbols);
            bytes += head.n_byte();
            symbols += head.n_symbol();
        }
    }

    void write(const uint8_t * symbols, uint8_t * bytes) {
        for (row_symbols & head : heads) {
            head.write(symbols, bytes);
            bytes += head.n_byte();
            symbols += head.n_symbol();
        }
    }

  private:
    std::vector<row_symbols> heads;
};

static std::vector<uint8_t> packed_of(const uint8_t * bytes, uint32_t n_token, const head_layouts & heads) {
    token_symbols token(heads);
    const size_t  n_symbol = token.n_symbol();
    const size_t  n_byte   = token_bytes(heads);

    std::vector<uint8_t> symbols(n_token * n_symbol);
    for (size_t i = 0; i < n_token; ++i) {
        token.read(bytes + i * n_byte, symbols.data() + i * n_symbol);
    }
    std::vector<uint8_t> packed;
    minicache_rans_encode(columns_of(heads), symbols.data(), n_token, packed);
    return packed;
}

static void unpack_rows(const uint8_t * packed, size_t size, uint32_t n_token, const head_layouts & heads, uint8_t * bytes) {
    token_symbols token(heads);
    const size_t  n_symbol = token.n_symbol();
    const size_t  n_byte   = token_bytes(heads);

    std::vector<uint8_t> symbols(n_token * n_symbol);
    minicache_rans_decode(columns_of(heads), packed, size, n_token, symbols.data());
    for (size_t i = 0; i < n_token; ++i) {
        token.write(symbols.data() + i * n_symbol, bytes + i * n_byte);
    }
}

std::vector<uint8_t> minicache_pack(const std::vector<uint8_t> & payload, const std::vector<minicache_code_rows> & rows,
    const std::vector<minicache_group_layouts> & layouts) {
    std::vector<packed_rows> taken;
    std::vector<uint8_t>     coded;
    std::vector<uint8_t>     others;

    size_t at = 0;
    for (const minicache_code_rows & one : rows) {
        const head_layouts &       heads  = layouts[one.group].of(one.is_v);
        const size_t               size   = one.n_token * token_bytes(heads);
        const std::vector<uint8_t> packed = packed_of(payload.data() + one.at, one.n_token, heads);
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
    const packed_header & header, const std::vector<uint8_t> & packed, const std::vector<minicache_group_layouts> & layouts) {
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
        if (rows.group >= layouts.size() || rows.is_v > 1 || rows.at < at || rows.at > header.size || one.size > left) {
            damaged();
        }
        const head_layouts & heads = layouts[rows.group].of(rows.is_v);
        const uint64_t       size  = rows.n_token * (uint64_t) token_bytes(heads);
        if (heads.empty() || size > header.size - rows.at) {
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
    const std::vector<uint8_t> & packed, const std::vector<minicache_group_layouts> & layouts, size_t max_size) {
    packed_header header;
    if (packed.size() < sizeof(header)) {
        damaged();
    }
    memcpy(&header, packed.data(), sizeof(header));
    if (header.size > max_size) {
        damaged();
    }
    const packed_parts parts = read_parts(header, packed, layouts);

    const uint8_t * other = packed.data() + sizeof(header) + parts.rows.size() * sizeof(packed_rows);
    const uint8_t * coded = other + parts.n_other;

    std::vector<uint8_t> payload;
    payload.reserve(header.size);
    for (const packed_rows & one : parts.rows) {
        const size_t before = one.rows.at - payload.size();
        payload.insert(payload.end(), other, other + before);
        other += before;

        const head_layouts & heads = layouts[one.rows.group].of(one.rows.is_v);
        payload.resize(payload.size() + one.rows.n_token * token_bytes(heads));
        unpack_rows(coded, one.size, one.rows.n_token, heads, payload.data() + one.rows.at);
        coded += one.size;
    }
    payload.insert(payload.end(), other, other + (header.size - payload.size()));
    return payload;
}
