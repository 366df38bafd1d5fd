// Compressed matrices to dense ones. One thread an element; in float storage bit for bit what the formulae give.
#include "storage.h"

// w = q scale, one scale for each output channel.
kernel void decode_int8(
    device const char* q [[buffer(0)]],       // [outputs, inputs]
    device const float* scales [[buffer(1)]], // [outputs]
    device storage* w [[buffer(2)]],          // [outputs, inputs]
    constant uint& count [[buffer(3)]],       // outputs * inputs
    constant uint& columns [[buffer(4)]],     // inputs
    uint index [[thread_position_in_grid]])
{
    if (index < count) {
        w[index] = storage(float(q[index]) * scales[index / columns]);
    }
}

// w = table[index i], where index i is bits i n ... i n + n - 1 of the stream, lowest bits first; n is 4, 6 or 8.
kernel void decode_palette(
    device const uchar* indices [[buffer(0)]], // [(count n + 7) / 8]
    device const float* table [[buffer(1)]],   // [2^n]
    device storage* w [[buffer(2)]],           // [count]
    constant uint& count [[buffer(3)]],
    constant uint& bits [[buffer(4)]],         // n
    uint index [[thread_position_in_grid]])
{
    if (index < count) {
        const uint within = index % 8 * bits; // eight indices fill n bytes: no product of index and n overflows
        const uint byte = index / 8 * bits + within / 8, shift = within % 8;
        uint window = indices[byte];
        if (shift + bits > 8) {
            window |= uint(indices[byte + 1]) << 8;
        }
        w[index] = storage(table[(window >> shift) & ((1u << bits) - 1)]);
    }
}
