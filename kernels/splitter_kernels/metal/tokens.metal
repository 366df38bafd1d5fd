// From the boundary's layout to tokens and back, and the position table.
// Frequency branch: c f t <-> (t f) c. Time branch: c t <-> t c, which is the same with one bin.
// Each threadgroup turns one tile of one bin through threadgroup memory, so that both sides are walked along their
// innermost axis.
#include "storage.h"

constant constexpr uint SIDE = 16;      // of the square tile; a threadgroup has SIDE x SIDE threads
constant constexpr uint STRIDE = 17;    // of the tile's rows: an odd one keeps columns out of each other's banks

// Threadgroups: tiles of frames, tiles of channels, bins.
kernel void to_tokens(
    device const storage* x [[buffer(0)]],  // [channels, bins, frames]
    device storage* y [[buffer(1)]],        // [frames, bins, channels]
    constant uint& channels [[buffer(2)]],
    constant uint& bins [[buffer(3)]],
    constant uint& frames [[buffer(4)]],
    threadgroup storage* tile [[threadgroup(0)]], // [SIDE, STRIDE]
    uint3 group [[threadgroup_position_in_grid]],
    uint3 thread_at [[thread_position_in_threadgroup]])
{
    const uint column = thread_at.x, row = thread_at.y, bin = group.z;
    const uint frame = group.x * SIDE + column, channel = group.y * SIDE + row;
    if (frame < frames && channel < channels) {
        tile[row * STRIDE + column] = x[(channel * bins + bin) * frames + frame];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const uint frame_out = group.x * SIDE + row, channel_out = group.y * SIDE + column;
    if (frame_out < frames && channel_out < channels) {
        y[(frame_out * bins + bin) * channels + channel_out] = tile[column * STRIDE + row];
    }
}

// Threadgroups: tiles of channels, tiles of frames, bins.
kernel void from_tokens(
    device const storage* x [[buffer(0)]],  // [frames, bins, channels]
    device storage* y [[buffer(1)]],        // [channels, bins, frames]
    constant uint& channels [[buffer(2)]],
    constant uint& bins [[buffer(3)]],
    constant uint& frames [[buffer(4)]],
    threadgroup storage* tile [[threadgroup(0)]], // [SIDE, STRIDE]
    uint3 group [[threadgroup_position_in_grid]],
    uint3 thread_at [[thread_position_in_threadgroup]])
{
    const uint column = thread_at.x, row = thread_at.y, bin = group.z;
    const uint channel = group.x * SIDE + column, frame = group.y * SIDE + row;
    if (frame < frames && channel < channels) {
        tile[row * STRIDE + column] = x[(frame * bins + bin) * channels + channel];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const uint channel_out = group.x * SIDE + row, frame_out = group.y * SIDE + column;
    if (frame_out < frames && channel_out < channels) {
        y[(channel_out * bins + bin) * frames + frame_out] = tile[column * STRIDE + row];
    }
}

// y = x + positions. One thread an element.
kernel void add_positions(
    device const storage* x [[buffer(0)]],       // [tokens, channels]
    device const float* positions [[buffer(1)]], // [tokens, channels]
    device storage* y [[buffer(2)]],             // [tokens, channels]
    constant uint& count [[buffer(3)]],          // tokens * channels
    uint index [[thread_position_in_grid]])
{
    if (index < count) {
        y[index] = storage(float(x[index]) + positions[index]);
    }
}
