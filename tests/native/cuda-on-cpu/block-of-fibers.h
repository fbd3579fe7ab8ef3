#pragma once

// A block of threads on one CPU thread. Each thread is a fiber, which yields when it waits for others.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;

    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// indices of the fiber that runs
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3  blockDim;
extern dim3  gridDim;

// Bytes that arrive when the thread has waited for them.
void copy_later(void * to, const void * from, size_t size);
void wait_for_copies();

// Runs `kernel` in every thread of every block, one block after the other.
void run_blocks(dim3 blocks, dim3 threads, size_t shared, const std::function<void()> & kernel);

// The dynamic shared memory of the block that runs.
char * shared_memory();

// Waits for all threads of the block that have not returned.
void wait_for_block();

// Exchanges data between all threads of a block, or of a warp: each thread gives `size` bytes, at most 64, and gets those of
// all others by their numbers. Ends the program if threads of a warp are at different places in the code.
const uint8_t * exchange(const char * place, const void * x, size_t size);

int  lane_of_thread();
bool lane_takes_part(int lane);
bool any_of_block(bool x);

template <typename T>
static T lane_value(const uint8_t * values, int lane) {
    T x;
    memcpy(&x, values + 64 * lane, sizeof(x));
    return x;
}
