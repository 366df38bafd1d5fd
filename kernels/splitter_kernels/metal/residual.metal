// Layer scale and residual sum. One thread an element.
#include "storage.h"

// y = gamma x
kernel void scale(
    device const storage* x [[buffer(0)]],   // [tokens, channels]
    device const float* gamma [[buffer(1)]], // [channels]
    device storage* y [[buffer(2)]],         // [tokens, channels]
    constant uint& count [[buffer(3)]],      // tokens * channels
    constant uint& channels [[buffer(4)]],
    uint index [[thread_position_in_grid]])
{
    if (index < count) {
        y[index] = storage(gamma[index % channels] * float(x[index]));
    }
}

// y = x + gamma branch
kernel void scale_residual(
    device const storage* x [[buffer(0)]],      // [tokens, channels]
    device const storage* branch [[buffer(1)]], // [tokens, channels]
    device const float* gamma [[buffer(2)]],    // [channels]
    device storage* y [[buffer(3)]],            // [tokens, channels]
    constant uint& count [[buffer(4)]],         // tokens * channels
    constant uint& channels [[buffer(5)]],
    uint index [[thread_position_in_grid]])
{
    if (index < count) {
        y[index] = storage(float(x[index]) + gamma[index % channels] * float(branch[index]));
    }
}
