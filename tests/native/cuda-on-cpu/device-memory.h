#pragma once

// Memory of a device that the host can't reach: whoever does so outside of an access is ended by SIGSEGV.

#include <cstddef>

constexpr int N_DEVICES = 2;

// null where the device has less left; filled with NaN, and ends where the next page can't be read either
void * device_alloc(int device, size_t size);
void   device_free(int device, void * base);
size_t device_used(int device);

// The memory of this device can be read and written as long as one of these lives.
class device_access {
  public:
    explicit device_access(int device);
    ~device_access();

    device_access(const device_access &)             = delete;
    device_access & operator=(const device_access &) = delete;

  private:
    int device;
};
