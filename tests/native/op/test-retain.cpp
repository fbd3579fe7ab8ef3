#include "ggml-backend.h"
#include "ggml-minicache.h"
#include "test-case.h"

#include <algorithm>
#include <cmath>
#include <map>

// Offers several ubatches to the slots one after the other. Between them cells are emptied and taken again.
static const int N_STEP = 4;

struct retain_shape {
    int       d_k       = 64;
    int       d_v       = 64;
    int       n_head_kv = 2;
    int       block     = 20;
    int       n_cells   = 150;
    int       n_tps     = 30;
    int       n_stream  = 1;  // streams of a ubatch
    int       stream_0  = 0;
    ggml_type type      = GGML_TYPE_F16;
    bool      coded     = false;  // rows of distances only, as ggml_minicache_encode() returns them
    int       n_layer   = 2;
    int       threads   = 1;
};

class test_retain : public test_case {
  public:
    explicit test_retain(const retain_shape & p) :
        p(p), all_streams(p.stream_0 + p.n_stream + (p.n_stream > 1)), n_slot(ggml_minicache_n_slot(p.n_cells, p.block)) {}

    const char * op() const override { return "RETAIN"; }

    std::string vars() const override {
        return var_list()
            .add("d_k", p.d_k)
            .add("d_v", p.d_v)
            .add("n_head_kv", p.n_head_kv)
            .add("block", p.block)
            .add("n_cells", p.n_cells)
            .add("n_tps", p.n_tps)
            .add("n_stream", p.n_stream)
            .add("stream_0", p.stream_0)
            .add("type", ggml_type_name(p.type))
            .add("coded", p.coded)
            .add("n_layer", p.n_layer)
            .add("threads", p.threads)
            .str();
    }

    // rows are rounded by the same code, but compilers may round halves of q8_0 either way
    double max_nmse() const override { return p.type == GGML_TYPE_F16 ? 0.0 : 1e-6; }

    int n_threads() const override { return p.threads; }

    size_t bytes() const override { return p.n_layer * steps.size() * ggml_nbytes(steps[0].kv[0]); }

    void build(ggml_context * ctx, ggml_cgraph * gf, bool) override {
        slots = ggml_new_tensor_3d(ctx, GGML_TYPE_I32, 2, n_slot + GGML_MINICACHE_SLOT_STATS, all_streams);
        for (int is_v = 0; is_v < 2 && p.block > 0; ++is_v) {
            const int64_t n_embd = (int64_t) (is_v ? p.d_v : p.d_k) * p.n_head_kv;
            pools[is_v]          = ggml_new_tensor_4d(ctx, p.type, n_embd, n_slot, all_streams, p.n_layer);
        }
        ggml_tensor * result = slots;
        for (step & st : steps) {
            const int64_t n_embd   = (int64_t) (p.d_k + p.d_v) * p.n_head_kv;
            const int64_t n_tokens = (int64_t) p.n_tps * p.n_stream;

            for (int side = 0; side < p.n_layer; ++side) {
                st.kv[side] = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n_embd, n_tokens);
            }
            st.merged = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, p.coded ? 2 * p.n_head_kv : n_embd + 6 * p.n_head_kv, n_tokens);
            st.rows   = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, n_tokens);
            st.cells  = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, n_kv(), p.n_stream);
            result    = ggml_minicache_retain(ctx, result, st.merged, st.rows, st.cells, st.kv, pools[0], pools[1],
                { p.d_k, p.d_v, p.n_head_kv, p.n_layer, p.block, p.n_cells, p.stream_0, /*.window =*/0 });
            ggml_build_forward_expand(gf, result);
        }
    }

    void initialize(rng_t & rng) override {
        const std::vector<int32_t> zeros(ggml_nelements(slots));
        ggml_backend_tensor_set(slots, zeros.data(), 0, ggml_nbytes(slots));
        for (ggml_tensor * pool : pools) {
            if (pool) {
                ggml_backend_tensor_memset(pool, 0, 0, ggml_nbytes(pool));
            }
        }
        std::vector<std::vector<bool>> used(p.n_stream, std::vector<bool>(n_kv()));
        for (step & st : steps) {
            fill(rng, st, used);
        }
        expect();
    }

    double error() const override {
        std::vector<int32_t> data(ggml_nelements(slots));
        ggml_backend_tensor_get(slots, data.data(), 0, ggml_nbytes(slots));

        double worst = 0.0;
        for (int s = 0; s < all_streams; ++s) {
            const int32_t * slot = data.data() + s * 2 * slots->ne[1];
            for (int i = 0; i < n_slot; ++i) {
                const auto    it     = held.find({ s, i });
                const int32_t holder = it == held.end() ? 0 : it->second.cell + 1;
                if (slot[2 * i] != holder) {
                    return INFINITY;
                }
                if (holder == 0) {
                    continue;
                }
                if (f32_of(slot[2 * i + 1]) != it->second.distance) {
                    return INFINITY;
                }
                for (int side = 0; side < p.n_layer; ++side) {
                    worst = std::max(worst, row_error(side, false, s, i, it->second));
                    worst = std::max(worst, row_error(side, true, s, i, it->second));
                }
            }
            const stats & st = totals[s];
            const double  n  = std::max(1, st.n);
            if (slot[2 * n_slot + 2] != st.n || !(fabs(f32_of(slot[2 * n_slot]) - st.sum_k / n) <= 1e-5) ||
                !(fabs(f32_of(slot[2 * n_slot + 1]) - st.sum_v / n) <= 1e-5)) {
                return INFINITY;
            }
        }
        return worst;
    }

  private:
    struct step {
        ggml_tensor * kv[MINICACHE_CODE_LAYERS];
        ggml_tensor * merged;
        ggml_tensor * rows;
        ggml_tensor * cells;

        std::vector<float>   x[MINICACHE_CODE_LAYERS];
        std::vector<float>   distance_k;  // [n_tokens], means over the heads
        std::vector<float>   distance_v;
        std::vector<int64_t> row_data;
        std::vector<int32_t> cell_data;
    };

    struct holder {
        int   cell;
        float distance;
        int   step;
        int   token;
    };

    struct stats {
        int    n     = 0;
        double sum_k = 0.0;
        double sum_v = 0.0;
    };

    const retain_shape p;
    const int          all_streams;
    const int          n_slot;

    ggml_tensor *     slots;
    ggml_tensor *     pools[2] = {};  // K, V
    std::vector<step> steps{ N_STEP };

    std::map<std::pair<int, int>, holder> held;  // by stream and slot
    std::vector<stats>                    totals;

    // how many cells the graph sees
    int n_kv() const { return p.n_cells - p.n_cells / 7; }

    void fill(rng_t & rng, step & st, std::vector<std::vector<bool>> & used) const {
        const int n_tokens = p.n_tps * p.n_stream;
        const int n_embd   = (p.d_k + p.d_v) * p.n_head_kv;

        std::vector<float> merged = random_floats(rng, ggml_nelements(st.merged));
        for (int i = 0; i < n_tokens; ++i) {
            float * distance = merged.data() + (i + 1) * st.merged->ne[0] - 2 * p.n_head_kv;
            float   mean[2]  = {};
            for (int h = 0; h < 2 * p.n_head_kv; ++h) {
                // coarse steps, so that there are ties, in which the token that is there stays
                distance[h] = random_int(rng, 0, 4) / 4.0f;
                mean[h / p.n_head_kv] += distance[h] / p.n_head_kv;
            }
            st.distance_k.push_back(mean[0]);
            st.distance_v.push_back(mean[1]);
        }
        for (int side = 0; side < p.n_layer; ++side) {
            st.x[side] = random_floats(rng, (size_t) n_tokens * n_embd);
            set_rows(st.kv[side], st.x[side]);
        }
        set_rows(st.merged, merged);

        for (int s = 0; s < p.n_stream; ++s) {
            std::vector<int> order(n_kv());
            for (int cell = 0; cell < n_kv(); ++cell) {
                order[cell]   = cell;
                used[s][cell] = used[s][cell] && chance(rng, 0.8);
            }
            std::shuffle(order.begin(), order.end(), rng);
            std::sort(order.begin(), order.begin() + p.n_tps);
            if (chance(rng, 0.5)) {
                std::reverse(order.begin(), order.begin() + p.n_tps);
            }
            std::vector<int32_t> cells(n_kv());
            for (int cell = 0; cell < n_kv(); ++cell) {
                cells[cell] = used[s][cell] ? GGML_MINICACHE_CELL_MERGED : GGML_MINICACHE_CELL_EMPTY;
            }
            for (int i = 0; i < p.n_tps; ++i) {
                cells[order[i]]   = i;
                used[s][order[i]] = true;
                st.row_data.push_back(order[i] + (int64_t) (p.stream_0 + s) * p.n_cells);
            }
            st.cell_data.insert(st.cell_data.end(), cells.begin(), cells.end());
        }
        ggml_backend_tensor_set(st.rows, st.row_data.data(), 0, ggml_nbytes(st.rows));
        ggml_backend_tensor_set(st.cells, st.cell_data.data(), 0, ggml_nbytes(st.cells));
    }

    // does what the header says, token by token
    void expect() {
        totals.assign(all_streams, {});
        for (int i_step = 0; i_step < N_STEP; ++i_step) {
            const step & st = steps[i_step];

            // Slots that this ubatch does not touch may drop their token later: its cell is empty, so that nothing reads them.
            for (size_t i = 0; i < st.row_data.size() && p.block > 0; ++i) {
                const int  s  = (int) (st.row_data[i] / p.n_cells);
                const auto it = held.find({ s, (int) (st.row_data[i] % p.n_cells) / p.block });
                if (it != held.end() && st.cell_data[(s - p.stream_0) * n_kv() + it->second.cell] != GGML_MINICACHE_CELL_MERGED) {
                    held.erase(it);
                }
            }
            for (size_t i = 0; i < st.row_data.size(); ++i) {
                const int   s        = (int) (st.row_data[i] / p.n_cells);
                const int   cell     = (int) (st.row_data[i] % p.n_cells);
                const float distance = (st.distance_k[i] + st.distance_v[i]) / 2;

                totals[s].n++;
                totals[s].sum_k += st.distance_k[i];
                totals[s].sum_v += st.distance_v[i];
                if (p.block == 0) {
                    continue;
                }
                const auto it = held.find({ s, cell / p.block });
                if (it == held.end() || distance > it->second.distance) {
                    held[{ s, cell / p.block }] = { cell, distance, i_step, (int) i };
                }
            }
        }
    }

    double row_error(int side, bool is_v, int stream, int slot, const holder & h) const {
        const ggml_tensor * pool = pools[is_v];
        const int           n    = (int) pool->ne[0];
        const float *       exact =
            steps[h.step].x[side].data() + (size_t) h.token * (p.d_k + p.d_v) * p.n_head_kv + (is_v ? p.d_k * p.n_head_kv : 0);

        std::vector<uint8_t> row(ggml_row_size(p.type, n));
        std::vector<float>   expected(n);
        std::vector<float>   x(n);
        ggml_get_type_traits(p.type)->from_float_ref(exact, row.data(), n);
        ggml_get_type_traits(p.type)->to_float(row.data(), expected.data(), n);
        const size_t at = side * pool->nb[3] + stream * pool->nb[2] + slot * pool->nb[1];
        ggml_backend_tensor_get(pool, row.data(), at, row.size());
        ggml_get_type_traits(p.type)->to_float(row.data(), x.data(), n);

        return nmse(x.data(), expected.data(), n);
    }
};

void add_retain_cases(test_cases & cases, bool perf) {
    const auto add = [&](const retain_shape & shape) { cases.push_back(std::make_unique<test_retain>(shape)); };

    if (perf) {
        retain_shape shape;
        shape.d_k = shape.d_v = 128;
        shape.n_head_kv       = 8;
        shape.n_cells         = 4096;
        shape.n_tps           = 512;
        add(shape);
        return;
    }
    for (const int block : { 0, 1, 2, 3, 20, 64, 500 }) {
        for (const int threads : { 1, 2, 4 }) {
            retain_shape shape;
            shape.block   = block;
            shape.threads = threads;
            add(shape);

            shape.n_stream = 3;
            shape.coded    = true;
            shape.n_tps    = 11;
            shape.stream_0 = threads - 1;
            add(shape);
        }
    }
    for (const int n_tps : { 1, 2, 7, 100 }) {
        retain_shape shape;
        shape.n_tps   = n_tps;
        shape.threads = 2;
        shape.d_v     = 32;
        add(shape);
    }
    for (const int n_layer : { 1, 2, 3, 4 }) {
        for (const int n_stream : { 1, 2 }) {
            retain_shape shape;
            shape.coded    = true;
            shape.n_layer  = n_layer;
            shape.n_stream = n_stream;
            shape.d_v      = 32;
            shape.threads  = n_layer;
            shape.type     = n_stream == 1 ? GGML_TYPE_F16 : GGML_TYPE_Q8_0;
            add(shape);
        }
    }
    for (const ggml_type type :
        { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q5_1, GGML_TYPE_Q4_0, GGML_TYPE_IQ4_NL }) {
        retain_shape shape;
        shape.type      = type;
        shape.n_head_kv = 4;
        shape.block     = 5;
        add(shape);
    }
}
