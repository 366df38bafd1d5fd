// One dispatch of a kernel: what Python hands over (library.py mirrors it field by field) and gets back.
#pragma once

#include <cstdint>

typedef uint32_t uint;

struct uint2 {
    uint x, y;
};
struct uint3 {
    uint x, y, z;
};

namespace metal {
enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
void reach_barrier(mem_flags flags, int line, const char* file);
} // namespace metal

enum Order : uint32_t { FORWARD, REVERSE, INTERLEAVED, SHUFFLED, LOCKSTEP };
enum Fault : uint32_t { NONE, RACE, BOUNDS, UNINITIALISED, DIVERGENCE };
enum Space : uint32_t { BUFFER, THREADGROUP, ELSEWHERE };

struct Launch {
    void* const* buffers;
    const uint64_t* buffer_bytes;
    const uint64_t* memory_bytes;
    uint32_t buffer_count, memory_count;
    uint32_t groups[3], threads[3];
    uint32_t order;
    uint32_t checked; // the kernel was compiled to report its accesses
    uint64_t seed;
    // Written on return.
    uint32_t fault, space, index, thread_a, thread_b, is_write;
    uint64_t offset;
};

struct Position {
    uint3 group, in_group, in_grid, threads, groups;
};

// A kernel as one thread of it runs: its arguments taken from what is bound.
typedef void (*Thread)(void* const* buffers, void* const* memories, const Position& position);

void run(Launch& launch, Thread body);
