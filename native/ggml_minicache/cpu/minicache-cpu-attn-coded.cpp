#include "minicache-cpu-attn-coded.h"

#include "minicache-cpu-kernels.h"

#include <algorithm>

coded_queries::coded_queries(const minicache_attn & a, const attn_schedule & schedule, scratch_memory & memory) :
    a(a), schedule(schedule), turned(a.coded ? memory.floats(max_rows(schedule) * schedule.d_k) : nullptr),
    q(a.coded ? memory.floats(max_rows(schedule) * schedule.r_k) : nullptr), levels(nullptr),
    code_rows(a.coded ? memory.floats(MINICACHE_BLOCK * schedule.r_k) : nullptr),
    decoder(a.coded && !schedule.few ? memory.floats(a.r_k * schedule.d_k) : nullptr),
    angles(a.shape, a.coded ? a.codec->data : nullptr, memory.floats(angle_table::n_float(a.shape))) {
#if MINICACHE_LEVELS
    if (a.coded && schedule.few) {
        levels = memory.floats(minicache_level_queries::n_word(max_rows(schedule), schedule.ld_k));
    }
#endif
}

void coded_queries::turn(int64_t h, const minicache_code_head & head, const entry_reader & reader, const float * queries,
    int64_t n_row, const entry_block * block, const entry_block * end) {
    const int n_pair = minicache_turn_pairs(a.shape);

    n = 0;
    for (; block != end && block->kind == SHARED; ++block) {
        if (find(block->base) >= 0) {
            continue;
        }
        if (n == max_bases(schedule)) {
            break;
        }
        float * x = turned + n * n_row * schedule.d_k;
        std::copy(queries, queries + n_row * schedule.d_k, x);
        const float * angle = angles.at(block->base);
        for (int64_t r = 0; r < n_row; ++r) {
            minicache_turn(a.shape, angle, angle + n_pair, true, x + r * schedule.d_k);
        }
        base[n++] = block->base;
    }
    const int64_t n_all = n * n_row;
    std::fill(q, q + n_all * schedule.r_k, 0.0f);
    minicache_accumulate(q, schedule.r_k, n_all, turned, schedule.d_k, head.decoder(a.p.side), a.d_k, head.r);
    reader.set_level_queries(h, levels, n_all, max_rows(schedule), q, schedule.r_k, head.r, SHARED);
}

void coded_queries::decode_keys(
    const minicache_code_head & head, const entry_block & block, const void * const * rows, float * k) {
    prepare_decoder(head);
    minicache_code_read(head.layout, (const uint8_t * const *) rows, block.n, code_rows, schedule.r_k);
    std::fill(k, k + block.n * schedule.d_k, 0.0f);
    minicache_accumulate(k, schedule.d_k, block.n, code_rows, schedule.r_k, decoder, head.r, schedule.d_k);
    const float * angle = angles.at(block.base);
    for (int c = 0; c < block.n; ++c) {
        minicache_turn(a.shape, angle, angle + minicache_turn_pairs(a.shape), false, k + c * schedule.d_k);
    }
}

// Transposes K's decoder, once for an item.
void coded_queries::prepare_decoder(const minicache_code_head & head) {
    if (has_decoder) {
        return;
    }
    const ggml_fp16_t * d = head.decoder(a.p.side);
    for (int64_t c = 0; c < head.r; ++c) {
        for (int64_t i = 0; i < head.d; ++i) {
            decoder[c * schedule.d_k + i] = GGML_CPU_FP16_TO_FP32(d[i * head.r + c]);
        }
        pad_row(decoder + c * schedule.d_k, head.d, schedule.d_k);
    }
    has_decoder = true;
}
