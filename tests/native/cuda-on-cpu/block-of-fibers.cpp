#include "block-of-fibers.h"

#include <csetjmp>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx;
uint3 blockIdx;
dim3  blockDim;
dim3  gridDim;

static const int    WARP       = 32;
static const size_t STACK      = 256 * 1024;
static const size_t GIVEN      = 64;  // bytes
static const size_t SHARED_MAX = 99 * 1024;

enum wait_kind { READY, AT_WARP, AT_BLOCK, DONE };

struct copy {
    void *       to;
    const void * from;
    size_t       size;
};

struct fiber {
    ucontext_t              start;
    jmp_buf                 goes_on;  // where the fiber yielded; swapcontext() would call into the kernel each time
    bool                    started;
    void *                  kept;
    std::unique_ptr<char[]> stack;
    wait_kind               wait;
    uint3                   index;
    const char *            place;
    std::vector<copy>       copies;
    int                     turn;  // parity of the exchanges, because what was given last time may still be read
};

struct block {
    std::vector<fiber>      fibers;
    std::vector<uint8_t>    given[2];  // [thread][GIVEN]
    std::unique_ptr<char[]> shared;    // exactly as large as asked for, so that sanitizers see where it ends
    jmp_buf                 scheduler;
    const void *            stack;  // the scheduler's
    size_t                  stack_size;
    int                     running;
    bool                    any;
    std::mt19937            order{ 1 };

    const std::function<void()> * kernel;
};

static block b;

char * shared_memory() { return b.shared.get(); }

static void fail(const char * what, const char * place) {
    fprintf(stderr, "block of threads: %s (%s), block %u %u %u, thread %u %u %u\n", what, place, blockIdx.x, blockIdx.y,
        blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    abort();
}

// Tells the address sanitizer to which stack the program is about to switch, and when it has arrived. `kept` is the sanitizer's
// own state of the fiber that is left, null if that fiber does not come back.
static void leaves_for(const void * stack, size_t size, void ** kept) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(kept, stack, size);
#else
    (void) stack, (void) size, (void) kept;
#endif
}

static void arrives(void * kept, const void ** from = nullptr, size_t * from_size = nullptr) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(kept, from, from_size);
#else
    (void) kept, (void) from, (void) from_size;
#endif
}

static void give_way(wait_kind kind) {
    fiber & f = b.fibers[b.running];
    f.wait    = kind;
    if (!_setjmp(f.goes_on)) {
        leaves_for(b.stack, b.stack_size, kind == DONE ? nullptr : &f.kept);
        _longjmp(b.scheduler, 1);
    }
    arrives(f.kept);
}

static void go_on(fiber & f) {
    void * volatile kept = nullptr;
    if (_setjmp(b.scheduler)) {
        arrives(kept);
        return;
    }
    leaves_for(f.stack.get(), STACK, (void **) &kept);
    if (f.started) {
        _longjmp(f.goes_on, 1);
    }
    f.started = true;
    setcontext(&f.start);
}

void wait_for_block() { give_way(AT_BLOCK); }

int lane_of_thread() { return b.running % WARP; }

bool lane_takes_part(int lane) {
    const size_t i = b.running / WARP * WARP + lane;
    return i < b.fibers.size() && b.fibers[i].wait != DONE;
}

const uint8_t * exchange(const char * place, const void * x, size_t size) {
    fiber & f = b.fibers[b.running];
    if (size > GIVEN) {
        fail("too much is handed in", place);
    }
    f.turn ^= 1;
    f.place = place;
    memcpy(b.given[f.turn].data() + b.running * GIVEN, x, size);
    give_way(AT_WARP);
    return b.given[f.turn].data() + b.running / WARP * WARP * GIVEN;
}

void copy_later(void * to, const void * from, size_t size) {
    if ((uintptr_t) to % size != 0 || (uintptr_t) from % size != 0) {
        fail("a copy is not aligned", "copy_later");
    }
    b.fibers[b.running].copies.push_back({ to, from, size });
}

void wait_for_copies() {
    for (const copy & c : b.fibers[b.running].copies) {
        memcpy(c.to, c.from, c.size);
    }
    b.fibers[b.running].copies.clear();
}

bool any_of_block(bool x) {
    // all threads give before the first barrier, and all have read before the next one
    b.any = b.any || x;
    wait_for_block();
    const bool result = b.any;
    wait_for_block();
    b.any = false;
    wait_for_block();
    return result;
}

static void run_fiber() {
    arrives(nullptr, &b.stack, &b.stack_size);
    (*b.kernel)();
    give_way(DONE);
}

// Lets threads go on that all wait for each other. Returns false if there are none.
static bool release(int first, int last, wait_kind kind) {
    const char * place = nullptr;
    bool         some  = false;
    for (int i = first; i < last; ++i) {
        const fiber & f = b.fibers[i];
        if (f.wait == DONE) {
            continue;
        }
        if (f.wait != kind) {
            return false;
        }
        if (kind == AT_WARP && some && place != f.place) {
            fail("threads of a warp are at different places", f.place);
        }
        place = f.place;
        some  = true;
    }
    for (int i = first; i < last; ++i) {
        fiber & f = b.fibers[i];
        f.wait    = f.wait == DONE ? DONE : READY;
    }
    return some;
}

static void run_block() {
    const int n = (int) b.fibers.size();

    std::vector<int> order(n);
    std::iota(order.begin(), order.end(), 0);
    while (true) {
        std::shuffle(order.begin(), order.end(), b.order);
        for (const int i : order) {
            fiber & f = b.fibers[i];
            if (f.wait == READY) {
                b.running = i;
                threadIdx = f.index;
                go_on(f);
            }
        }
        bool goes_on = false;
        for (int first = 0; first < n; first += WARP) {
            goes_on = release(first, std::min(n, first + WARP), AT_WARP) || goes_on;
        }
        if (goes_on) {
            continue;
        }
        if (release(0, n, AT_BLOCK)) {
            continue;
        }
        for (const fiber & f : b.fibers) {
            if (f.wait != DONE) {
                fail("threads wait for others that never come", f.place ? f.place : "a barrier");
            }
        }
        return;
    }
}

static void start(dim3 threads) {
    const size_t n = (size_t) threads.x * threads.y * threads.z;
    b.fibers.resize(n);
    for (auto & given : b.given) {
        given.resize(n * GIVEN);
    }
    for (size_t i = 0; i < n; ++i) {
        fiber & f = b.fibers[i];
        if (!f.stack) {
            f.stack.reset(new char[STACK]);
        }
        f.wait    = READY;
        f.started = false;
        f.place   = nullptr;
        f.turn    = 0;
        f.copies.clear();
        f.index = { (unsigned) i % threads.x, (unsigned) i / threads.x % threads.y, (unsigned) i / threads.x / threads.y };
        getcontext(&f.start);
        f.start.uc_stack.ss_sp   = f.stack.get();
        f.start.uc_stack.ss_size = STACK;
        f.start.uc_link          = nullptr;
        makecontext(&f.start, run_fiber, 0);
    }
    b.any = false;
}

void run_blocks(dim3 blocks, dim3 threads, size_t shared, const std::function<void()> & kernel) {
    if (shared > SHARED_MAX || threads.x * threads.y * threads.z > 1024 || blocks.y > 65535 || blocks.z > 65535 ||
        blocks.x * blocks.y * blocks.z == 0) {
        fprintf(stderr, "a device would not launch this: %u x %u x %u blocks, %u threads, %zu bytes\n", blocks.x, blocks.y,
            blocks.z, threads.x * threads.y * threads.z, shared);
        abort();
    }
    b.kernel = &kernel;
    blockDim = threads;
    gridDim  = blocks;
    for (unsigned z = 0; z < blocks.z; ++z) {
        for (unsigned y = 0; y < blocks.y; ++y) {
            for (unsigned x = 0; x < blocks.x; ++x) {
                blockIdx = { x, y, z };
                b.shared.reset(new char[shared]);
                memset(b.shared.get(), 0xFF, shared);  // NaN in every format
                start(threads);
                run_block();
            }
        }
    }
}
