#include "llama-minicache-rans.h"

#include "llama-minicache-bytes.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>

// Layout: for each distribution its first and last symbol that occur and the frequencies from one to the other, uint16 each; the
// states, uint32; the words, uint16, in the order in which they are read. Frequencies of a distribution that has no column, or of
// no rows, are those of its symbol 0 alone.

static const uint32_t N_BITS   = 12;            // of a probability
static const uint32_t TOTAL    = 1u << N_BITS;  // of the frequencies of a distribution
static const uint32_t LOW      = 1u << 16;      // states lie in [LOW, 2^16*LOW)
static const uint32_t N_STATE  = 8;
static const uint32_t N_SYMBOL = 256;  // at most

[[noreturn]] static void damaged() { throw std::runtime_error("the saved state is damaged: its codes make no sense"); }

struct frequencies {
    uint16_t of[N_SYMBOL]    = {};
    uint16_t below[N_SYMBOL] = {};  // of all smaller symbols

    void sum_up() {
        uint32_t sum = 0;
        for (uint32_t s = 0; s < N_SYMBOL; ++s) {
            below[s] = (uint16_t) sum;
            sum += of[s];
        }
    }
};

// Frequencies that add up to TOTAL, of which those of symbols that occur are not 0.
static frequencies frequencies_of(const std::array<uint64_t, N_SYMBOL> & counts) {
    uint64_t n = 0;
    for (const uint64_t count : counts) {
        n += count;
    }
    frequencies f;
    if (n == 0) {
        f.of[0] = TOTAL;
        f.sum_up();
        return f;
    }
    int64_t left = TOTAL;
    for (uint32_t s = 0; s < N_SYMBOL; ++s) {
        f.of[s] = counts[s] == 0 ? 0 : (uint16_t) std::max<uint64_t>(1, counts[s] * TOTAL / n);
        left -= f.of[s];
    }
    // the most frequent symbols lose or gain the least by it; all have been rounded down, but for the rare ones
    while (left != 0) {
        uint16_t &    most = *std::max_element(f.of, f.of + N_SYMBOL);
        const int64_t step = std::max(left, -(int64_t) most / 2);
        most               = (uint16_t) (most + step);
        left -= step;
    }
    f.sum_up();
    return f;
}

static void write_frequencies(const frequencies & f, std::vector<uint8_t> & out) {
    uint16_t ends[2] = { 0, 0 };
    for (uint32_t s = N_SYMBOL; s-- > 0;) {
        if (f.of[s] > 0) {
            ends[1] = std::max<uint16_t>(ends[1], s);
            ends[0] = s;
        }
    }
    minicache_append(out, ends, 2);
    minicache_append(out, f.of + ends[0], ends[1] - ends[0] + 1);
}

void minicache_rans_encode(
    const minicache_symbol_columns & columns, const uint8_t * symbols, size_t n_row, std::vector<uint8_t> & out) {
    const size_t n_column = columns.distribution.size();

    std::vector<std::array<uint64_t, N_SYMBOL>> counts(columns.n_symbol.size(), std::array<uint64_t, N_SYMBOL>{});
    for (size_t row = 0; row < n_row; ++row) {
        for (size_t c = 0; c < n_column; ++c) {
            ++counts[columns.distribution[c]][symbols[row * n_column + c]];
        }
    }
    std::vector<frequencies> found;
    for (const auto & count : counts) {
        found.push_back(frequencies_of(count));
        write_frequencies(found.back(), out);
    }

    uint32_t states[N_STATE];
    std::fill(states, states + N_STATE, LOW);

    // from the last symbol to the first, because a state gives back first what it took last
    std::vector<uint16_t> words;
    for (size_t row = n_row; row-- > 0;) {
        for (size_t c = n_column; c-- > 0;) {
            const size_t        i = row * n_column + c;
            const frequencies & f = found[columns.distribution[c]];
            const uint32_t      n = f.of[symbols[i]];
            uint32_t &          x = states[i % N_STATE];
            if (x >= (uint64_t) n << (32 - N_BITS)) {
                words.push_back((uint16_t) x);
                x >>= 16;
            }
            x = (x / n << N_BITS) + x % n + f.below[symbols[i]];
        }
    }
    std::reverse(words.begin(), words.end());
    minicache_append(out, states, N_STATE);
    minicache_append(out, words.data(), words.size());
}

// What the lower bits of a state say: the symbol, and what the state is without it.
struct decoding_table {
    uint8_t     symbol[TOTAL];
    frequencies f;
};

namespace {
class byte_reader {
  public:
    byte_reader(const uint8_t * data, size_t size) : data(data), left(size) {}

    template <typename T>
    void read(T * values, size_t n) {
        if (left / sizeof(T) < n) {
            damaged();
        }
        if (n > 0) {
            memcpy(values, data, n * sizeof(T));
        }
        data += n * sizeof(T);
        left -= n * sizeof(T);
    }

    const uint8_t * data;
    size_t          left;
};
}  // namespace

static void read_table(byte_reader & reader, uint32_t n_symbol, decoding_table & table) {
    uint16_t ends[2];
    reader.read(ends, 2);
    if (ends[0] > ends[1] || ends[1] >= n_symbol) {
        damaged();
    }
    reader.read(table.f.of + ends[0], ends[1] - ends[0] + 1);

    uint32_t sum = 0;
    for (uint32_t s = ends[0]; s <= ends[1]; ++s) {
        if (table.f.of[s] > TOTAL - sum) {
            damaged();
        }
        memset(table.symbol + sum, (int) s, table.f.of[s]);
        sum += table.f.of[s];
    }
    if (sum != TOTAL) {
        damaged();
    }
    table.f.sum_up();
}

void minicache_rans_decode(
    const minicache_symbol_columns & columns, const uint8_t * data, size_t size, size_t n_row, uint8_t * symbols) {
    byte_reader reader(data, size);

    std::vector<decoding_table> tables(columns.n_symbol.size());
    for (size_t i = 0; i < tables.size(); ++i) {
        read_table(reader, columns.n_symbol[i], tables[i]);
    }

    uint32_t states[N_STATE];
    reader.read(states, N_STATE);

    std::vector<uint16_t> words(reader.left / sizeof(uint16_t));
    reader.read(words.data(), words.size());
    auto word = words.begin();

    const size_t n_column = columns.distribution.size();
    for (size_t row = 0, i = 0; row < n_row; ++row) {
        for (size_t c = 0; c < n_column; ++c, ++i) {
            const decoding_table & table = tables[columns.distribution[c]];
            uint32_t &             x     = states[i % N_STATE];

            const uint32_t low = x % TOTAL;
            const uint8_t  s   = table.symbol[low];

            x = table.f.of[s] * (x >> N_BITS) + low - table.f.below[s];
            if (x < LOW) {
                if (word == words.end()) {
                    damaged();
                }
                x = x << 16 | *word++;
            }
            symbols[i] = s;
        }
    }
    if (word != words.end() || reader.left > 0 || std::any_of(states, states + N_STATE, [](uint32_t x) { return x != LOW; })) {
        damaged();
    }
}
