#include "device-memory.h"

#include "ggml.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>

namespace {

struct pages {
    char * first;
    size_t size;    // without the pages that follow, at least one, which are never accessible
    char * mapped;  // where the mapping begins, which is a large page longer than size
};

struct memory {
    std::map<void *, pages> allocated;  // by the address of each buffer
    size_t                  used       = 0;
    int                     n_accesses = 0;
};

std::recursive_mutex mutex;
memory               memories[N_DEVICES];

// Every access changes the protection of all pages, and with large ones there are few.
constexpr size_t LARGE_PAGE = 2 << 20;

void protect(const pages & p, int protection) { GGML_ASSERT(mprotect(p.first, p.size, protection) == 0); }

}  // namespace

void * device_alloc(int device, size_t size) {
    const std::lock_guard<std::recursive_mutex> lock(mutex);

    const size_t page   = (size_t) sysconf(_SC_PAGESIZE);
    const size_t padded = GGML_PAD(size, 128);  // as ggml-cuda aligns tensors
    const size_t total  = GGML_PAD(padded, page);

    void * mapped = mmap(nullptr, total + LARGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) {
        return nullptr;
    }
    const pages p = { (char *) GGML_PAD((uintptr_t) mapped, LARGE_PAGE), total, (char *) mapped };
    madvise(p.first, total, MADV_HUGEPAGE);  // a kernel without them says so, and nothing depends on it

    protect(p, PROT_READ | PROT_WRITE);
    memset(p.first, 0xFF, total);

    memory & of_device = memories[device];
    if (of_device.n_accesses == 0) {
        protect(p, PROT_NONE);
    }
    void * base = p.first + (total - padded);

    of_device.allocated[base] = p;
    of_device.used += total;
    return base;
}

void device_free(int device, void * base) {
    const std::lock_guard<std::recursive_mutex> lock(mutex);

    memory &    of_device = memories[device];
    const auto  it        = of_device.allocated.find(base);
    const pages p         = it->second;
    of_device.used -= p.size;
    of_device.allocated.erase(it);
    munmap(p.mapped, p.size + LARGE_PAGE);
}

size_t device_used(int device) {
    const std::lock_guard<std::recursive_mutex> lock(mutex);
    return memories[device].used;
}

device_access::device_access(int device) : device(device) {
    mutex.lock();
    if (memories[device].n_accesses++ == 0) {
        for (const auto & entry : memories[device].allocated) {
            protect(entry.second, PROT_READ | PROT_WRITE);
        }
    }
}

device_access::~device_access() {
    if (--memories[device].n_accesses == 0) {
        for (const auto & entry : memories[device].allocated) {
            protect(entry.second, PROT_NONE);
        }
    }
    mutex.unlock();
}
