#include "ggml-backend.h"
#include "ggml-minicache.h"
#include "test-case.h"

#include <algorithm>
#include <cmath>

class test_index : public test_case {
  public:
    test_index(int n_kv, int n_stream, int block, int window, bool bases, int n_threads) :
        n_kv(n_kv), n_stream(n_stream), block(block), window(window), bases(bases), threads(n_threads) {}

    const char * op() const override { return "INDEX"; }

    std::string vars() const override {
        return var_list()
            .add("n_kv", n_kv)
            .add("n_stream", n_stream)
            .add("block", block)
            .add("window", window)
            .add("bases", bases)
            .add("threads", threads)
            .str();
    }

    double max_nmse() const override { return 0.0; }

    int n_threads() const override { return threads; }

    size_t bytes() const override { return 2 * ggml_nbytes(cells) + ggml_nbytes(slots); }

    void build(ggml_context * ctx, ggml_cgraph * gf, bool) override {
        // the cache has more cells than the graph sees
        const int64_t n_slot = window + ggml_minicache_n_slot(n_kv + 13, block);

        cells = ggml_new_tensor_3d(ctx, GGML_TYPE_I32, n_kv, n_stream, bases ? 2 : 1);
        slots = ggml_new_tensor_3d(ctx, GGML_TYPE_I32, 2, n_slot + GGML_MINICACHE_SLOT_STATS, n_stream);
        out   = ggml_minicache_index(ctx, cells, slots, block, window);
        ggml_build_forward_expand(gf, out);
    }

    void initialize(rng_t & rng) override {
        std::vector<int32_t> cell_data(ggml_nelements(cells));
        std::vector<int32_t> slot_data(ggml_nelements(slots));

        for (int32_t & cell : cell_data) {
            cell = chance(rng, 0.2) ? random_int(rng, 0, 500) :
                   chance(rng, 0.3) ? (int32_t) GGML_MINICACHE_CELL_EMPTY :
                                      (int32_t) GGML_MINICACHE_CELL_MERGED;
        }
        expected = cell_data;  // bases are passed on unchanged
        for (int s = 0; s < n_stream; ++s) {
            int32_t * slot = slot_data.data() + s * 2 * slots->ne[1];
            int32_t * held = slot + 2 * window;
            for (int64_t i = 0; block > 0 && i < slots->ne[1] - window; ++i) {
                // slots may hold cells that have since been emptied or taken, and cells that the graph does not see
                hold(rng, held + 2 * i, (int) i * block + random_int(rng, 0, block - 1));
                mark(s, held[2 * i] - 1, i < ggml_minicache_n_slot(n_kv, block), GGML_MINICACHE_CELL_RETAINED);
            }
            // the first cells have slots for good, a sixteenth of the window's up to four; the others go round
            const int first = std::min(4, window / 16);
            for (int i = 0; i < window; ++i) {
                hold(rng, slot + 2 * i, i < first ? i : i + random_int(rng, 0, 3) * (window - first));
                mark(s, slot[2 * i] - 1, true, GGML_MINICACHE_CELL_WINDOW);
            }
        }
        ggml_backend_tensor_set(cells, cell_data.data(), 0, ggml_nbytes(cells));
        ggml_backend_tensor_set(slots, slot_data.data(), 0, ggml_nbytes(slots));
    }

    double error() const override {
        std::vector<int32_t> result(ggml_nelements(out));
        ggml_backend_tensor_get(out, result.data(), 0, ggml_nbytes(out));
        return result == expected ? 0.0 : INFINITY;
    }

  private:
    // Lets a slot hold a cell, or none, at some distance.
    static void hold(rng_t & rng, int32_t * slot, int cell) {
        slot[0] = chance(rng, 0.2) ? 0 : cell + 1;
        slot[1] = random_int(rng, 0, 1 << 30);
    }

    // Expects this of a cell that a slot holds, if the graph sees both.
    void mark(int stream, int cell, bool seen, int32_t state) {
        if (!seen || cell < 0 || cell >= n_kv) {
            return;
        }
        int32_t & known = expected[stream * n_kv + cell];
        if (known == GGML_MINICACHE_CELL_MERGED || known == GGML_MINICACHE_CELL_RETAINED) {
            known = state;
        }
    }

    const int  n_kv;
    const int  n_stream;
    const int  block;
    const int  window;
    const bool bases;
    const int  threads;

    ggml_tensor * cells;
    ggml_tensor * slots;
    ggml_tensor * out;

    std::vector<int32_t> expected;
};

void add_index_cases(test_cases & cases, bool perf) {
    if (perf) {
        cases.push_back(std::make_unique<test_index>(16384, 1, 20, 0, true, 1));
        return;
    }
    const int windows[] = { 0, 5, 16, 24, 64, 200 };
    for (const int n_kv : { 1, 2, 19, 20, 21, 64, 257, 700 }) {
        for (const int block : { 0, 1, 2, 3, 20, 64, 1000 }) {
            for (const int threads : { 1, 2, 3, 4 }) {
                const int window = windows[(n_kv + block + threads) % 6];
                if (block + window > 0) {
                    cases.push_back(
                        std::make_unique<test_index>(n_kv, 1 + (n_kv + threads) % 3, block, window, threads % 2 == 0, threads));
                }
            }
        }
    }
}
