// exp, erf and GELU of every element of a vector. The layers use the functions of elementary.h inside other kernels;
// as kernels of their own they can be measured value by value.
#include "elementary.h"
#include "storage.h"

kernel void elementwise_exp(
    device const float* x [[buffer(0)]],   // [count], x <= 0
    device float* y [[buffer(1)]],         // [count]
    constant uint& count [[buffer(2)]],
    uint index [[thread_position_in_grid]])
{
    if (index < count) {
        y[index] = exponential(x[index]);
    }
}

kernel void elementwise_erf(
    device const float* x [[buffer(0)]],   // [count]
    device float* y [[buffer(1)]],         // [count]
    constant uint& count [[buffer(2)]],
    uint index [[thread_position_in_grid]])
{
    if (index < count) {
        y[index] = error_function(x[index]);
    }
}

kernel void elementwise_gelu(
    device const storage* x [[buffer(0)]], // [count]
    device storage* y [[buffer(1)]],       // [count]
    constant uint& count [[buffer(2)]],
    uint index [[thread_position_in_grid]])
{
    if (index < count) {
        y[index] = storage(gelu(float(x[index])));
    }
}
