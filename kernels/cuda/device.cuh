// What every kernel is written with: names of types, shared memory, reductions. Kernels include this and `math.cuh`, no
// header of CUDA, so that NVRTC needs no include path and a C++ compiler can make the same files for the emulator.
//
// Arithmetic: files are compiled without contraction of a * b + c (`--fmad=false`, `-ffp-contract=off`); where a fused
// multiply-add is meant, it is written (`fmaf`). So sums have the order in which they are written, on every device.
#pragma once

#ifdef HOST_EMULATOR
#include "emulator.hpp"
#else
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
#include "ptx.cuh"
// The dynamic shared memory of the block, in bytes; its size is an argument of the launch.
#define SHARED(name) extern __shared__ __align__(16) unsigned char name[]
// Makes a kernel known to the emulator.
#define EXPORT(name)
#endif

// Elements of weights and of the KV cache, as they lie in memory.
struct bf16 {
    u16 bits;
};
struct f16 {
    u16 bits;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return bits_as_float((u32)x.bits << 16); }
__device__ __forceinline__ float widen(f16 x) { return half_as_float(x.bits); }

template <class E> __device__ __forceinline__ E narrow(float x);
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) { return bf16{(u16)bf16_pair(x, 0.0f)}; }

// Writes why a step failed: the first reason stays. `error` is two integers: a code of `kernels::cuda::Fault`, a value.
__device__ __forceinline__ void report(i64* error, i64 code, i64 value) {
    if (first_to_set((u64*)error, (u64)code)) error[1] = value;
}

// The same sum in every lane. The order depends on nothing but the lanes.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

// The sum over a block of whole warps, in every thread. `room` has one float for each warp; it may be used again.
__device__ __forceinline__ float block_sum(float x, float* room) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
    for (int warp = 0; warp < (int)blockDim.x / 32; warp++) sum += room[warp];
    __syncthreads();
    return sum;
}

__device__ __forceinline__ float block_max(float x, float* room) {
    x = warp_max(x);
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    float max = room[0];
    for (int warp = 1; warp < (int)blockDim.x / 32; warp++) max = fmaxf(max, room[warp]);
    __syncthreads();
    return max;
}
