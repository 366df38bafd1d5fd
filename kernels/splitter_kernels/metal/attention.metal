// softmax(q k^T / sqrt(d)) v of one head, for a block of queries a threadgroup, over tiles of sources: what is held
// at a time is tokens x tile, never tokens x sources. After each tile, with m the largest logit so far,
//   total = total e^(m_old - m) + sum_j e^(s_j - m),     mixed = mixed e^(m_old - m) + sum_j e^(s_j - m) v_j
// and mixed / total is the result. e^x is never asked for a positive x, nor of an infinity.
// Heads lie side by side in a token: channel h d + i is number i of head h.
#include "elementary.h"
#include "storage.h"

constant constexpr uint QUERIES = 16; // a threadgroup
constant constexpr uint SOURCES = 16; // a tile
constant constexpr uint LANES = 4;    // threads for each query
constant constexpr uint THREADS = QUERIES * LANES;

// Copy one head of `count` tokens from `first` on into tile[token][size], times `factor`; zeros beyond the last token.
inline void load(
    device const storage* tokens, uint available, uint first, uint count, uint channels, uint offset, uint size,
    float factor, threadgroup float* tile, uint lane)
{
    for (uint i = lane; i < count * size; i += THREADS) {
        const uint token = first + i / size;
        tile[i] = token < available ? float(tokens[token * channels + offset + i % size]) * factor : 0.0f;
    }
}

inline float product(threadgroup const float* left, threadgroup const float* right, uint size)
{
    float sum = 0.0f;
    for (uint i = 0; i < size; ++i) {
        sum += left[i] * right[i];
    }
    return sum;
}

// Threadgroups: blocks of queries, heads.
kernel void attention(
    device const storage* q [[buffer(0)]],  // [tokens, channels]
    device const storage* k [[buffer(1)]],  // [sources, channels]
    device const storage* v [[buffer(2)]],  // [sources, channels]
    device storage* y [[buffer(3)]],        // [tokens, channels]
    constant uint& tokens [[buffer(4)]],
    constant uint& sources [[buffer(5)]],
    constant uint& channels [[buffer(6)]],
    constant uint& size [[buffer(7)]],      // channels of a head, d
    constant float& factor [[buffer(8)]],   // 1 / sqrt(d)
    threadgroup float* q_tile [[threadgroup(0)]], // [QUERIES, size]
    threadgroup float* k_tile [[threadgroup(1)]], // [SOURCES, size]
    threadgroup float* v_tile [[threadgroup(2)]], // [SOURCES, size]
    threadgroup float* mixed [[threadgroup(3)]],  // [QUERIES, size]
    threadgroup float* logits [[threadgroup(4)]], // [QUERIES, SOURCES]
    threadgroup float* shares [[threadgroup(5)]], // [QUERIES, SOURCES]
    uint2 group [[threadgroup_position_in_grid]],
    uint2 thread_at [[thread_position_in_threadgroup]])
{
    const uint query = thread_at.x / LANES, lane = thread_at.x % LANES, offset = group.y * size;
    load(q, tokens, group.x * QUERIES, QUERIES, channels, offset, size, factor, q_tile, thread_at.x);
    for (uint i = lane; i < size; i += LANES) {
        mixed[query * size + i] = 0.0f; // this thread's alone until the end
    }
    float largest = -3.0e38f, total = 0.0f;
    for (uint first = 0; first < sources; first += SOURCES) {
        const uint count = min(SOURCES, sources - first);
        load(k, sources, first, SOURCES, channels, offset, size, 1.0f, k_tile, thread_at.x);
        load(v, sources, first, SOURCES, channels, offset, size, 1.0f, v_tile, thread_at.x);
        threadgroup_barrier(mem_flags::mem_threadgroup); // the tiles are complete
        for (uint j = lane; j < count; j += LANES) {
            logits[query * SOURCES + j] = product(q_tile + query * size, k_tile + j * size, size);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup); // the query's logits are complete
        const float before = largest;
        for (uint j = 0; j < count; ++j) {
            largest = max(largest, logits[query * SOURCES + j]);
        }
        for (uint j = lane; j < count; j += LANES) {
            shares[query * SOURCES + j] = exponential(logits[query * SOURCES + j] - largest);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup); // the query's shares are complete
        const float kept = exponential(before - largest);
        float sum = 0.0f;
        for (uint j = 0; j < count; ++j) {
            sum += shares[query * SOURCES + j];
        }
        total = total * kept + sum;
        for (uint i = lane; i < size; i += LANES) {
            float part = 0.0f;
            for (uint j = 0; j < count; ++j) {
                part += shares[query * SOURCES + j] * v_tile[j * size + i];
            }
            mixed[query * size + i] = mixed[query * size + i] * kept + part;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup); // everyone has read the tiles: the next ones may come
    }
    const uint token = group.x * QUERIES + query;
    if (token < tokens) {
        for (uint i = lane; i < size; i += LANES) {
            y[token * channels + offset + i] = storage(mixed[query * size + i] / total);
        }
    }
}

// q k^T / sqrt(d) for the first rows alone, to be looked at: in full it would be tokens x sources a head.
// Threadgroups: blocks of queries, heads, tiles of sources.
kernel void attention_logits(
    device const storage* q [[buffer(0)]],  // [tokens, channels]
    device const storage* k [[buffer(1)]],  // [sources, channels]
    device float* y [[buffer(2)]],          // [heads, rows, sources]
    constant uint& rows [[buffer(3)]],      // at most tokens
    constant uint& sources [[buffer(4)]],
    constant uint& channels [[buffer(5)]],
    constant uint& size [[buffer(6)]],
    constant float& factor [[buffer(7)]],
    threadgroup float* q_tile [[threadgroup(0)]], // [QUERIES, size]
    threadgroup float* k_tile [[threadgroup(1)]], // [SOURCES, size]
    uint3 group [[threadgroup_position_in_grid]],
    uint3 thread_at [[thread_position_in_threadgroup]])
{
    const uint query = thread_at.x / LANES, lane = thread_at.x % LANES, offset = group.y * size;
    const uint row = group.x * QUERIES + query, first = group.z * SOURCES;
    load(q, rows, group.x * QUERIES, QUERIES, channels, offset, size, factor, q_tile, thread_at.x);
    load(k, sources, first, SOURCES, channels, offset, size, 1.0f, k_tile, thread_at.x);
    threadgroup_barrier(mem_flags::mem_threadgroup); // the tiles are complete
    for (uint j = lane; j < SOURCES; j += LANES) {
        if (row < rows && first + j < sources) {
            y[(group.y * rows + row) * sources + first + j] =
                product(q_tile + query * size, k_tile + j * size, size);
        }
    }
}
