// exp, tanh, erf and the activations: the polynomials of the CPU kernels (`src/cpu/simd/math.rs`), in the same order of
// operations, so that both devices give the same bits. Errors are within about 2 units in the last place.
#pragma once
#include "device.cuh"

#define INFINITE bits_as_float(0x7f800000u)

__device__ __forceinline__ float pow2(float n) { return bits_as_float((u32)((int)n + 127) << 23); }

// e^x; 0 below -104 and infinity above 88.73; NaN stays NaN.
__device__ __forceinline__ float exp_(float x) {
    if (x != x) return x;
    float clamped = fmaxf(-150.0f, fminf(130.0f, x));
    float n = rintf(clamped * 1.44269504f);
    float r = fmaf(n, -0.6933594f, clamped);
    r = fmaf(n, 2.1219444e-4f, r);
    float p = 1.9875691e-4f;
    p = fmaf(p, r, 1.3981999e-3f);
    p = fmaf(p, r, 8.333452e-3f);
    p = fmaf(p, r, 4.1665795e-2f);
    p = fmaf(p, r, 1.6666665e-1f);
    p = fmaf(p, r, 0.5f);
    float e = fmaf(p, r * r, r) + 1.0f;
    // In two steps, so that neither factor overflows or is denormal.
    float half = rintf(n * 0.5f);
    return e * pow2(half) * pow2(n - half);
}

__device__ __forceinline__ float sigmoid_(float x) { return 1.0f / (1.0f + exp_(0.0f - x)); }

__device__ __forceinline__ float tanh_(float x) {
    float magnitude = fabsf(x), square = x * x;
    float p = -5.7049887e-3f;
    p = fmaf(p, square, 2.0639036e-2f);
    p = fmaf(p, square, -5.3739715e-2f);
    p = fmaf(p, square, 1.3331442e-1f);
    p = fmaf(p, square, -3.333328e-1f);
    float small = fmaf(p * square, x, x);
    float e = exp_(magnitude + magnitude);
    float large = copysignf(1.0f - 2.0f / (e + 1.0f), x);
    return magnitude > 0.625f ? large : small;
}

// The error function, after N. Juffa: a polynomial near zero, 1 - e^(polynomial) elsewhere.
__device__ __forceinline__ float erf_(float x) {
    float t = fminf(5.0f, fabsf(x)), square = t * t;
    float high = fmaf(-1.7285347e-5f, t, 3.8319713e-4f);
    float low = fmaf(-3.8839643e-3f, t, 2.4254622e-2f);
    float r = fmaf(high, square, low);
    r = fmaf(r, t, -1.0677788e-1f);
    r = fmaf(r, t, -6.3484675e-1f);
    r = fmaf(r, t, -1.2871751e-1f);
    r = fmaf(r, t, 0.0f - t);
    float large = copysignf(1.0f - exp_(r), x);
    float p = -5.967617e-4f;
    p = fmaf(p, square, 4.9911942e-3f);
    p = fmaf(p, square, -2.6768135e-2f);
    p = fmaf(p, square, 1.12819925e-1f);
    p = fmaf(p, square, -3.7612534e-1f);
    p = fmaf(p, square, 1.2837917e-1f);
    float small = fmaf(p, x, x);
    if (x != x) return x;
    return fabsf(x) > 0.9277344f ? large : small;
}

// ln(1 + e^x) without overflow: max(x, 0) + 2 atanh(z / (2 + z)), z = e^-|x|.
__device__ __forceinline__ float softplus_(float x) {
    float z = exp_(0.0f - fabsf(x));
    float q = z / (2.0f + z), square = q * q;
    float p = 1.0f / 17.0f;
    p = fmaf(p, square, 1.0f / 15.0f);
    p = fmaf(p, square, 1.0f / 13.0f);
    p = fmaf(p, square, 1.0f / 11.0f);
    p = fmaf(p, square, 1.0f / 9.0f);
    p = fmaf(p, square, 1.0f / 7.0f);
    p = fmaf(p, square, 1.0f / 5.0f);
    p = fmaf(p, square, 1.0f / 3.0f);
    p = fmaf(p, square, 1.0f);
    return fmaf(q + q, p, x > 0.0f ? x : 0.0f);
}

// `kernels::cpu::Activation`, by its number.
__device__ __forceinline__ float activation(int kind, float x) {
    float half = x * 0.5f;
    switch (kind) {
    case 1: return x != x ? x : fmaxf(0.0f, x);
    case 2: {
        float positive = x != x ? x : fmaxf(0.0f, x);
        return positive * positive;
    }
    case 3: return x / (1.0f + exp_(0.0f - x));
    case 4: return fmaf(half, erf_(x * 0.70710678f), half);
    case 5: return fmaf(half, tanh_(0.7978846f * fmaf(x * x * x, 0.044715f, x)), half);
    case 6: return x / (1.0f + exp_(x * -1.702f));
    case 7: return tanh_(x);
    case 8: return sigmoid_(x);
    case 9: return exp_(x);
    case 10: return softplus_(x);
    default: return x;
    }
}
