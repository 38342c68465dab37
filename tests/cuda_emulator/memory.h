// Memory that notices accesses beside it: the shared memory of a block, and copies of a launch's arguments.
#pragma once
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "fiber.h"

namespace emu {

constexpr unsigned char poison = 0xff;  // NaN in every floating-point format, -1 as an integer

inline bool untouched(const char* begin, const char* end) {
  for (; begin != end; ++begin) {
    if (static_cast<unsigned char>(*begin) != poison) return false;
  }
  return true;
}

inline size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Arrays are laid out in the order of their first use, with a poisoned zone behind each.
class SharedMemory {
 public:
  static constexpr size_t most_static = 48 << 10, most = 227 << 10;  // of a block on the GPUs that have most

  explicit SharedMemory(size_t dynamic_bytes) : dynamic_bytes_(dynamic_bytes) {}

  void start_block() {
    arrays_.clear();
    static_bytes_ = 0;
    next_ = arena_.begin() + zone;
  }

  // Null if there is no room for it. A negative number is the dynamic array, whatever its name.
  char* array(int number, const char* name, size_t bytes, size_t alignment) {
    for (const Array& array : arrays_) {
      if (array.number == number) return array.data;
    }
    const size_t size = number < 0 ? dynamic_bytes_ : bytes;
    if (number >= 0) static_bytes_ += size;
    if (static_bytes_ > most_static || static_bytes_ + dynamic_bytes_ > most) return nullptr;
    char* data = arena_.begin() + round_up(size_t(next_ - arena_.begin()), alignment);
    next_ = data + round_up(size, zone) + zone;
    memset(data, poison, size_t(next_ - data));
    arrays_.push_back({number, name, data, size, next_});
    return data;
  }

  bool contains(const void* pointer) const { return pointer >= arena_.begin() && pointer < arena_.end(); }
  uint32_t address(const void* pointer) const { return uint32_t(static_cast<const char*>(pointer) - arena_.begin()); }
  bool guards(const void* pointer) const { return arena_.guards(pointer); }

  // Where an address of shared memory is, or null if not all of its bytes are in one array.
  char* at(uint32_t address, size_t bytes) const {
    char* pointer = arena_.begin() + address;
    for (const Array& array : arrays_) {
      if (pointer >= array.data && pointer + bytes <= array.data + array.bytes) return pointer;
    }
    return nullptr;
  }

  // The name of an array behind which something was written, or null.
  const char* overrun() const {
    for (const Array& array : arrays_) {
      if (!untouched(array.data + array.bytes, array.end)) return array.name;
    }
    return nullptr;
  }

 private:
  static constexpr size_t zone = 512;
  struct Array {
    int number;
    const char* name;
    char* data;
    size_t bytes;
    char* end;  // of the zone behind it
  };
  Guarded arena_{2 << 20, 1 << 20};
  char* next_ = nullptr;
  size_t dynamic_bytes_, static_bytes_ = 0;
  std::vector<Array> arrays_;
};

// A copy of an array between pages that must not be touched; what is left of its pages is poisoned. It ends where
// the page does, but for the 16 bytes to which it is aligned.
class Argument {
 public:
  Argument(void* original, size_t bytes, ptrdiff_t position)
      : original_(original), bytes_(bytes), position_(position), memory_(bytes, 16 << 20) {
    memset(memory_.begin(), poison, size_t(memory_.end() - memory_.begin()));
    if (bytes) memcpy(data(), original, bytes);
  }

  char* data() const { return memory_.end() - round_up(bytes_, 16); }
  const void* original() const { return original_; }
  size_t bytes() const { return bytes_; }
  ptrdiff_t position() const { return position_; }  // among the launch's arguments
  bool guards(const void* address) const { return memory_.guards(address); }

  bool overrun() const {
    return !untouched(memory_.begin(), data()) || !untouched(data() + bytes_, memory_.end());
  }
  bool changed() const { return bytes_ && memcmp(data(), original_, bytes_) != 0; }
  void copy_back() const { memcpy(original_, data(), bytes_); }

 private:
  void* original_;
  size_t bytes_;
  ptrdiff_t position_;
  Guarded memory_;
};

}  // namespace emu
