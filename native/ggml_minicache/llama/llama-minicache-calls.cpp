#include "llama-context.h"
#include "llama-cparams.h"
#include "llama-minicache-error.h"
#include "llama-minicache-guard.h"
#include "llama-minicache.h"
#include "llama-model.h"

#include <atomic>
#include <map>
#include <memory>
#include <mutex>

// Calls of llama.h that reach a device, inside a guard, and what a context may still be used for after an error.

static std::mutex                                   mutex;
static std::map<const llama_context *, std::string> failures;                // why contexts failed that are not freed yet
static bool                                         devices_failed = false;  // a device no longer answers

// What a context's computation looks at after every node of its graph, on the CPU.
typedef std::shared_ptr<std::atomic<bool>> stop_flag;

static std::map<const llama_context *, stop_flag> stop_flags;

static bool is_stopped(void * flag) { return static_cast<const std::atomic<bool> *>(flag)->load(std::memory_order_relaxed); }

bool llama_minicache_stop(llama_context * ctx, bool stop) {
    return minicache_guarded([&] {
        if (!ctx) {
            throw std::invalid_argument("ctx must not be NULL");
        }
        const std::lock_guard<std::mutex> lock(mutex);

        stop_flag & flag = stop_flags[ctx];
        if (!flag) {
            flag = std::make_shared<std::atomic<bool>>(stop);
            llama_set_abort_callback(ctx, is_stopped, flag.get());
        }
        flag->store(stop);
    });
}

static void refuse_failed(const llama_context * ctx) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto                        it = failures.find(ctx);
    if (it != failures.end()) {
        throw std::runtime_error("this context failed earlier and cannot be used any more, make a new one: " + it->second);
    }
}

static bool answers(llama_context * ctx) {
    try {
        minicache_guard_aborts([&] { llama_synchronize(ctx); });
        return true;
    } catch (const minicache_abort &) {
        return false;
    }
}

// Records the failure. Returns the reason and what follows from it.
static std::string note_failure(llama_context * ctx, const std::string & reason) {
    // A device cannot be synchronised in a capture that was broken off either, and ggml-cuda would wait for the end of the
    // capture before it frees anything.
    const bool alive = answers(ctx);

    const std::lock_guard<std::mutex> lock(mutex);
    failures[ctx] = reason;
    devices_failed |= !alive;
    return alive ?
               reason + "; the context cannot be used any more" :
               reason +
                   "; its device no longer answers: nothing can be computed or freed there until the program is started again";
}

template <typename F>
static void run_guarded(llama_context * ctx, const F & run) {
    refuse_failed(ctx);
    try {
        minicache_guard_aborts(run);
    } catch (const std::exception & e) {
        throw std::runtime_error(note_failure(ctx, e.what()));
    }
}

template <typename F>
static bool run_batch(llama_context * ctx, const llama_batch * batch, int32_t * result, const F & run) {
    return minicache_guarded([&] {
        if (!ctx || !batch || !result) {
            throw std::invalid_argument("ctx, batch and result must not be NULL");
        }
        const auto run_all = [&] {
            *result = run(ctx, *batch);
            llama_synchronize(ctx);
        };
        if (ctx->get_cparams().cb_eval) {
            refuse_failed(ctx);
            run_all();  // unguarded, because an exception might have to pass through frames of the callback's language
            return;
        }
        run_guarded(ctx, run_all);
    });
}

bool llama_minicache_decode_batch(llama_context * ctx, const llama_batch * batch, int32_t * result) {
    return run_batch(ctx, batch, result, llama_decode);
}

bool llama_minicache_encode_batch(llama_context * ctx, const llama_batch * batch, int32_t * result) {
    return run_batch(ctx, batch, result, llama_encode);
}

// Applies the shifts, and the copies of streams, that llama.cpp leaves for the next batch. A state that is saved before would lack
// them, and one that is loaded, or a clearing, would have them applied to other tokens.
static void settle(llama_context * ctx) {
    if (llama_get_memory(ctx)) {
        ctx->memory_update(/*optimize =*/false);
        llama_synchronize(ctx);
    }
}

bool llama_minicache_get_state(llama_context * ctx, llama_seq_id seq_id, uint8_t * dst, size_t size, size_t * n) {
    return minicache_guarded([&] {
        if (!ctx || !n) {
            throw std::invalid_argument("ctx and n must not be NULL");
        }
        run_guarded(ctx, [&] {
            settle(ctx);
            if (seq_id < 0) {
                *n = dst ? llama_state_get_data(ctx, dst, size) : llama_state_get_size(ctx);
            } else {
                *n = dst ? llama_state_seq_get_data(ctx, dst, size, seq_id) : llama_state_seq_get_size(ctx, seq_id);
            }
        });
    });
}

bool llama_minicache_set_state(llama_context * ctx, llama_seq_id seq_id, const uint8_t * src, size_t size, size_t * n) {
    return minicache_guarded([&] {
        if (!ctx || !src || !n) {
            throw std::invalid_argument("ctx, src and n must not be NULL");
        }
        run_guarded(ctx, [&] {
            settle(ctx);
            *n = seq_id < 0 ? llama_state_set_data(ctx, src, size) : llama_state_seq_set_data(ctx, src, size, seq_id);
            llama_synchronize(ctx);
        });
    });
}

bool llama_minicache_clear(llama_context * ctx, bool data) {
    return minicache_guarded([&] {
        if (!ctx) {
            throw std::invalid_argument("ctx must not be NULL");
        }
        run_guarded(ctx, [&] {
            settle(ctx);
            llama_memory_clear(llama_get_memory(ctx), data);
            llama_synchronize(ctx);
        });
    });
}

bool llama_minicache_free(llama_context * ctx) {
    return minicache_guarded([&] {
        if (!ctx) {
            return;
        }
        stop_flag flag;  // outlives the context, which looks at it
        {
            const std::lock_guard<std::mutex> lock(mutex);
            if (devices_failed && llama_get_model(ctx)->n_devices() > 0) {
                throw std::runtime_error("the context and its model are kept to the end of the process: a device failed");
            }
            // before the context is gone: another thread may make one at its address at once
            failures.erase(ctx);
            const auto it = stop_flags.find(ctx);
            if (it != stop_flags.end()) {
                flag = it->second;
                stop_flags.erase(it);
            }
        }
        llama_free(ctx);
    });
}
