// Runs threadgroups one after another on one CPU core, each thread of a group as a fibre that is left at a barrier,
// in the order asked for. Where the kernel was compiled to report its loads and stores (-fsanitize=thread, whose
// hooks are defined here and not by the sanitizer), each is held against the rules of the memory model: within one
// phase, from barrier to barrier, no two threads may touch one byte unless both read; between threadgroups never.
#include "runtime.h"

#include <csetjmp>
#include <cstring>
#include <memory>
#include <ucontext.h>
#include <vector>

namespace {

constexpr size_t STACK = 64 * 1024;
constexpr uint32_t MANY = UINT32_MAX;

enum class State { READY, PREEMPTED, WAITING, DONE };

struct Fibre {
    std::unique_ptr<char[]> stack{new char[STACK]};
    ucontext_t start;
    jmp_buf place;
    bool started = false;
    State state = State::READY;
    int line = 0;
    const char* file = nullptr;
    metal::mem_flags flags = metal::mem_flags::mem_none;
    Position position;
};

// Who last wrote and read one byte. A phase of 0 means nobody.
struct Cell {
    uint32_t write_phase = 0, write_thread = 0, write_group = 0;
    uint32_t read_phase = 0, read_thread = 0, read_group = 0;
};

struct Region {
    Space space;
    uint32_t index;
    uintptr_t begin, end;
    std::vector<Cell> cells;
};

struct Dispatch {
    Launch* launch;
    Thread body;
    std::vector<Fibre> fibres;
    std::vector<std::unique_ptr<char[]>> memory;
    std::vector<void*> memories;
    std::vector<Region> regions;
    uint64_t random;
    jmp_buf scheduler;
    uint32_t current = 0, group = 0;
    uint32_t threadgroup_phase = 0, device_phase = 0;
};

thread_local Dispatch* active = nullptr;

[[noreturn]] void leave(State state)
{
    active->fibres[active->current].state = state;
    _longjmp(active->scheduler, 1);
}

void pause(State state)
{
    if (_setjmp(active->fibres[active->current].place) == 0) {
        leave(state);
    }
}

void fibre_main()
{
    for (;;) { // once a group
        active->body(active->launch->buffers, active->memories.data(), active->fibres[active->current].position);
        pause(State::DONE);
    }
}

void resume(uint32_t thread)
{
    Fibre& fibre = active->fibres[thread];
    active->current = thread;
    if (_setjmp(active->scheduler) == 0) {
        if (fibre.started) {
            _longjmp(fibre.place, 1);
        }
        fibre.started = true;
        getcontext(&fibre.start);
        fibre.start.uc_stack.ss_sp = fibre.stack.get();
        fibre.start.uc_stack.ss_size = STACK;
        fibre.start.uc_link = nullptr;
        makecontext(&fibre.start, fibre_main, 0);
        setcontext(&fibre.start);
    }
}

void fail(Fault fault, Space space, uint32_t index, uint64_t offset, bool is_write, uint32_t a, uint32_t b)
{
    Launch& launch = *active->launch;
    launch.fault = fault;
    launch.space = space;
    launch.index = index;
    launch.offset = offset;
    launch.is_write = is_write;
    launch.thread_a = a;
    launch.thread_b = b;
}

uint64_t drawn() // SplitMix64
{
    uint64_t value = active->random += 0x9e3779b97f4a7c15u;
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
    value = (value ^ value >> 27) * 0x94d049bb133111ebu;
    return value ^ value >> 31;
}

std::vector<uint32_t> ordered(uint32_t count)
{
    const uint32_t kind = active->launch->order, evens = (count + 1) / 2;
    std::vector<uint32_t> order(count);
    for (uint32_t i = 0; i < count; ++i) {
        order[i] = i;
        if (kind == REVERSE) {
            order[i] = count - 1 - i;
        } else if (kind == INTERLEAVED) { // 0 2 4 ... 1 3 5 ...
            order[i] = i < evens ? 2 * i : 2 * (i - evens) + 1;
        } else if (kind == SHUFFLED) {
            const uint32_t j = uint32_t(drawn() % (i + 1));
            order[i] = order[j];
            order[j] = i;
        }
    }
    return order;
}

// Runs all threads of a group to its end. False if one broke a rule.
bool run_group()
{
    Dispatch& dispatch = *active;
    const uint32_t count = uint32_t(dispatch.fibres.size());
    for (;;) {
        std::vector<uint32_t> queue = ordered(count);
        for (size_t next = 0; next < queue.size(); ++next) {
            const uint32_t thread = queue[next];
            resume(thread);
            if (dispatch.launch->fault != NONE) {
                return false;
            }
            if (dispatch.fibres[thread].state == State::PREEMPTED) {
                queue.push_back(thread);
            }
        }
        const Fibre& first = dispatch.fibres[0];
        for (uint32_t thread = 1; thread < count; ++thread) {
            const Fibre& other = dispatch.fibres[thread];
            const bool together = first.state == other.state
                && (first.state == State::DONE || (first.line == other.line && !std::strcmp(first.file, other.file)));
            if (!together) {
                fail(DIVERGENCE, ELSEWHERE, 0, 0, false, 0, thread);
                return false;
            }
        }
        if (first.state == State::DONE) {
            return true;
        }
        dispatch.threadgroup_phase += (uint32_t(first.flags) & uint32_t(metal::mem_flags::mem_threadgroup)) != 0;
        dispatch.device_phase += (uint32_t(first.flags) & uint32_t(metal::mem_flags::mem_device)) != 0;
    }
}

bool conflicts(const Cell& cell, uint32_t phase, bool is_write, uint32_t& other)
{
    if (cell.write_phase != 0
        && (cell.write_group != active->group
            || (cell.write_phase == phase && cell.write_thread != active->current))) {
        other = cell.write_thread;
        return true;
    }
    if (is_write && cell.read_phase != 0
        && (cell.read_group != active->group || (cell.read_phase == phase && cell.read_thread != active->current))) {
        other = cell.read_thread;
        return true;
    }
    return false;
}

void remember(Cell& cell, uint32_t phase, bool is_write)
{
    if (is_write) {
        cell.write_phase = phase;
        cell.write_thread = active->current;
        cell.write_group = active->group;
        return;
    }
    cell.read_group = cell.read_phase == 0 || cell.read_group == active->group ? active->group : MANY;
    cell.read_thread =
        cell.read_phase != phase || cell.read_thread == active->current ? active->current : MANY;
    cell.read_phase = phase;
}

void access(uintptr_t address, size_t size, bool is_write)
{
    if (active == nullptr) {
        return;
    }
    const char* stack = active->fibres[active->current].stack.get();
    if (address - uintptr_t(stack) < STACK) {
        return; // its own variables
    }
    for (Region& region : active->regions) {
        if (address < region.begin || address + size > region.end) {
            continue;
        }
        const uint32_t phase = region.space == BUFFER ? active->device_phase : active->threadgroup_phase;
        for (size_t i = 0; i < size; ++i) {
            const uint64_t offset = address - region.begin + i;
            Cell& cell = region.cells[offset];
            uint32_t other = MANY;
            if (conflicts(cell, phase, is_write, other)) {
                fail(RACE, region.space, region.index, offset, is_write, active->current, other);
                leave(State::DONE);
            }
            if (!is_write && region.space == THREADGROUP && cell.write_phase == 0) {
                fail(UNINITIALISED, region.space, region.index, offset, is_write, active->current, MANY);
                leave(State::DONE);
            }
            remember(cell, phase, is_write);
        }
        if (active->launch->order == LOCKSTEP) {
            pause(State::PREEMPTED);
        }
        return;
    }
    fail(BOUNDS, ELSEWHERE, 0, 0, is_write, active->current, MANY);
    leave(State::DONE);
}

} // namespace

void metal::reach_barrier(mem_flags flags, int line, const char* file)
{
    Fibre& fibre = active->fibres[active->current];
    fibre.flags = flags;
    fibre.line = line;
    fibre.file = file;
    pause(State::WAITING);
}

void run(Launch& launch, Thread body)
{
    Dispatch dispatch;
    dispatch.launch = &launch;
    dispatch.body = body;
    dispatch.random = launch.seed;
    dispatch.fibres = std::vector<Fibre>(launch.threads[0] * launch.threads[1] * launch.threads[2]);
    for (uint32_t i = 0; i < launch.memory_count; ++i) {
        dispatch.memory.emplace_back(new char[launch.memory_bytes[i]]);
        dispatch.memories.push_back(dispatch.memory.back().get());
    }
    if (launch.checked) {
        for (uint32_t i = 0; i < launch.buffer_count; ++i) {
            const uintptr_t begin = uintptr_t(launch.buffers[i]);
            const uint64_t bytes = launch.buffer_bytes[i];
            dispatch.regions.push_back({BUFFER, i, begin, begin + bytes, std::vector<Cell>(bytes)});
        }
        for (uint32_t i = 0; i < launch.memory_count; ++i) {
            const uintptr_t begin = uintptr_t(dispatch.memories[i]);
            dispatch.regions.push_back({THREADGROUP, i, begin, begin + launch.memory_bytes[i], {}});
        }
    }
    active = &dispatch;
    const uint32_t* groups = launch.groups;
    const uint32_t* threads = launch.threads;
    for (const uint32_t group : ordered(groups[0] * groups[1] * groups[2])) {
        dispatch.group = group;
        ++dispatch.threadgroup_phase;
        ++dispatch.device_phase;
        for (uint32_t i = 0; i < launch.memory_count; ++i) {
            std::memset(dispatch.memories[i], 0xff, launch.memory_bytes[i]); // NaNs: nothing is there yet
        }
        for (Region& region : dispatch.regions) {
            if (region.space == THREADGROUP) {
                region.cells.assign(region.end - region.begin, Cell{});
            }
        }
        const uint3 place{group % groups[0], group / groups[0] % groups[1], group / groups[0] / groups[1]};
        for (uint32_t i = 0; i < dispatch.fibres.size(); ++i) {
            const uint3 at{i % threads[0], i / threads[0] % threads[1], i / threads[0] / threads[1]};
            const uint3 in_grid{
                place.x * threads[0] + at.x, place.y * threads[1] + at.y, place.z * threads[2] + at.z};
            dispatch.fibres[i].position = {
                place, at, in_grid, {threads[0], threads[1], threads[2]}, {groups[0], groups[1], groups[2]}};
        }
        if (!run_group()) {
            break;
        }
    }
    active = nullptr;
}

// What the compiler calls at every load and store under -fsanitize=thread.
extern "C" {
#define REPORTS(size)                                                                                   \
    void __tsan_read##size(void* p) { access(uintptr_t(p), size, false); }                              \
    void __tsan_write##size(void* p) { access(uintptr_t(p), size, true); }                              \
    void __tsan_unaligned_read##size(void* p) { access(uintptr_t(p), size, false); }                    \
    void __tsan_unaligned_write##size(void* p) { access(uintptr_t(p), size, true); }
REPORTS(1)
REPORTS(2)
REPORTS(4)
REPORTS(8)
REPORTS(16)
void __tsan_read_range(void* p, size_t size) { access(uintptr_t(p), size, false); }
void __tsan_write_range(void* p, size_t size) { access(uintptr_t(p), size, true); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}
