// The only file with inline PTX. `emulator.hpp` has a function of the same name and meaning for each one here.
#pragma once

__device__ __forceinline__ float bits_as_float(u32 x) { return __uint_as_float(x); }
__device__ __forceinline__ u32 float_as_bits(float x) { return __float_as_uint(x); }

__device__ __forceinline__ float half_as_float(u16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}

// Two numbers rounded to bf16, to nearest even: the first in the lower half.
__device__ __forceinline__ u32 bf16_pair(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// Writes `value` where 0 stands; whether this call did.
__device__ __forceinline__ bool first_to_set(u64* at, u64 value) { return atomicCAS(at, 0ull, value) == 0ull; }

// Adds to a whole number that other threads may add to as well.
__device__ __forceinline__ void add_to(u64* at, u64 value) { atomicAdd(at, value); }

// The upper half of the product of 64 by 64 bits.
__device__ __forceinline__ u64 high_of_product(u64 a, u64 b) { return __umul64hi(a, b); }

// To the nearest whole number, of two equally near ones the even.
__device__ __forceinline__ i64 nearest_whole(float x) { return __float2ll_rn(x); }

// Begins copying 16 bytes to shared memory; both addresses are multiples of 16.
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
    u32 at = (u32)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(global) : "memory");
}

// Closes a group of copies.
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the latest `N` groups of this thread are under way.
template <int N> __device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// sums[16 x 8] += a[16 x 16] b[16 x 8], bf16 products in f32, by a whole warp. Lane l has, with g = l / 4 and t = l % 4:
// of a the pairs of columns 2t and 2t + 8 of rows g and g + 8 (a[0], a[2] of row g); of b the pairs of rows 2t and
// 2t + 8 of column g; of the sums columns 2t and 2t + 1 of rows g and g + 8.
__device__ __forceinline__ void mma_bf16(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
