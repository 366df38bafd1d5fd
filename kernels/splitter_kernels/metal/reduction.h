// The sum of one value a thread, over all threads of a threadgroup, given to every one of them.
#pragma once

#include <metal_stdlib>
using namespace metal;

// Added in pairs, so the order of the terms, and with it the result, depends on the number of threads alone. Every
// thread of the threadgroup must call it. `scratch` holds one float a thread.
inline float sum_over_threads(float value, threadgroup float* scratch, uint lane, uint lanes)
{
    scratch[lane] = value;
    for (uint terms = lanes; terms > 1;) {
        const uint kept = (terms + 1) / 2;
        threadgroup_barrier(mem_flags::mem_threadgroup); // what is added below has been written
        if (lane + kept < terms) {
            scratch[lane] += scratch[lane + kept];
        }
        terms = kept;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup); // the sum is complete
    const float sum = scratch[0];
    threadgroup_barrier(mem_flags::mem_threadgroup); // everyone has it: the next call may overwrite
    return sum;
}
