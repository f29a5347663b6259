/* Memory for what operations compute on while they run, and the right to all cores. */
#ifndef TFPPO_MEMORY_H
#define TFPPO_MEMORY_H

#include <omp.h>
#include <stdlib.h>

#include <memory>
#include <mutex>
#include <new>

/* One region at a time has all the cores: two would wait for each other at every barrier. */
inline std::mutex cores;

/* Memory that is used again at every call of any operation, by one region at a time. Throws std::bad_alloc. */
inline char *workspace(size_t size) {
  static std::unique_ptr<char, void (*)(void *)> memory(nullptr, free);
  static size_t available = 0;
  if (size > available) {
    available = 0;
    memory.reset();
    memory.reset(static_cast<char *>(aligned_alloc(64, (size + 63) / 64 * 64)));
    if (!memory) throw std::bad_alloc();
    available = size;
  }
  return memory.get();
}

/* While it lives, its operation has all the cores, and memory to compute on. */
struct Region {
  std::lock_guard<std::mutex> lock{cores};
  char *at;
  explicit Region(size_t size) : at(workspace(size)) {}
};

/* Hands out parts of one piece of memory, of whole cache lines each; of none, it only adds up their sizes. */
struct Room {
  char *at = nullptr;
  size_t size = 0;
  template <typename T>
  T *take(size_t count) {
    T *part = at ? reinterpret_cast<T *>(at + size) : nullptr;
    size += (count * sizeof(T) + 63) / 64 * 64;
    return part;
  }
};

/* A region whose memory is one part for all threads, then one for each.

   What throws may not leave a parallel region: so all memory is there before one begins. */
class Parts {
 public:
  Parts(size_t shared, size_t own) : own(own), first(shared), region(shared + own * omp_get_max_threads()) {}
  Room shared() const { return {region.at}; }
  Room of_thread() const { return {region.at + first + own * omp_get_thread_num()}; }

 private:
  size_t own, first;
  Region region;
};

/* The size of what `take(room)` takes. */
template <typename Take>
static size_t size_of(Take take) {
  Room room;
  take(room);
  return room.size;
}

#endif
