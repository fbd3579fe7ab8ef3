#pragma once

// Lossless coding of rows of small symbols: range asymmetric numeral systems (Duda 2013, arXiv 1311.2540) with frequencies that are
// counted first and stored in front, and with several states that take turns (Giesen 2014, arXiv 1402.3392), so that a processor
// need not wait for one step before it begins the next.

#include <cstddef>
#include <cstdint>
#include <vector>

// What the symbols of a row are like. Columns that share a distribution share its frequencies.
struct minicache_symbol_columns {
    std::vector<uint8_t>  distribution;  // of each column
    std::vector<uint16_t> n_symbol;      // of each distribution, 1 to 256: its symbols are 0 to n_symbol - 1
};

// Appends the coded symbols to out. Their size is, but for the frequencies and 32 bytes, what the entropy of the distributions says.
//   symbols: [n_row][columns], each below its n_symbol
void minicache_rans_encode(
    const minicache_symbol_columns & columns, const uint8_t * symbols, size_t n_row, std::vector<uint8_t> & out);

// Reads what minicache_rans_encode() wrote for as many rows. Throws std::runtime_error where this is not the whole of data, or
// where it is damaged in another way; whatever it holds, no symbol is as large as its n_symbol.
void minicache_rans_decode(
    const minicache_symbol_columns & columns, const uint8_t * data, size_t size, size_t n_row, uint8_t * symbols);
