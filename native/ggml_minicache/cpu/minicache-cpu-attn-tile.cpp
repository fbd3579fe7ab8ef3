#include "minicache-cpu-attn-tile.h"

#include "minicache-cpu-kernels-levels.h"
#include "minicache-cpu-kernels-rows.h"
#include "minicache-cpu-kernels.h"
#include "vec.h"

#include <algorithm>

head_rows head_rows::take(scratch_memory & memory, const minicache_attn & a, const attn_schedule & schedule) {
    head_rows x  = {};
    x.q          = memory.floats(schedule.rows * schedule.d_k);
    x.acc_shared = memory.floats(schedule.rows * schedule.r_v);
    x.acc_exact  = memory.floats(schedule.rows * schedule.d_v);
    x.max        = memory.floats(schedule.rows);
    x.sum        = memory.floats(schedule.rows);
#if MINICACHE_LEVELS
    for (const entry_kind kind : { SHARED, RETAINED }) {
        if (schedule.few && schedule.rows_k[kind].is_level && !(kind == SHARED && a.coded)) {
            x.levels[kind] = memory.floats(minicache_level_queries::n_word(schedule.rows, schedule.ld_k));
        }
    }
#else
    (void) a;
#endif
    return x;
}

attn_tile::attn_tile(const minicache_attn & a, const attn_schedule & schedule, scratch_memory & memory) :
    a(a), schedule(schedule), span(a, schedule, memory), turned(a, schedule, memory),
    heads((head_rows *) memory.floats(schedule.heads * (int64_t) (sizeof(head_rows) / sizeof(float)))),
    scores(memory.floats(schedule.rows * MINICACHE_BLOCK)), k(memory.floats(MINICACHE_BLOCK * schedule.row_k)),
    v(memory.floats(MINICACHE_BLOCK * schedule.row_v)), columns(memory.floats(schedule.row_k * MINICACHE_BLOCK)),
    weights(memory.floats(schedule.ld_v / MINICACHE_LEVEL_SPAN * 4 * MINICACHE_LEVEL_BLOCK)),
    words((int32_t *) memory.floats(schedule.ld_k / 4 * MINICACHE_LEVEL_BLOCK)),
    reader_k(a, schedule, schedule.rows_k, a.r_k, schedule.ld_k, memory),
    reader_v(a, schedule, schedule.rows_v, a.r_v, schedule.ld_v, memory) {
    for (int64_t h = 0; h < schedule.heads; ++h) {
        const head_rows x = head_rows::take(memory, a, schedule);
        if (memory.is_real()) {
            heads[h] = x;
        }
    }
    // a piece that has all heads keeps their codecs
    if (memory.is_real() && a.coded && schedule.few) {
        set_codes();
    }
}

void attn_tile::begin(int64_t i_stream, int64_t i_head_kv, int64_t i_token, int64_t n) {
    stream    = i_stream;
    head_kv_0 = i_head_kv;
    token_0   = i_token;
    n_token   = n;

    if (a.coded && !schedule.few) {
        set_codes();
    }
    for (int64_t h = 0; h < schedule.heads; ++h) {
        head_rows & x = heads[h];
        for (int64_t r = 0; r < n_row(); ++r) {
            const float * q = a.query(stream, head_of(h, r), token_of(r));
            std::copy(q, q + a.d_k, x.q + r * schedule.d_k);
            pad_row(x.q + r * schedule.d_k, a.d_k, schedule.d_k);
        }
        std::fill(x.acc_shared, x.acc_shared + n_row() * schedule.r_v, 0.0f);
        std::fill(x.acc_exact, x.acc_exact + n_row() * schedule.d_v, 0.0f);
        std::fill(x.max, x.max + n_row(), -INFINITY);
        std::fill(x.sum, x.sum + n_row(), 0.0f);
        x.coded = false;
        if (!a.coded) {
            reader_k.set_level_queries(h, x.levels[SHARED], n_row(), schedule.rows, x.q, schedule.d_k, a.d_k, SHARED);
        }
        reader_k.set_level_queries(h, x.levels[RETAINED], n_row(), schedule.rows, x.q, schedule.d_k, a.d_k, RETAINED);
    }
    turned.forget_decoder();
}

// Finds the codecs of the piece's KV heads.
void attn_tile::set_codes() {
    for (int64_t h = 0; h < schedule.heads; ++h) {
        heads[h].code_k = a.head_k(head_kv_0 + h);
        heads[h].code_v = a.head_v(head_kv_0 + h);
        if (schedule.few) {
            reader_k.set_code(h, heads[h].code_k.layout);
            reader_v.set_code(h, heads[h].code_v.layout);
        }
    }
}

void attn_tile::attend(int64_t cell_0, int64_t cell_1) {
    for (int64_t cell = cell_0; cell < cell_1; cell += schedule.span) {
        const int64_t next = std::min(cell_1, cell + schedule.span);
        span.gather(stream, token_0, n_token, cell, next);
        n_ahead = next < cell_1 ? next - cell : 0;
        for (int64_t h = 0; h < schedule.heads; ++h) {
            turned.forget_bases();
            for (const entry_block & block : span) {
                join(h, block);
            }
        }
    }
}

void attn_tile::finish() {
    for (int64_t h = 0; h < schedule.heads; ++h) {
        head_rows & x = heads[h];
        if (a.coded && x.coded) {
            decode_values(x);
        } else if (!a.coded) {
            for (int64_t r = 0; r < n_row(); ++r) {
                for (int64_t j = 0; j < a.d_v; ++j) {
                    x.acc_exact[r * schedule.d_v + j] += x.acc_shared[r * schedule.r_v + j];
                }
            }
        }
    }
}

// Shared entries lie cell after cell, each with its rows for all heads, and are read head by head, in steps that no core's
// prefetcher follows. So each row also fetches the one that lies at the same place in the next span.
minicache_rows attn_tile::rows_of(const entry_block & block, const void * const * rows, const ggml_tensor * cache) const {
    return { rows, block.n, block.kind == SHARED ? n_ahead * (int64_t) cache->nb[2] : 0 };
}

// The block joins the softmax of the rows that see it.
void attn_tile::join(int64_t h, const entry_block & block) {
    head_rows &   x   = heads[h];
    const int64_t r_0 = block.token_0 * a.n_gqa;
    const int64_t n   = (block.token_1 - block.token_0) * a.n_gqa;

    find_rows(h, block);
    score(h, x, block, r_0, n);

    const bool has_mag = find_magnitudes(h, block);
    for (int64_t r = 0; r < n; ++r) {
        softmax_row(h, x, block, r_0 + r, scores + r * MINICACHE_BLOCK, has_mag);
    }
    if (block.kind == SHARED) {
        add_values(h, block, x.acc_shared + r_0 * schedule.r_v, schedule.r_v, n);
    } else {
        add_values(h, block, x.acc_exact + r_0 * schedule.d_v, schedule.d_v, n);
    }
    x.coded |= is_coded(block);
}

void attn_tile::find_rows(int64_t h, const entry_block & block) {
    const int32_t * cells = span.cells_of(block);
    const int64_t   head  = head_kv_0 + h;

    const auto each = [&](const auto & k_of, const auto & v_of) {
        for (int c = 0; c < block.n; ++c) {
            rows_k[c] = k_of(cells[c]);
            rows_v[c] = v_of(cells[c]);
        }
    };
    if (block.kind == SHARED) {
        const auto *  k_0    = (const char *) (a.coded ? a.code_k(heads[h].code_k, stream, 0) : a.merged_k(stream, head, 0));
        const auto *  v_0    = (const char *) (a.coded ? a.code_v(heads[h].code_v, stream, 0) : a.merged_v(stream, head, 0));
        const int64_t step_k = (int64_t) a.cache_k->nb[2];
        const int64_t step_v = (int64_t) a.cache_v->nb[2];
        each([=](int32_t cell) { return k_0 + cell * step_k; }, [=](int32_t cell) { return v_0 + cell * step_v; });
    } else if (block.kind == RETAINED) {
        each([&](int32_t cell) { return a.retained_k(stream, head, cell, a.state(stream, cell)); },
            [&](int32_t cell) { return a.retained_v(stream, head, cell, a.state(stream, cell)); });
    } else {
        each([&](int32_t cell) { return a.current_k(stream, head, a.state(stream, cell)); },
            [&](int32_t cell) { return a.current_v(stream, head, a.state(stream, cell)); });
    }
    for (int c = block.n; c % MINICACHE_LANES != 0; ++c) {
        rows_k[c] = rows_k[block.n - 1];
    }
}

// Returns false if all magnitudes are 1.
bool attn_tile::find_magnitudes(int64_t h, const entry_block & block) {
    for (int c = block.n; c % MINICACHE_LANES != 0; ++c) {
        mag_k[c] = mag_v[c] = 0.0f;
    }
    if (is_coded(block)) {
        const minicache_code_head & k_head = heads[h].code_k;
        const minicache_code_head & v_head = heads[h].code_v;
        for (int c = 0; c < block.n; ++c) {
            mag_k[c] = k_head.log_magnitude((const uint8_t *) rows_k[c], a.p.side);
            mag_v[c] = v_head.log_magnitude((const uint8_t *) rows_v[c], a.p.side);
        }
        ggml_vec_soft_max_f32(block.n, mag_k, mag_k, 0.0f);  // e^x
        ggml_vec_soft_max_f32(block.n, mag_v, mag_v, 0.0f);
        return true;
    }
    if (block.kind != SHARED || !a.mag) {
        return false;
    }
    const int32_t * cells = span.cells_of(block);
    for (int c = 0; c < block.n; ++c) {
        mag_k[c] = a.magnitude(MINICACHE_MAG_K, stream, head_kv_0 + h, cells[c]);
        mag_v[c] = a.magnitude(MINICACHE_MAG_V, stream, head_kv_0 + h, cells[c]);
    }
    return true;
}

//
// scores
//

// Scores of the rows r_0 to r_0 + n, without magnitudes.
void attn_tile::score(int64_t h, head_rows & x, const entry_block & block, int64_t r_0, int64_t n) {
    if (!is_coded(block)) {
        score_entries(h, block, n, x.q + r_0 * schedule.d_k, schedule.d_k, a.d_k, x.levels[block.kind], schedule.rows, r_0);
        return;
    }
    int i = turned.find(block.base);
    if (i < 0 && !schedule.few && block.n < n) {
        // the cheaper way where a base has fewer entries than there are queries
        turned.decode_keys(x.code_k, block, rows_k, k);
        minicache_columns(k, block.n, schedule.d_k, columns);
        minicache_scores_columns(x.q + r_0 * schedule.d_k, n, columns, schedule.d_k, scores);
        return;
    }
    if (i < 0) {
        turned.turn(h, x.code_k, reader_k, x.q, n_row(), &block, span.end());
        i = 0;
    }
    score_entries(h, block, n, turned.queries(i, n_row(), r_0), schedule.r_k, x.code_k.r, turned.level_queries(),
        coded_queries::max_rows(schedule), i * n_row() + r_0);
}

// n queries q [n][ldq] of d numbers; the same queries as levels are the rows from r_levels on, of n_levels in all.
void attn_tile::score_entries(int64_t h, const entry_block & block, int64_t n, const float * q, int64_t ldq, int64_t d,
    float * levels, int64_t n_levels, int64_t r_levels) {
    const entry_rows &   format = reader_k.format_of(block);
    const minicache_rows rows   = rows_of(block, rows_k, a.cache_k);
#if MINICACHE_LEVELS
    if (schedule.few && format.is_level) {
        const minicache_level_queries all(levels, n_levels, schedule.ld_k);
        for (int c = 0; c < rows.n; c += MINICACHE_LEVEL_BLOCK) {
            const minicache_rows       some = rows.from(c, MINICACHE_LEVEL_BLOCK);
            const minicache_level_rows x    = reader_k.read_levels(h, block, some, d);
            minicache_level_words(x.levels, x.ld, d, some.n, words);
            minicache_scores_levels(all.from(r_levels), n, d, words, x, some.n, scores + c);
        }
        return;
    }
#else
    (void) levels, (void) n_levels, (void) r_levels;
#endif
    if (schedule.few && format.is_plain) {
        switch (format.type) {
            case GGML_TYPE_F32:
                minicache_scores_rows<float>(q, ldq, n, rows, d, scores);
                break;
            case GGML_TYPE_F16:
                minicache_scores_rows<ggml_fp16_t>(q, ldq, n, rows, d, scores);
                break;
            default:
                minicache_scores_rows<ggml_bf16_t>(q, ldq, n, rows, d, scores);
                break;
        }
        return;
    }
    reader_k.read_floats(heads[h].code_k.layout, block, rows_k, d, k, ldq);
    minicache_columns(k, block.n, ldq, columns);
    minicache_scores_columns(q, n, columns, ldq, scores);
}

//
// softmax
//

// Turns the scores of one row into weights, magnitudes of V included, and zeros up to a whole vector.
void attn_tile::softmax_row(int64_t h, head_rows & x, const entry_block & block, int64_t r, float * s, bool has_mag) const {
    const float   slope = a.slope(head_of(h, r));
    const float * bias  = span.bias_of(block, r / a.n_gqa);
    const int     n     = (block.n + MINICACHE_LANES - 1) / MINICACHE_LANES * MINICACHE_LANES;

    if (a.p.softcap != 0.0f) {
        for (int c = 0; c < block.n; ++c) {
            s[c] = a.score(s[c], has_mag ? mag_k[c] : 1.0f, slope * bias[c]);
        }
    } else {
        const minicache_vec scale_all = vec_set(a.p.scale);
        const minicache_vec slope_all = vec_set(slope);
        for (int c = 0; c < n; c += MINICACHE_LANES) {
            minicache_vec y = vec_mul(scale_all, vec_load(s + c));
            y               = has_mag ? vec_mul(y, vec_load(mag_k + c)) : y;
            vec_store(s + c, vec_fma(slope_all, vec_load(bias + c), y));
        }
    }
    std::fill(s + block.n, s + n, -INFINITY);

    minicache_vec top = vec_set(x.max[r]);
    for (int c = 0; c < n; c += MINICACHE_LANES) {
        top = vec_max(top, vec_load(s + c));
    }
    const float max = vec_top(top);
    if (max == -INFINITY) {
        std::fill(s, s + n, 0.0f);
        return;
    }
    if (max > x.max[r]) {
        raise_max(x, r, max);
    }
    x.sum[r] += (float) ggml_vec_soft_max_f32(n, s, s, max);
    for (int c = 0; c < n && has_mag; c += MINICACHE_LANES) {
        vec_store(s + c, vec_mul(vec_load(s + c), vec_load(mag_v + c)));
    }
}

void attn_tile::raise_max(head_rows & x, int64_t r, float max) const {
    const float factor = expf(x.max[r] - max);
    x.max[r]           = max;
    x.sum[r] *= factor;
    minicache_rescale(x.acc_shared + r * schedule.r_v, factor, schedule.r_v);
    minicache_rescale(x.acc_exact + r * schedule.d_v, factor, schedule.d_v);
}

//
// values
//

// acc [n][ld] += the block's V, weighted
void attn_tile::add_values(int64_t h, const entry_block & block, float * acc, int64_t ld, int64_t n) {
    const entry_rows &   format = reader_v.format_of(block);
    const minicache_rows rows   = rows_of(block, rows_v, a.cache_v);
    const int64_t        d      = is_coded(block) ? heads[h].code_v.r : a.d_v;
#if MINICACHE_LEVELS
    if (schedule.few && format.is_level) {
        for (int c = 0; c < rows.n; c += MINICACHE_LEVEL_BLOCK) {
            const minicache_rows       some = rows.from(c, MINICACHE_LEVEL_BLOCK);
            const minicache_level_rows x    = reader_v.read_levels(h, block, some, d);
            minicache_values_levels(acc, ld, n, scores + c, x, some.n, d, weights);
        }
        return;
    }
#endif
    if (schedule.few && format.is_plain) {
        switch (format.type) {
            case GGML_TYPE_F32:
                minicache_values_rows<float>(acc, ld, n, scores, rows, d);
                break;
            case GGML_TYPE_F16:
                minicache_values_rows<ggml_fp16_t>(acc, ld, n, scores, rows, d);
                break;
            default:
                minicache_values_rows<ggml_bf16_t>(acc, ld, n, scores, rows, d);
                break;
        }
        return;
    }
    reader_v.read_floats(heads[h].code_v.layout, block, rows_v, d, v, ld);
    minicache_accumulate(acc, ld, n, scores, MINICACHE_BLOCK, v, block.n, ld);
}

// Adds V's decoder times each row's sum of codes to the exact accumulator.
void attn_tile::decode_values(head_rows & x) {
    const int64_t       n_coef = x.code_v.r;
    const ggml_fp16_t * d      = x.code_v.decoder(a.p.side);
    for (int64_t i = 0; i < a.d_v; i += MINICACHE_BLOCK) {
        const int n = (int) std::min<int64_t>(MINICACHE_BLOCK, a.d_v - i);
        for (int c = 0; c < MINICACHE_BLOCK; ++c) {
            rows_k[c] = d + (i + std::min(c, n - 1)) * n_coef;
        }
        minicache_scores_rows<ggml_fp16_t>(x.acc_shared, schedule.r_v, n_row(), { rows_k, n, 0 }, n_coef, scores);
        for (int64_t r = 0; r < n_row(); ++r) {
            for (int c = 0; c < n; ++c) {
                x.acc_exact[r * schedule.d_v + i + c] += scores[r * MINICACHE_BLOCK + c];
            }
        }
    }
}
