#include "minicache-cpu-attn-span.h"

#include "ggml-cpu.h"

#include <algorithm>

static const ggml_fp16_t MINUS_INFINITY = 0xFC00;

cell_span::cell_span(const minicache_attn & a, const attn_schedule & schedule, scratch_memory & memory) :
    a(a), bias(memory.floats(schedule.tile * LD)), order((int32_t *) memory.floats(attn_schedule::MAX_SPAN)),
    exact((int32_t *) memory.floats(attn_schedule::MAX_SPAN)),
    blocks((entry_block *) memory.floats(attn_schedule::MAX_SPAN * sizeof(entry_block) / sizeof(float))) {}

void cell_span::gather(int64_t stream, int64_t token_0, int64_t n_token, int64_t cell_0, int64_t cell_1) {
    n_block = 0;
    look(stream, token_0, n_token, cell_0, cell_1);

    const int32_t * bases = a.coded ? a.bases(stream) : nullptr;
    if (bases && n_run(bases) > n_shared / 16 + 1) {
        std::stable_sort(order, order + n_shared, [&](int32_t x, int32_t y) { return bases[x] < bases[y]; });
    }
    for (int at = 0; at < n_shared;) {
        const int32_t base = bases ? bases[order[at]] : 0;
        int           n    = 1;
        while (n < MINICACHE_BLOCK && at + n < n_shared && (!bases || bases[order[at + n]] == base)) {
            ++n;
        }
        add_block(SHARED, base, at, n);
        at += n;
    }
    int at = n_shared;
    for (const entry_kind kind : { RETAINED, CURRENT }) {
        const int start = at;
        for (int i = 0; i < n_exact; ++i) {
            if ((a.state(stream, exact[i]) < 0) == (kind == RETAINED)) {
                order[at++] = exact[i];
            }
        }
        for (int i = start; i < at; i += MINICACHE_BLOCK) {
            add_block(kind, 0, i, std::min(MINICACHE_BLOCK, at - i));
        }
    }
    for (int i = 0; i < n_block; ++i) {
        set_bias(blocks[i], stream, token_0, n_token);
    }
}

// Finds the cells that some token sees: those of shared entries go to `order`, those of exact ones to `exact`.
void cell_span::look(int64_t stream, int64_t token_0, int64_t n_token, int64_t cell_0, int64_t cell_1) {
    const int       n     = (int) (cell_1 - cell_0);
    const int32_t * state = a.cells(stream) ? a.cells(stream) + cell_0 : nullptr;

    uint16_t seen[attn_schedule::MAX_SPAN];
    std::fill(seen, seen + n, (uint16_t) (a.mask == nullptr));
    for (int64_t t = 0; t < n_token && a.mask; ++t) {
        const ggml_fp16_t * mask = a.mask_row(stream, token_0 + t) + cell_0;
        for (int i = 0; i < n; ++i) {
            seen[i] |= mask[i] != MINUS_INFINITY;
        }
    }
    n_shared = n_exact = 0;
    for (int i = 0; i < n; ++i) {
        const int32_t holds = state ? state[i] : GGML_MINICACHE_CELL_MERGED;

        order[n_shared] = (int32_t) cell_0 + i;
        n_shared += seen[i] && holds == GGML_MINICACHE_CELL_MERGED;
        exact[n_exact] = (int32_t) cell_0 + i;
        n_exact += seen[i] && holds != GGML_MINICACHE_CELL_MERGED && holds != GGML_MINICACHE_CELL_EMPTY;
    }
}

// runs of neighbouring shared entries with one base
int cell_span::n_run(const int32_t * bases) const {
    int n = n_shared > 0;
    for (int i = 1; i < n_shared; ++i) {
        n += bases[order[i]] != bases[order[i - 1]];
    }
    return n;
}

void cell_span::add_block(entry_kind kind, int32_t base, int first, int n) { blocks[n_block++] = { kind, base, first, n, 0, 0 }; }

// Fills in the block's part of the mask, and which tokens see any of its entries.
void cell_span::set_bias(entry_block & block, int64_t stream, int64_t token_0, int64_t n_token) {
    const int32_t * cells  = order + block.first;
    const bool      in_row = cells[block.n - 1] - cells[0] == block.n - 1;

    block.token_0 = n_token;
    for (int64_t t = 0; t < n_token; ++t) {
        float * x = bias + t * LD + block.first;
        if (!a.mask) {
            std::fill(x, x + block.n, 0.0f);
        } else {
            const ggml_fp16_t * mask = a.mask_row(stream, token_0 + t);
            ggml_fp16_t         at[MINICACHE_BLOCK];
            for (int i = 0; i < block.n && !in_row; ++i) {
                at[i] = mask[cells[i]];
            }
            const ggml_fp16_t * row  = in_row ? mask + cells[0] : at;
            bool                sees = false;
            for (int i = 0; i < block.n; ++i) {
                sees |= row[i] != MINUS_INFINITY;
            }
            ggml_cpu_fp16_to_fp32(row, x, block.n);
            if (!sees) {
                continue;
            }
        }
        block.token_0 = std::min(block.token_0, t);
        block.token_1 = t + 1;
    }
}
