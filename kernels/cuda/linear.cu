// Linear layers: out = x weight^T, with bias, activation, and what is added. `x` is f32 [m, k], `weight` [n, k] dense.
//
// Batch invariance: each output has one order of summation, whatever m is and whichever kernel computes it.
//
// - f32 products (`rows_*`, `tiled_*`): 8 lanes, of which lane j takes k = 32 c + 4 j .. + 4 of each chunk c in order, with
//   fused multiply-adds; then the lanes' sums by halves (4, 2, 1). `rows` is for few rows: weights are read once, straight
//   into registers. `tiled` is for many: both operands go through shared memory.
// - bf16 products (`mma_*`): 4 warps, of which warp w takes chunks of 32 of k that are w modulo 4, each as two
//   `mma.sync` steps; then ((0 + 1) + (2 + 3)). Which k of a chunk meet in a step is free, so lanes load 16 bytes of a row.
#include "device.cuh"
#include "math.cuh"

// What is done with a sum. `end`: 0 it is written, 1 it is added to what is there, 2 `other` is added to it.
__device__ __forceinline__ void finish(float sum, float bias, int kind, int end, const float* other, float* out) {
    float y = activation(kind, sum + bias);
    *out = end == 1 ? *out + y : end == 2 ? *other + y : y;
}

#define END const float *bias, int kind, int end, const float *other, i64 other_stride, float *out, i64 out_stride

// Columns of a group of 8 lanes: 4 elements each of one chunk, 0 beyond k. Weights of any alignment.
template <class W> __device__ __forceinline__ void load4(const W* from, int first, int k, bool aligned, float (&to)[4]);

template <> __device__ __forceinline__ void load4<float>(const float* from, int first, int k, bool aligned, float (&to)[4]) {
    if (aligned && first + 4 <= k) {
        float4 v = *(const float4*)(from + first);
        to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
        return;
    }
#pragma unroll
    for (int e = 0; e < 4; e++) to[e] = first + e < k ? from[first + e] : 0.0f;
}

template <class W> __device__ __forceinline__ void load4(const W* from, int first, int k, bool aligned, float (&to)[4]) {
    if (aligned && first + 4 <= k) {
        u64 v = *(const u64*)(from + first);
#pragma unroll
        for (int e = 0; e < 4; e++) to[e] = widen(W{(u16)(v >> (16 * e))});
        return;
    }
#pragma unroll
    for (int e = 0; e < 4; e++) to[e] = first + e < k ? widen(from[first + e]) : 0.0f;
}

__device__ __forceinline__ float sum_of_8(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 4);
    x += __shfl_xor_sync(0xffffffffu, x, 2);
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x;
}

// Whether every row begins at a multiple of 4 elements.
template <class E> __device__ __forceinline__ bool by_fours(const E* p, i64 stride) {
    return ((u64)p | (u64)(stride * (i64)sizeof(E))) % (4 * sizeof(E)) == 0;
}

// One column of the weight for R rows of x, by 8 lanes.
template <class W, int R>
__device__ __forceinline__ void column_sums(const float* x, i64 x_stride, int rows, const W* weight, int k, float (&sums)[R]) {
    int j = threadIdx.x % 8;
    bool x_aligned = by_fours(x, x_stride), w_aligned = by_fours(weight, k);
    float own[R];
#pragma unroll
    for (int r = 0; r < R; r++) own[r] = 0.0f;
    for (int first = 4 * j; first - 4 * j < k; first += 32) {
        float w[4];
        load4<W>(weight, first, k, w_aligned, w);
#pragma unroll
        for (int r = 0; r < R; r++) {
            float v[4];
            // Rows beyond the last are the last again; nothing is written for them.
            load4<float>(x + min(r, rows - 1) * x_stride, first, k, x_aligned, v);
#pragma unroll
            for (int e = 0; e < 4; e++) own[r] = fmaf(v[e], w[e], own[r]);
        }
    }
#pragma unroll
    for (int r = 0; r < R; r++) sums[r] = sum_of_8(own[r]);
}

// 256 threads: 32 columns. Block x counts rows, block y columns.
template <class W, int R>
__device__ __forceinline__ void rows_of(const float* x, i64 x_stride, int m, int k, const W* weight, int n, END) {
    int column = blockIdx.y * 32 + threadIdx.x / 8, row = blockIdx.x * R;
    // All lanes of a warp go on to the shuffles; what is beyond n computes the last column and writes nothing.
    float sums[R];
    column_sums<W, R>(x + row * x_stride, x_stride, m - row, weight + (i64)min(column, n - 1) * k, k, sums);
    if (column >= n || threadIdx.x % 8 != 0) return;
#pragma unroll
    for (int r = 0; r < R; r++) {
        if (row + r < m) {
            finish(sums[r], bias ? bias[column] : 0.0f, kind, end, other + (row + r) * other_stride + column,
                   out + (row + r) * out_stride + column);
        }
    }
}

// 256 threads: 32 rows by 64 columns; a group of 8 lanes has 8 rows by 8 columns. Shared memory: 96 rows of 36 floats.
const int TILE_ROWS = 32, TILE_COLUMNS = 64, PITCH = 36;

template <class W>
__device__ __forceinline__ void tile_of(const float* x, i64 x_stride, int m, int k, const W* weight, int n, END) {
    SHARED(shared);
    float* x_tile = (float*)shared;
    float* w_tile = x_tile + TILE_ROWS * PITCH;
    int group = threadIdx.x / 8, j = threadIdx.x % 8;
    int row = blockIdx.x * TILE_ROWS, column = blockIdx.y * TILE_COLUMNS;
    int own_row = group / 8 * 8, own_column = group % 8 * 8;
    bool x_aligned = by_fours(x, x_stride), w_aligned = by_fours(weight, k);
    float sums[8][8];
#pragma unroll
    for (int r = 0; r < 8; r++)
#pragma unroll
        for (int c = 0; c < 8; c++) sums[r][c] = 0.0f;
    for (int chunk = 0; chunk < k; chunk += 32) {
        for (int i = threadIdx.x; i < (TILE_ROWS + TILE_COLUMNS) * 8; i += 256) {
            int at = i / 8, part = i % 8 * 4;
            float v[4];
            if (at < TILE_ROWS) load4<float>(x + (i64)min(row + at, m - 1) * x_stride, chunk + part, k, x_aligned, v);
            else load4<W>(weight + (i64)min(column + at - TILE_ROWS, n - 1) * k, chunk + part, k, w_aligned, v);
            *(float4*)(x_tile + at * PITCH + part) = float4{v[0], v[1], v[2], v[3]};
        }
        __syncthreads();
        float4 w[8];
#pragma unroll
        for (int c = 0; c < 8; c++) w[c] = *(const float4*)(w_tile + (own_column + c) * PITCH + 4 * j);
#pragma unroll
        for (int r = 0; r < 8; r++) {
            float4 v = *(const float4*)(x_tile + (own_row + r) * PITCH + 4 * j);
#pragma unroll
            for (int c = 0; c < 8; c++) {
                sums[r][c] = fmaf(v.x, w[c].x, sums[r][c]);
                sums[r][c] = fmaf(v.y, w[c].y, sums[r][c]);
                sums[r][c] = fmaf(v.z, w[c].z, sums[r][c]);
                sums[r][c] = fmaf(v.w, w[c].w, sums[r][c]);
            }
        }
        __syncthreads();
    }
    // Each lane writes one of the eight columns.
    int to_column = column + own_column + j;
#pragma unroll
    for (int r = 0; r < 8; r++) {
        float mine = 0.0f;
#pragma unroll
        for (int c = 0; c < 8; c++) {
            float sum = sum_of_8(sums[r][c]);
            if (c == j) mine = sum;
        }
        int to_row = row + own_row + r;
        if (to_row < m && to_column < n) {
            finish(mine, bias ? bias[to_column] : 0.0f, kind, end, other + to_row * other_stride + to_column,
                   out + to_row * out_stride + to_column);
        }
    }
}

#define LINEAR(name, W, R)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        name(const float* x, i64 x_stride, int m, int k, const W* weight, int n, END) {                                \
        rows_of<W, R>(x, x_stride, m, k, weight, n, bias, kind, end, other, other_stride, out, out_stride);            \
    }                                                                                                                  \
    EXPORT(name);
LINEAR(rows1_f32, float, 1)
LINEAR(rows1_bf16, bf16, 1)
LINEAR(rows1_f16, f16, 1)
LINEAR(rows4_f32, float, 4)
LINEAR(rows4_bf16, bf16, 4)
LINEAR(rows4_f16, f16, 4)

#define TILED(name, W)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        name(const float* x, i64 x_stride, int m, int k, const W* weight, int n, END) {                                \
        tile_of<W>(x, x_stride, m, k, weight, n, bias, kind, end, other, other_stride, out, out_stride);               \
    }                                                                                                                  \
    EXPORT(name);
TILED(tiled_f32, float)
TILED(tiled_bf16, bf16)
TILED(tiled_f16, f16)

// 8 elements of a row of the weight, as pairs.
__device__ __forceinline__ void load8(const bf16* from, int first, int k, bool aligned, u32 (&to)[4]) {
    if (aligned && first + 8 <= k) {
        uint4 v = *(const uint4*)(from + first);
        to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
        return;
    }
#pragma unroll
    for (int e = 0; e < 4; e++) {
        u32 low = first + 2 * e < k ? from[first + 2 * e].bits : 0;
        u32 high = first + 2 * e + 1 < k ? from[first + 2 * e + 1].bits : 0;
        to[e] = low | high << 16;
    }
}

// 8 elements of a row of x, rounded to bf16, as pairs.
__device__ __forceinline__ void round8(const float* from, int first, int k, bool aligned, u32 (&to)[4]) {
    float a[4], b[4];
    load4<float>(from, first, k, aligned, a);
    load4<float>(from, first + 4, k, aligned, b);
    to[0] = bf16_pair(a[0], a[1]), to[1] = bf16_pair(a[2], a[3]);
    to[2] = bf16_pair(b[0], b[1]), to[3] = bf16_pair(b[2], b[3]);
}

// 128 threads: 16 columns (rows of the weight) from `column`, 8 * N rows of x from `row`. Shared memory: 4 * 16 * 8 * N floats.
template <int N>
__device__ __forceinline__ void products(const float* x, i64 x_stride, int row, int m, int k, const bf16* weight, int n,
                                         int column, const float* bias, int kind, int end, const float* other,
                                         i64 other_stride, float* out, i64 out_stride) {
    SHARED(shared);
    float* parts = (float*)shared;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    bool x_aligned = by_fours(x, x_stride), w_aligned = ((u64)weight | (u64)k * 2) % 16 == 0;
    const bf16* upper = weight + (i64)min(column + g, n - 1) * k;
    const bf16* lower = weight + (i64)min(column + g + 8, n - 1) * k;
    float sums[N][4];
#pragma unroll
    for (int i = 0; i < N; i++) sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0.0f;
    for (int chunk = 32 * warp; chunk < k; chunk += 128) {
        u32 a[4], b[4];
        load8(upper, chunk + 8 * t, k, w_aligned, a);
        load8(lower, chunk + 8 * t, k, w_aligned, b);
#pragma unroll
        for (int i = 0; i < N; i++) {
            u32 v[4];
            round8(x + (i64)min(row + 8 * i + g, m - 1) * x_stride, chunk + 8 * t, k, x_aligned, v);
            u32 first[4] = {a[0], b[0], a[1], b[1]}, second[4] = {a[2], b[2], a[3], b[3]};
            mma_bf16(sums[i], first, v[0], v[1]);
            mma_bf16(sums[i], second, v[2], v[3]);
        }
    }
    // parts[warp][row][column]
#pragma unroll
    for (int i = 0; i < N; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int r = 8 * i + 2 * t + e % 2, c = g + e / 2 * 8;
            parts[(warp * 8 * N + r) * 16 + c] = sums[i][e];
        }
    __syncthreads();
    for (int i = threadIdx.x; i < 8 * N * 16; i += 128) {
        int r = i / 16, c = i % 16;
        if (row + r >= m || column + c >= n) continue;
        float sum = (parts[i] + parts[i + 128 * N]) + (parts[i + 256 * N] + parts[i + 384 * N]);
        finish(sum, bias ? bias[column + c] : 0.0f, kind, end, other + (row + r) * other_stride + column + c,
               out + (row + r) * out_stride + column + c);
    }
}

#define PRODUCTS(name, N)                                                                                              \
    extern "C" __global__ void __launch_bounds__(128)                                                                  \
        name(const float* x, i64 x_stride, int m, int k, const bf16* weight, int n, END) {                             \
        products<N>(x, x_stride, blockIdx.x * 8 * N, m, k, weight, n, blockIdx.y * 16, bias, kind, end, other,         \
                    other_stride, out, out_stride);                                                                    \
    }                                                                                                                  \
    EXPORT(name);
PRODUCTS(mma1_bf16, 1)
PRODUCTS(mma4_bf16, 4)

// Linear layers by expert. Block x is a choice: a row of `out` [tokens * choices, n]. `ids` names its expert; its row of x
// is the choice's, or the token's. `weights` are addresses, one for each expert; the bias is [experts, bias_stride].
#define GROUPED                                                                                                        \
    const float *x, i64 x_stride, int per_token, const i64 *ids, int experts, int k, const u64 *weights, int n,        \
        const float *bias, i64 bias_stride, float *out, i64 out_stride, i64 *error

template <class W> __device__ __forceinline__ void grouped(GROUPED) {
    i64 choice = blockIdx.x, expert = ids[choice];
    if (expert < 0 || expert >= experts) {
        if (threadIdx.x == 0) report(error, 4, expert);
        return;
    }
    const W* weight = (const W*)weights[expert];
    int column = blockIdx.y * 32 + threadIdx.x / 8;
    float sums[1];
    column_sums<W, 1>(x + choice / per_token * x_stride, x_stride, 1, weight + (i64)min(column, n - 1) * k, k, sums);
    if (column >= n || threadIdx.x % 8 != 0) return;
    finish(sums[0], bias ? bias[expert * bias_stride + column] : 0.0f, 0, 0, out, out + choice * out_stride + column);
}

#define GROUPED_LINEAR(name, W)                                                                                        \
    extern "C" __global__ void __launch_bounds__(256) name(GROUPED) {                                                  \
        grouped<W>(x, x_stride, per_token, ids, experts, k, weights, n, bias, bias_stride, out, out_stride, error);    \
    }                                                                                                                  \
    EXPORT(name);
GROUPED_LINEAR(grouped_f32, float)
GROUPED_LINEAR(grouped_bf16, bf16)
GROUPED_LINEAR(grouped_f16, f16)

extern "C" __global__ void __launch_bounds__(128) grouped_mma_bf16(GROUPED) {
    i64 choice = blockIdx.x, expert = ids[choice];
    if (expert < 0 || expert >= experts) {
        if (threadIdx.x == 0) report(error, 4, expert);
        return;
    }
    products<1>(x + choice / per_token * x_stride, x_stride, 0, 1, k, (const bf16*)weights[expert], n, blockIdx.y * 16,
                bias ? bias + expert * bias_stride : bias, 0, 0, out, 0, out + choice * out_stride, out_stride);
}
EXPORT(grouped_mma_bf16);
