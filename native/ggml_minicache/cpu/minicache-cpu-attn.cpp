#include "minicache-cpu-attn.h"

#include "ggml-cpu.h"
#include "minicache-cpu-attn-tile.h"

#include <algorithm>

// The attention op: threads take pieces of work (minicache-cpu-attn-schedule.h), and the results over chunks of the cells are
// combined.
//
// A piece of work passes over the cells once, with a tile of tokens times all query heads of a KV head, so that each row is
// read once for all of them. Cells are taken span by span (minicache-cpu-attn-span.h). The entries of a span are sorted into
// blocks of one kind, and shared entries into blocks of one base. A block gives its scores, one online softmax update (Milakov
// and Gimelshein 2018, arXiv 1805.02867) and its weighted sum. What no token of the tile sees is in no block, and a block is
// worked on for those tokens only that see something of it.
//
// Shared and exact entries have a query and an accumulator each (docs/design.md): merged entries in the same coordinates as exact
// ones, coded entries in those of the code. For those the query is turned back by the block's base and multiplied by K's decoder
// whenever the base changes, and the accumulator is multiplied by V's decoder once, at the end.
//
// Few queries, as in decode: the kernels take rows from where they lie in memory, as floats or levels, and a piece of work is a
// chunk of the cells for all KV heads, so that memory is read in its order. Many queries, as in prefill: a piece of work is a KV
// head and a tile of tokens, and a block is brought into columns once for all of its queries.

// of one thread
static int64_t attn_scratch_floats(const minicache_attn & a, const attn_schedule & schedule) {
    scratch_memory  memory(nullptr);
    const attn_tile counted(a, schedule, memory);
    return memory.size();
}

size_t minicache_cpu_attn_work_size(const ggml_tensor * op, int n_threads) {
    const minicache_attn a(op);
    const attn_schedule  schedule(a, n_threads);

    return sizeof(float) * (n_threads * attn_scratch_floats(a, schedule) + schedule.n_partial() * schedule.partial_floats());
}

static void write_row(const minicache_attn & a, ggml_tensor * dst, const attn_tile & tile, int64_t h, int64_t r, float max,
    float sum, const float * acc) {
    const int64_t head = tile.head_of(h, r);

    float factor = 1.0f;
    if (a.sinks) {
        const float sink     = ((const float *) a.sinks->data)[head];
        const float max_sink = std::max(max, sink);
        factor               = expf(max - max_sink);
        sum                  = sum * factor + expf(sink - max_sink);
    }
    const float norm = sum > 0.0f ? factor / sum : 0.0f;

    auto * out =
        (float *) ((char *) dst->data + tile.the_stream() * dst->nb[3] + tile.token_of(r) * dst->nb[2] + head * dst->nb[1]);
    for (int64_t j = 0; j < a.d_v; ++j) {
        out[j] = norm * acc[j];
    }
}

// Brings a row's results over the chunks under one maximum. `partials` is the row's result over the first chunk.
static void combine(const attn_schedule & schedule, const float * partials, float * max, float * sum, float * acc) {
    *max = -INFINITY;
    *sum = 0.0f;
    std::fill(acc, acc + schedule.d_v, 0.0f);

    for (int64_t c = 0; c < schedule.n_chunk; ++c) {
        *max = std::max(*max, partials[c * schedule.partial_floats()]);
    }
    if (*max == -INFINITY) {
        return;
    }
    for (int64_t c = 0; c < schedule.n_chunk; ++c) {
        const float * x      = partials + c * schedule.partial_floats();
        const float   factor = expf(x[0] - *max);
        *sum += factor * x[1];
        for (int64_t j = 0; j < schedule.d_v; ++j) {
            acc[j] += factor * x[2 + j];
        }
    }
}

void minicache_cpu_attn(const ggml_compute_params * params, ggml_tensor * dst) {
    const minicache_attn a(dst);
    const attn_schedule  schedule(a, params->nth);

    const int64_t  n_scratch = attn_scratch_floats(a, schedule);
    auto * const   work      = (float *) params->wdata;
    float * const  partials  = work + params->nth * n_scratch;
    scratch_memory memory(work + params->ith * n_scratch);
    attn_tile      tile(a, schedule, memory);

    const auto begin = [&](int64_t item) {
        const int64_t i_head  = item / schedule.n_tile % (a.n_head_kv / schedule.heads) * schedule.heads;
        const int64_t i_token = item % schedule.n_tile * schedule.tile;
        tile.begin(
            item / schedule.n_tile / (a.n_head_kv / schedule.heads), i_head, i_token, std::min(schedule.tile, a.n_tps - i_token));
    };
    const auto partial = [&](int64_t it, int64_t h, int64_t r) {
        return partials + it * schedule.partial_floats() + (h * schedule.rows + r) * (2 + schedule.d_v);
    };

    for (int64_t it = params->ith; it < schedule.n_item * schedule.n_chunk; it += params->nth) {
        begin(it / schedule.n_chunk);

        const int64_t cell_0 = it % schedule.n_chunk * schedule.chunk;
        tile.attend(std::min(a.n_kv, cell_0), std::min(a.n_kv, cell_0 + schedule.chunk));
        tile.finish();

        for (int64_t h = 0; h < schedule.heads; ++h) {
            const head_rows & x = tile.head(h);
            for (int64_t r = 0; r < tile.n_row(); ++r) {
                const float * acc = x.acc_exact + r * schedule.d_v;
                if (schedule.n_chunk == 1) {
                    write_row(a, dst, tile, h, r, x.max[r], x.sum[r], acc);
                } else {
                    float * y = partial(it, h, r);
                    y[0]      = x.max[r];
                    y[1]      = x.sum[r];
                    std::copy(acc, acc + schedule.d_v, y + 2);
                }
            }
        }
    }
    if (schedule.n_chunk == 1) {
        return;
    }
    ggml_barrier(params->threadpool);

    for (int64_t item = params->ith; item < schedule.n_item; item += params->nth) {
        begin(item);
        for (int64_t h = 0; h < schedule.heads; ++h) {
            for (int64_t r = 0; r < tile.n_row(); ++r) {
                float   max;
                float   sum;
                float * acc = tile.head(h).acc_exact;
                combine(schedule, partial(item * schedule.n_chunk, h, r), &max, &sum, acc);
                write_row(a, dst, tile, h, r, max, sum, acc);
            }
        }
    }
}
