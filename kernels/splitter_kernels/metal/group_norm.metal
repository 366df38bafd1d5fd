// y = (x - mean) / sqrt(variance + eps) weight + bias, with mean and variance over all tokens and channels: up to
// 1.4 million values, which in one float accumulator would cost 60 dB. So in two levels, of equal shares:
//   1. group_norm_tokens: m_t and v_t, mean and variance of each token,
//   2. group_norm_moments: mean = mean of m_t; variance = mean of (v_t + (m_t - mean)^2),
//   3. group_norm_apply.
// No thread waits for another threadgroup: between the steps lies the end of a dispatch.
#include "reduction.h"
#include "storage.h"

// One threadgroup a token.
kernel void group_norm_tokens(
    device const storage* x [[buffer(0)]],  // [tokens, channels]
    device float* means [[buffer(1)]],      // [tokens]
    device float* variances [[buffer(2)]],  // [tokens]
    constant uint& channels [[buffer(3)]],
    threadgroup float* scratch [[threadgroup(0)]], // [threads]
    uint token [[threadgroup_position_in_grid]],
    uint lane [[thread_position_in_threadgroup]],
    uint lanes [[threads_per_threadgroup]])
{
    device const storage* from = x + token * channels;
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
    if (lane == 0) {
        means[token] = mean;
        variances[token] = variance;
    }
}

// One threadgroup in all.
kernel void group_norm_moments(
    device const float* means [[buffer(0)]],      // [tokens]
    device const float* variances [[buffer(1)]],  // [tokens]
    device float* moments [[buffer(2)]],          // [2]: mean and variance
    constant uint& tokens [[buffer(3)]],
    threadgroup float* scratch [[threadgroup(0)]], // [threads]
    uint lane [[thread_position_in_threadgroup]],
    uint lanes [[threads_per_threadgroup]])
{
    float sum = 0.0f;
    for (uint token = lane; token < tokens; token += lanes) {
        sum += means[token];
    }
    const float mean = sum_over_threads(sum, scratch, lane, lanes) / float(tokens);
    float spread = 0.0f;
    for (uint token = lane; token < tokens; token += lanes) {
        const float centred = means[token] - mean;
        spread += variances[token] + centred * centred;
    }
    const float variance = sum_over_threads(spread, scratch, lane, lanes) / float(tokens);
    if (lane == 0) {
        moments[0] = mean;
        moments[1] = variance;
    }
}

// One thread an element.
kernel void group_norm_apply(
    device const storage* x [[buffer(0)]],     // [tokens, channels]
    device const float* moments [[buffer(1)]], // [2]
    device const float* weight [[buffer(2)]],  // [channels]
    device const float* bias [[buffer(3)]],    // [channels]
    device storage* y [[buffer(4)]],           // [tokens, channels]
    constant uint& count [[buffer(5)]],        // tokens * channels
    constant uint& channels [[buffer(6)]],
    constant float& eps [[buffer(7)]],
    uint index [[thread_position_in_grid]])
{
    if (index < count) {
        const uint c = index % channels;
        const float deviation = sqrt(moments[1] + eps);
        y[index] = storage((float(x[index]) - moments[0]) / deviation * weight[c] + bias[c]);
    }
}
