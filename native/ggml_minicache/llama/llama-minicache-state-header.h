#pragma once

// What a saved state of our cache begins with: the configuration that it is of, with its length and checksum, so that a state that
// was cut short or damaged, or does not fit, is refused before anything is changed.

#include "llama-kv-cache-minicache.h"

#include <cstdint>
#include <string>
#include <vector>

static const uint32_t MINICACHE_STATE_MAGIC   = 0x564b434d;  // "MCKV"
static const uint32_t MINICACHE_STATE_VERSION = 8;

struct minicache_state_header {
    uint32_t magic   = MINICACHE_STATE_MAGIC;
    uint32_t version = MINICACHE_STATE_VERSION;

    int32_t  type_k    = 0;
    int32_t  type_v    = 0;
    int32_t  pool_type = 0;
    int32_t  block     = 0;
    float    t         = 0.0f;
    uint32_t n_group   = 0;

    uint64_t model  = 0;  // its fingerprint; 0 where it was loaded without its weights
    uint64_t groups = 0;  // hash of the layer numbers
    uint64_t plan   = 0;  // the plan's hash, which covers basis matrices and codecs; 0 without a plan
    uint64_t plain  = 0;  // hash of the types of the layers that are not merged

    uint64_t payload_size = 0;
    uint64_t hash         = 0;  // of the header itself, with 0 here, the numbers of cells and the payload

    uint32_t n_stream = 0;
    int32_t  mode     = 0;
    int32_t  window   = 0;
    uint32_t unused   = 0;
};

// The header of a cache's states, without payload.
minicache_state_header minicache_state_header_of(const llama_kv_cache_minicache & kv);

// Says what differs in the configuration, "" if nothing does.
std::string minicache_state_difference(const minicache_state_header & saved, const minicache_state_header & own);

// The checksum of a state.
uint64_t minicache_state_hash(
    minicache_state_header header, const std::vector<uint32_t> & cell_counts, const std::vector<uint8_t> & payload);
