// exp and erf. Metal has no erf, and its exp is another function under every maths mode; these two are the same
// everywhere, and were fitted (minimax, Lawson's iteration against 40-digit values) for this file. They use neither
// infinities nor NaNs, and keep their bounds where multiply and add are fused, because the fusing is written down.
#pragma once

#include <metal_stdlib>
using namespace metal;

// e^x for x <= 0 to 1 ulp; 0 below -87.33, where the result would be subnormal, and exactly 1 at 0.
// x = n ln 2 + r with |r| <= ln(2)/2, so e^x = 2^n e^r. ln 2 is taken in two parts: n times the first is exact.
inline float exponential(float x)
{
    if (x < -87.33f) {
        return 0.0f;
    }
    const float n = rint(x * 1.44269502f);
    const float r = fma(n, -1.42860677e-06f, fma(n, -0.693145752f, x));
    float p = 0.000197902482f;
    p = fma(p, r, 0.00139447593f);
    p = fma(p, r, 0.00833349768f);
    p = fma(p, r, 0.0416662954f);
    p = fma(p, r, 0.166666657f);
    p = fma(p, r, 0.5f);
    p = fma(p * r, r, r) + 1.0f;
    return p * as_type<float>(uint(int(n) + 127) << 23);
}

// erf x = 2/sqrt(pi) int_0^x exp(-t^2) dt, to 1 ulp for every normal x.
// Below 1: x + x P(x^2). From 1 on: 1 - exp(Q(x)) with Q fitted to log(1 - erf). From 4 on: 1, rounded.
inline float error_function(float x)
{
    const float a = fabs(x);
    if (a >= 4.0f) {
        return copysign(1.0f, x);
    }
    if (a >= 1.0f) {
        float q = -2.16868502e-05f;
        q = fma(q, a, 0.000441336364f);
        q = fma(q, a, -0.00420456193f);
        q = fma(q, a, 0.0252082571f);
        q = fma(q, a, -0.108418576f);
        q = fma(q, a, -0.633219898f);
        q = fma(q, a, -1.12957847f);
        q = fma(q, a, 0.000188040227f);
        return copysign(1.0f - exponential(q), x);
    }
    const float z = x * x;
    float p = 7.85385782e-05f;
    p = fma(p, z, -0.000801019254f);
    p = fma(p, z, 0.00518832775f);
    p = fma(p, z, -0.026853811f);
    p = fma(p, z, 0.112835854f);
    p = fma(p, z, -0.37612626f);
    p = fma(p, z, 0.128379166f);
    return fma(x, p, x);
}

// x (1 + erf(x / sqrt 2)) / 2: the exact form of GELU, which the model was trained with.
inline float gelu(float x)
{
    return x * fma(0.5f, error_function(x * 0.707106769f), 0.5f);
}
