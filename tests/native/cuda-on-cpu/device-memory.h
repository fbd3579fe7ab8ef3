#pragma once

// Memory of a device that the host cannot access: code that does so without a device_access ends with SIGSEGV.

#include <cstddef>

constexpr int N_DEVICES = 2;

// Allocates memory filled with NaN, which is followed by a page that can never be accessed. Returns null if the device has less
// left.
void * device_alloc(int device, size_t size);
void   device_free(int device, void * base);
size_t device_used(int device);

// The memory of this device can be read and written as long as an object of this type exists.
class device_access {
  public:
    explicit device_access(int device);
    ~device_access();

    device_access(const device_access &)             = delete;
    device_access & operator=(const device_access &) = delete;

  private:
    int device;
};
