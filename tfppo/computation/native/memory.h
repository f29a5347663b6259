/* Memory for what operations compute on while they run. */
#ifndef TFPPO_MEMORY_H
#define TFPPO_MEMORY_H

#include <stdlib.h>

#include <memory>

/* Memory that is used again at every call of any operation, by one region at a time; nullptr where there is none. */
inline char *workspace(size_t size) {
  static std::unique_ptr<char, void (*)(void *)> memory(nullptr, free);
  static size_t available = 0;
  if (size > available) {
    memory.reset();
    memory.reset(static_cast<char *>(aligned_alloc(64, (size + 63) / 64 * 64)));
    available = memory ? size : 0;
  }
  return memory.get();
}

/* Hands out parts of one piece of memory, of whole cache lines each. */
struct Room {
  char *at;
  size_t size = 0;
  template <typename T>
  T *take(size_t count) {
    T *part = (T *)(at + size);
    size += (count * sizeof(T) + 63) / 64 * 64;
    return part;
  }
};

#endif
