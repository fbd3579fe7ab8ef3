#pragma once

// A block of threads on one CPU thread: each is a fiber, which gives way where it waits for others.

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

// of the fiber that runs
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3  blockDim;
extern dim3  gridDim;

// bytes that are there when the thread has waited for them
void copy_later(void * to, const void * from, size_t size);
void wait_for_copies();

// Runs `kernel` in every thread of every block, one block after the other.
void run_blocks(dim3 blocks, dim3 threads, size_t shared, const std::function<void()> & kernel);

// dynamic shared memory of the block that runs
char * shared_memory();

// waits for all threads of the block that have not returned
void wait_for_block();

// What all threads of a block, or of a warp, hand in at the same place: each gives `size` bytes, at most 64, and gets the
// others' by their numbers. Ends the program where threads of a warp are at different places.
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
