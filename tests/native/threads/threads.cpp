#include "llama-minicache.h"
#include "llama.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

// Contexts of several models in as many threads: made, decoded, ended by other threads, saved, restored and freed at the same
// time. Each thread's logits must be, bit for bit, those that it gets alone. A build with -DMINICACHE_SANITIZE=thread says where
// two threads meet.
//
//   minicache-threads N_THREAD N_ROUND SEED MODEL PLAN [MODEL PLAN]...    exit code 0 where nothing was found, 1 where something was

static const int32_t N_CTX   = 256;
static const int32_t N_BATCH = 16;

typedef std::vector<float> logits_t;

struct source {
    llama_model *          model = nullptr;
    llama_minicache_params params;
    int32_t                n_vocab = 0;
};

static std::atomic<int> n_found{ 0 };
static std::atomic<int> n_ended{ 0 };  // batches that another thread has ended

static void report(const std::string & what) {
    ++n_found;
    fprintf(stderr, "found: %s (%s)\n", what.c_str(), llama_minicache_last_error());
}

static void check(bool ok, const char * what) {
    if (!ok) {
        fprintf(stderr, "%s: %s\n", what, llama_minicache_last_error());
        exit(2);
    }
}

// A context of one of three kinds of cache.
static llama_context * make(const source & src, int kind, int32_t n_threads) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx                = N_CTX;
    params.n_batch              = N_BATCH;
    params.n_ubatch             = N_BATCH;
    params.n_threads            = n_threads;
    params.n_threads_batch      = n_threads;

    llama_minicache_params slerp = llama_minicache_default_params();
    slerp.retain                 = 0.1f;
    slerp.window                 = 8;

    const llama_minicache_params * chosen[] = { &src.params, &slerp, nullptr };
    return llama_minicache_init_from_model(src.model, params, chosen[kind]);
}

static int32_t decode(llama_context * ctx, const std::vector<llama_token> & tokens, llama_pos first) {
    llama_batch batch = llama_batch_init((int32_t) tokens.size(), 0, 1);
    batch.n_tokens    = (int32_t) tokens.size();
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        batch.token[i]     = tokens[i];
        batch.pos[i]       = first + i;
        batch.n_seq_id[i]  = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i]    = i + 1 == batch.n_tokens;
    }
    int32_t    result = -1;
    const bool ok     = llama_minicache_decode_batch(ctx, &batch, &result);
    llama_batch_free(batch);
    return ok ? result : -1;
}

static std::vector<llama_token> tokens_of(int32_t n_vocab, uint32_t seed, int32_t n) {
    std::mt19937             rng(seed);
    std::vector<llama_token> tokens(n);
    for (llama_token & token : tokens) {
        token = (llama_token) (3 + rng() % (n_vocab - 3));
    }
    return tokens;
}

static logits_t last_logits(llama_context * ctx, int32_t n_vocab) {
    const float * x = llama_get_logits_ith(ctx, -1);
    return logits_t(x, x + n_vocab);
}

// Reads tokens, moves positions, saves and restores; returns the logits after each batch.
static logits_t work(const source & src, llama_context * ctx, uint32_t seed) {
    logits_t  all;
    llama_pos pos = 0;
    for (int step = 0; step < 6; ++step) {
        if (step == 3) {
            llama_memory_seq_rm(llama_get_memory(ctx), 0, 4, 12);
            llama_memory_seq_add(llama_get_memory(ctx), 0, 12, -1, -8);
            pos -= 8;
        }
        if (decode(ctx, tokens_of(src.n_vocab, seed + step, N_BATCH), pos) != 0) {
            report("a batch failed");
            return all;
        }
        pos += N_BATCH;
        const logits_t found = last_logits(ctx, src.n_vocab);
        all.insert(all.end(), found.begin(), found.end());
    }
    size_t n = 0;
    if (!llama_minicache_get_state(ctx, -1, nullptr, 0, &n)) {
        report("no size of a state");
        return all;
    }
    std::vector<uint8_t>   state(n);
    llama_minicache_report kept;
    if (!llama_minicache_get_state(ctx, -1, state.data(), n, &n) || !llama_minicache_clear(ctx, true) ||
        !llama_minicache_set_state(ctx, -1, state.data(), state.size(), &n) || n != state.size() ||
        !llama_minicache_get_report(ctx, &kept)) {
        report("a state was not saved and restored");
    } else if (decode(ctx, tokens_of(src.n_vocab, seed + 99, 1), pos) != 0) {
        report("a batch after a state failed");
    } else {
        const logits_t found = last_logits(ctx, src.n_vocab);
        all.insert(all.end(), found.begin(), found.end());
    }
    return all;
}

// Another thread ends batches while this one computes them, and afterwards the context goes on.
static void be_ended(const source & src, llama_context * ctx, uint32_t seed) {
    check(llama_minicache_stop(ctx, false), "llama_minicache_stop");
    std::thread other([ctx, seed] {
        std::this_thread::sleep_for(std::chrono::microseconds(seed % 3000));
        check(llama_minicache_stop(ctx, true), "llama_minicache_stop");
    });
    int32_t     result = 0;
    for (int step = 0; step < 10000 && result == 0; ++step) {
        result = decode(ctx, tokens_of(src.n_vocab, seed, N_BATCH), 0);
        llama_minicache_clear(ctx, false);
    }
    other.join();
    if (result != 2) {
        report("a batch that was to be ended has the result " + std::to_string(result));
    }
    ++n_ended;
    check(llama_minicache_stop(ctx, false), "llama_minicache_stop");
    check(llama_minicache_clear(ctx, true), "llama_minicache_clear");
}

static void rounds(
    const std::vector<source> & sources, const std::vector<std::string> & plans, int number, int n_round, uint32_t seed) {
    for (int i = 0; i < n_round; ++i) {
        const uint32_t own  = seed + 1000 * number + 100000 * i;
        const source & src  = sources[(number + i) % sources.size()];
        const int      kind = (number + i / 2) % 3;

        llama_context * ctx = make(src, kind, 1 + i % 2);
        if (!ctx) {
            report("no context");
            continue;
        }
        be_ended(src, ctx, own);
        const logits_t found = work(src, ctx, own);
        llama_minicache_clear(ctx, true);
        if (found != work(src, ctx, own)) {
            report("the same tokens have other logits");
        }
        llama_minicache_free(ctx);

        llama_minicache_plan * plan = llama_minicache_read_plan(plans[number % plans.size()].c_str());
        if (!plan) {
            report("a plan is not read");
        }
        llama_minicache_free_plan(plan);
    }
}

// What a context of each source and kind computes while nothing else is computed.
static std::vector<logits_t> alone(const std::vector<source> & sources, uint32_t seed) {
    std::vector<logits_t> all;
    for (const source & src : sources) {
        for (int kind = 0; kind < 3; ++kind) {
            llama_context * ctx = make(src, kind, 1);
            check(ctx != nullptr, "llama_minicache_init_from_model");
            all.push_back(work(src, ctx, seed));
            llama_minicache_free(ctx);
        }
    }
    return all;
}

int main(int argc, char ** argv) {
    if (argc < 6 || argc % 2 != 0) {
        fprintf(stderr, "usage: %s N_THREAD N_ROUND SEED MODEL PLAN [MODEL PLAN]...\n", argv[0]);
        return 2;
    }
    const int      n_thread = atoi(argv[1]);
    const int      n_round  = atoi(argv[2]);
    const uint32_t seed     = (uint32_t) atoi(argv[3]);

    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();

    std::vector<source>      sources;
    std::vector<std::string> plans;
    for (int i = 4; i < argc; i += 2) {
        source src;
        src.model = llama_model_load_from_file(argv[i], llama_model_default_params());
        check(src.model != nullptr, argv[i]);
        src.n_vocab            = llama_vocab_n_tokens(llama_model_get_vocab(src.model));
        const std::string text = std::string("plan=") + argv[i + 1];
        check(llama_minicache_parse_params(text.c_str(), &src.params, nullptr, nullptr), argv[i + 1]);
        sources.push_back(src);
        plans.push_back(argv[i + 1]);
    }

    const std::vector<logits_t> before = alone(sources, seed);

    std::vector<std::vector<logits_t>> beside(n_thread);
    std::vector<std::thread>           threads;
    for (int i = 0; i < n_thread; ++i) {
        threads.emplace_back([&, i] {
            beside[i] = alone(sources, seed);
            rounds(sources, plans, i, n_round, seed);
        });
    }
    for (std::thread & thread : threads) {
        thread.join();
    }
    for (const auto & found : beside) {
        if (found != before) {
            report("a thread computes something else than one alone");
        }
    }
    for (const source & src : sources) {
        llama_minicache_free_plan(src.params.plan);
        llama_model_free(src.model);
    }
    printf(
        "{\"threads\": %d, \"rounds\": %d, \"ended\": %d, \"found\": %d}\n", n_thread, n_round, n_ended.load(), n_found.load());
    return n_found.load() ? 1 : 0;
}
