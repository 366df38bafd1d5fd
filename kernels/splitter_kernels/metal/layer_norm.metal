// y = (x - mean) / sqrt(variance + eps) weight + bias, with mean and variance of each token over its channels.
// One threadgroup a token. The variance is that of centred values: squares of large ones would cancel.
#include "reduction.h"
#include "storage.h"

kernel void layer_norm(
    device const storage* x [[buffer(0)]],     // [tokens, channels]
    device const float* weight [[buffer(1)]],  // [channels]
    device const float* bias [[buffer(2)]],    // [channels]
    device storage* y [[buffer(3)]],           // [tokens, channels]
    constant uint& channels [[buffer(4)]],
    constant float& eps [[buffer(5)]],
    threadgroup float* scratch [[threadgroup(0)]], // [threads]
    uint token [[threadgroup_position_in_grid]],
    uint lane [[thread_position_in_threadgroup]],
    uint lanes [[threads_per_threadgroup]])
{
    device const storage* from = x + token * channels;
    device storage* to = y + token * channels;
    float sum = 0.0f;
    for (uint c = lane; c < channels; c += lanes) {
        sum += float(from[c]);
    }
    const float mean = sum_over_threads(sum, scratch, lane, lanes) / float(channels);
    float squares = 0.0f;
    for (uint c = lane; c < channels; c += lanes) {
        const float centred = float(from[c]) - mean;
        squares += centred * centred;
    }
    const float variance = sum_over_threads(squares, scratch, lane, lanes) / float(channels);
    const float deviation = sqrt(variance + eps);
    for (uint c = lane; c < channels; c += lanes) {
        to[c] = storage((float(from[c]) - mean) / deviation * weight[c] + bias[c]);
    }
}
