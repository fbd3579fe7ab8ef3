#include "ggml-cpu.h"
#include "minicache-cpu.h"
#include "minicache-window.h"

// One thread decides which tokens the slots keep, in the order of the tokens, so that the outcome does not depend on the number
// of threads. Then all threads write the rows of those tokens.

static float as_f32(int32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

static int32_t as_bits(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

static float mean(const float * x, int64_t n) {
    float sum = 0.0f;
    for (int64_t i = 0; i < n; ++i) {
        sum += x[i];
    }
    return sum / n;
}

struct retain_op {
    explicit retain_op(const ggml_tensor * dst) :
        p(minicache_params<ggml_minicache_retain_params>(dst)), slots(dst->src[0]), merged(dst->src[1]),
        rows((const int64_t *) dst->src[2]->data), cells(dst->src[3]), n_tokens(dst->src[6]->ne[1]),
        n_slot(p.window + ggml_minicache_n_slot(p.n_cells, p.block)) {}

    const ggml_minicache_retain_params p;

    const ggml_tensor * slots;
    const ggml_tensor * merged;
    const int64_t *     rows;
    const ggml_tensor * cells;

    const int64_t n_tokens;
    const int64_t n_slot;

    int64_t stream(int64_t i) const { return rows[i] / p.n_cells; }

    int64_t cell(int64_t i) const { return rows[i] % p.n_cells; }

    int64_t window_slot(int64_t i) const { return minicache_window_slot(cell(i), p.window); }

    int64_t block_slot(int64_t i) const { return p.window + cell(i) / p.block; }

    int32_t * slot(int64_t stream, int64_t i) const {
        return (int32_t *) ((char *) slots->data + stream * slots->nb[2] + i * slots->nb[1]);
    }

    const float * distances(int64_t i) const {
        const auto * row = (const float *) ((const char *) merged->data + i * merged->nb[1]);
        return row + merged->ne[0] - 2 * p.n_head_kv;
    }

    // whether the cell still holds a token of an earlier ubatch
    bool holds_past(int64_t stream, int64_t cell) const {
        if (cell < 0 || cell >= cells->ne[0]) {
            return false;
        }
        const auto * data = (const int32_t *) ((const char *) cells->data + (stream - p.stream_0) * cells->nb[1]);
        return data[cell] == GGML_MINICACHE_CELL_MERGED;
    }
};

static void update_stats(const retain_op & op, int64_t stream, float distance_k, float distance_v) {
    int32_t * means = op.slot(stream, op.n_slot);
    int32_t * count = op.slot(stream, op.n_slot + 1);

    // the count saturates: from there on the means move with a fixed weight
    if (*count < INT32_MAX) {
        ++*count;
    }
    const float mean_k = as_f32(means[0]);
    const float mean_v = as_f32(means[1]);

    means[0] = as_bits(mean_k + (distance_k - mean_k) / (float) *count);
    means[1] = as_bits(mean_v + (distance_v - mean_v) / (float) *count);
}

static void decide(const retain_op & op) {
    // before any token is offered, slots drop tokens that this ubatch overwrites or that sequence operations have removed
    for (int64_t i = 0; op.p.block > 0 && i < op.n_tokens; ++i) {
        int32_t * slot = op.slot(op.stream(i), op.block_slot(i));
        if (slot[0] != 0 && !op.holds_past(op.stream(i), slot[0] - 1)) {
            slot[0] = 0;
        }
    }

    for (int64_t i = 0; i < op.n_tokens; ++i) {
        const float distance_k = mean(op.distances(i), op.p.n_head_kv);
        const float distance_v = mean(op.distances(i) + op.p.n_head_kv, op.p.n_head_kv);

        update_stats(op, op.stream(i), distance_k, distance_v);

        const float distance = 0.5f * (distance_k + distance_v);
        if (op.p.window > 0) {
            int32_t * slot = op.slot(op.stream(i), op.window_slot(i));
            slot[0]        = (int32_t) op.cell(i) + 1;
            slot[1]        = as_bits(distance);
        }
        if (op.p.block > 0) {
            int32_t * slot = op.slot(op.stream(i), op.block_slot(i));
            if (slot[0] == 0 || distance > as_f32(slot[1])) {
                slot[0] = (int32_t) op.cell(i) + 1;
                slot[1] = as_bits(distance);
            }
        }
    }
}

static void write_row(ggml_tensor * pool, int64_t side, int64_t stream, int64_t slot, const float * x) {
    char * row = (char *) pool->data + side * pool->nb[3] + stream * pool->nb[2] + slot * pool->nb[1];
    if (pool->type == GGML_TYPE_F32) {
        memcpy(row, x, pool->ne[0] * sizeof(float));
    } else {
        ggml_get_type_traits_cpu(pool->type)->from_float(x, row, pool->ne[0]);
    }
}

void minicache_cpu_retain(const ggml_compute_params * params, ggml_tensor * dst) {
    const retain_op op(dst);

    if (params->ith == 0) {
        decide(op);
    }
    if (op.n_slot == 0) {
        return;
    }
    ggml_barrier(params->threadpool);

    const int64_t n_embd_k = (int64_t) op.p.d_k * op.p.n_head_kv;

    for (int64_t i = params->ith; i < op.n_tokens; i += params->nth) {
        const int64_t stream = op.stream(i);

        const auto keep = [&](int64_t slot) {
            if (op.slot(stream, slot)[0] != op.cell(i) + 1) {
                return;
            }
            for (int side = 0; side < op.p.n_layer; ++side) {
                const ggml_tensor * kv = dst->src[6 + side];
                const auto *        x  = (const float *) ((const char *) kv->data + i * kv->nb[1]);

                write_row(dst->src[4], side, stream, slot, x);
                write_row(dst->src[5], side, stream, slot, x + n_embd_k);
            }
        };
        if (op.p.window > 0) {
            keep(op.window_slot(i));
        }
        if (op.p.block > 0) {
            keep(op.block_slot(i));
        }
    }
}
