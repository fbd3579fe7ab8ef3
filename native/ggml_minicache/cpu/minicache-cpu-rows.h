#pragma once

// Row readers: the only part that knows the bytes of a storage format.

#include "ggml.h"

// n elements at `row` to float32; n is a multiple of the type's block size
typedef void (*minicache_read_row_t)(const void * row, float * out, int64_t n);

// never null for a type that a cache or a pool may have
minicache_read_row_t minicache_row_reader(enum ggml_type type);
