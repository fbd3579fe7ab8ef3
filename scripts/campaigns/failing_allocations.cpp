// Makes chosen allocations fail. Preloaded into a process, this library counts the allocations that chosen other libraries make:
// all that go through `new`, and the large ones that go through posix_memalign(), as the buffers of tensors do.

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

static const size_t LARGE = 64 * 1024;

static struct range {
    uintptr_t begin;
    uintptr_t end;
} ranges[64];

static int n_ranges = 0;

// of the thread that has armed
static thread_local bool armed     = false;
static thread_local bool for_good  = false;  // whether all fail that come after the first
static thread_local long fails_at  = 0;
static thread_local long n_counted = 0;
static thread_local long n_failed  = 0;

// the numbers of those that were buffers
static const int         MOST_BUFFERS = 64;
static thread_local long buffers[MOST_BUFFERS];
static thread_local int  n_buffers = 0;

static bool is_counted(const void * caller) {
    const uintptr_t at = (uintptr_t) caller;
    for (int i = 0; i < n_ranges; ++i) {
        if (ranges[i].begin <= at && at < ranges[i].end) {
            return true;
        }
    }
    return false;
}

static bool fails(const void * caller) {
    if (!armed || !is_counted(caller)) {
        return false;
    }
    const long number = n_counted++;
    const bool failed = number == fails_at || (for_good && number > fails_at);
    n_failed += failed;
    return failed;
}

extern "C" {

void failing_allocations_of(uintptr_t begin, uintptr_t end) {
    if (n_ranges < 64) {
        ranges[n_ranges++] = { begin, end };
    }
}

// From here on, allocation number `at` of this thread fails; a negative number never comes.
void failing_allocations_arm(long at, bool all_after) {
    fails_at  = at;
    for_good  = all_after;
    n_counted = 0;
    n_failed  = 0;
    n_buffers = 0;
    armed     = true;
}

// Returns how many were counted.
long failing_allocations_disarm(void) {
    armed = false;
    return n_counted;
}

long failing_allocations_failed(void) { return n_failed; }

// The number of the i-th buffer among all allocations that were counted, -1 where there were fewer.
long failing_allocations_buffer(int i) { return i < n_buffers ? buffers[i] : -1; }

int posix_memalign(void ** result, size_t alignment, size_t size) {
    if (size >= LARGE) {
        const long before = n_counted;
        if (fails(__builtin_return_address(0))) {
            return ENOMEM;
        }
        if (n_counted > before && n_buffers < MOST_BUFFERS) {
            buffers[n_buffers++] = before;
        }
    }
    void * p = aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
    if (!p) {
        return ENOMEM;
    }
    *result = p;
    return 0;
}
}

static void * allocated(size_t size, size_t alignment, const void * caller) {
    if (fails(caller)) {
        return nullptr;
    }
    size = size ? size : 1;
    return alignment ? aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment) : malloc(size);
}

static void * thrown_if_null(void * p) {
    if (!p) {
        throw std::bad_alloc();
    }
    return p;
}

#define CALLER __builtin_return_address(0)

void * operator new(size_t size) { return thrown_if_null(allocated(size, 0, CALLER)); }
void * operator new[](size_t size) { return thrown_if_null(allocated(size, 0, CALLER)); }
void * operator new(size_t size, std::align_val_t a) { return thrown_if_null(allocated(size, (size_t) a, CALLER)); }
void * operator new[](size_t size, std::align_val_t a) { return thrown_if_null(allocated(size, (size_t) a, CALLER)); }
void * operator new(size_t size, const std::nothrow_t &) noexcept { return allocated(size, 0, CALLER); }
void * operator new[](size_t size, const std::nothrow_t &) noexcept { return allocated(size, 0, CALLER); }

void operator delete(void * p) noexcept { free(p); }
void operator delete[](void * p) noexcept { free(p); }
void operator delete(void * p, size_t) noexcept { free(p); }
void operator delete[](void * p, size_t) noexcept { free(p); }
void operator delete(void * p, std::align_val_t) noexcept { free(p); }
void operator delete[](void * p, std::align_val_t) noexcept { free(p); }
void operator delete(void * p, size_t, std::align_val_t) noexcept { free(p); }
void operator delete[](void * p, size_t, std::align_val_t) noexcept { free(p); }
