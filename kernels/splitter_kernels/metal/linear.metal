// y = x W^T + b, and the same with GELU behind it.
// A threadgroup of SIDE x SIDE threads computes a block of ROWS x COLUMNS outputs, a thread TILE x TILE of them. The
// terms of a sum are added DEPTH at a time, and these partial sums among themselves: one accumulator for 2048 terms
// would lose about 12 dB.
#include "elementary.h"
#include "storage.h"

constant constexpr uint SIDE = 8;
constant constexpr uint TILE = 4;
constant constexpr uint ROWS = SIDE * TILE;
constant constexpr uint COLUMNS = SIDE * TILE;
constant constexpr uint DEPTH = 16;

struct Block {
    float value[TILE][TILE]; // outputs at rows thread.y + SIDE i, columns thread.x + SIDE j
};

// Copy `height` x DEPTH of a matrix, from row `first` and column `from` on, into tile[depth][row]; zeros beyond it.
inline void load(
    device const storage* matrix, uint rows, uint columns, uint first, uint from, uint height,
    threadgroup float* tile, uint lane)
{
    for (uint i = lane; i < height * DEPTH; i += SIDE * SIDE) {
        const uint row = i / DEPTH, depth = i % DEPTH;
        const bool inside = first + row < rows && from + depth < columns;
        tile[depth * height + row] = inside ? float(matrix[(first + row) * columns + from + depth]) : 0.0f;
    }
}

inline Block product(
    device const storage* x, device const storage* weight, uint rows, uint inputs, uint outputs,
    threadgroup float* x_tile, threadgroup float* weight_tile, uint2 group, uint2 at)
{
    Block sums;
    for (uint i = 0; i < TILE; ++i) {
        for (uint j = 0; j < TILE; ++j) {
            sums.value[i][j] = 0.0f;
        }
    }
    const uint lane = at.y * SIDE + at.x;
    for (uint from = 0; from < inputs; from += DEPTH) {
        load(x, rows, inputs, group.y * ROWS, from, ROWS, x_tile, lane);
        load(weight, outputs, inputs, group.x * COLUMNS, from, COLUMNS, weight_tile, lane);
        threadgroup_barrier(mem_flags::mem_threadgroup); // the tiles are complete
        Block part;
        for (uint i = 0; i < TILE; ++i) {
            for (uint j = 0; j < TILE; ++j) {
                part.value[i][j] = 0.0f;
            }
        }
        for (uint depth = 0; depth < DEPTH; ++depth) {
            for (uint i = 0; i < TILE; ++i) {
                const float left = x_tile[depth * ROWS + at.y + SIDE * i];
                for (uint j = 0; j < TILE; ++j) {
                    part.value[i][j] += left * weight_tile[depth * COLUMNS + at.x + SIDE * j];
                }
            }
        }
        for (uint i = 0; i < TILE; ++i) {
            for (uint j = 0; j < TILE; ++j) {
                sums.value[i][j] += part.value[i][j];
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup); // everyone has read them: the next ones may come
    }
    return sums;
}

// Threadgroups: blocks of columns, blocks of rows.
kernel void linear(
    device const storage* x [[buffer(0)]],      // [rows, inputs]
    device const storage* weight [[buffer(1)]], // [outputs, inputs]
    device const float* bias [[buffer(2)]],     // [outputs]
    device storage* y [[buffer(3)]],            // [rows, outputs]
    constant uint& rows [[buffer(4)]],
    constant uint& inputs [[buffer(5)]],
    constant uint& outputs [[buffer(6)]],
    threadgroup float* x_tile [[threadgroup(0)]],      // [DEPTH, ROWS]
    threadgroup float* weight_tile [[threadgroup(1)]], // [DEPTH, COLUMNS]
    uint2 group [[threadgroup_position_in_grid]],
    uint2 at [[thread_position_in_threadgroup]])
{
    const Block sums = product(x, weight, rows, inputs, outputs, x_tile, weight_tile, group, at);
    for (uint i = 0; i < TILE; ++i) {
        for (uint j = 0; j < TILE; ++j) {
            const uint row = group.y * ROWS + at.y + SIDE * i, column = group.x * COLUMNS + at.x + SIDE * j;
            if (row < rows && column < outputs) {
                y[row * outputs + column] = storage(sums.value[i][j] + bias[column]);
            }
        }
    }
}

// y = gelu(x W^T + b). What GELU reads has not been rounded to the storage type.
kernel void linear_gelu(
    device const storage* x [[buffer(0)]],      // [rows, inputs]
    device const storage* weight [[buffer(1)]], // [outputs, inputs]
    device const float* bias [[buffer(2)]],     // [outputs]
    device storage* y [[buffer(3)]],            // [rows, outputs]
    constant uint& rows [[buffer(4)]],
    constant uint& inputs [[buffer(5)]],
    constant uint& outputs [[buffer(6)]],
    threadgroup float* x_tile [[threadgroup(0)]],      // [DEPTH, ROWS]
    threadgroup float* weight_tile [[threadgroup(1)]], // [DEPTH, COLUMNS]
    uint2 group [[threadgroup_position_in_grid]],
    uint2 at [[thread_position_in_threadgroup]])
{
    const Block sums = product(x, weight, rows, inputs, outputs, x_tile, weight_tile, group, at);
    for (uint i = 0; i < TILE; ++i) {
        for (uint j = 0; j < TILE; ++j) {
            const uint row = group.y * ROWS + at.y + SIDE * i, column = group.x * COLUMNS + at.x + SIDE * j;
            if (row < rows && column < outputs) {
                y[row * outputs + column] = storage(gelu(sums.value[i][j] + bias[column]));
            }
        }
    }
}
