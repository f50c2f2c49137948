// Primitives along an axis, products of matrices, and the moving of elements within rows. Block x is the row; a row is `outer` x `n` x `inner`
// elements, and a thread takes one of its outer * inner lanes from end to end, as the reference executor does: sums of
// floats in f64, ties to the first. Made to be right; models spend their time elsewhere.
#include "device.cuh"
#include "math.cuh"

#define LANE()                                                                                                         \
    int lane = blockIdx.y * blockDim.x + threadIdx.x;                                                                  \
    if (lane >= outer * inner) return;                                                                                 \
    int o = lane / inner, i = lane % inner;                                                                            \
    i64 row = blockIdx.x;

__device__ __forceinline__ float larger(float a, float b) { return a != a || a > b ? a : b; }
__device__ __forceinline__ float smaller(float a, float b) { return a != a || a < b ? a : b; }

// 0 sum, 1 max, 2 min: one number a lane. 3 running sum: as many as there are.
extern "C" __global__ void fold_f32(int op, const float* x, i64 x_stride, int outer, int n, int inner, float* out,
                                    i64 out_stride) {
    LANE()
    const float* from = x + row * x_stride + (i64)o * n * inner + i;
    if (op == 3) {
        float* to = out + row * out_stride + (i64)o * n * inner + i;
        double sum = 0.0;
        for (int j = 0; j < n; j++) {
            sum += (double)from[(i64)j * inner];
            to[(i64)j * inner] = (float)sum;
        }
        return;
    }
    // Only a sum may be of nothing.
    double sum = 0.0;
    float best = n > 0 ? from[0] : 0.0f;
    for (int j = 0; j < n; j++) {
        float v = from[(i64)j * inner];
        sum += (double)v;
        if (j > 0) best = op == 1 ? larger(v, best) : smaller(v, best);
    }
    out[row * out_stride + lane] = op == 0 ? (float)sum : best;
}
EXPORT(fold_f32);

// As `fold_f32`; 4: the place of the largest.
extern "C" __global__ void fold_i64(int op, const i64* x, i64 x_stride, int outer, int n, int inner, i64* out,
                                    i64 out_stride) {
    LANE()
    const i64* from = x + row * x_stride + (i64)o * n * inner + i;
    u64 sum = 0;
    i64 best = n > 0 ? from[0] : 0;
    int place = 0;
    for (int j = 0; j < n; j++) {
        i64 v = from[(i64)j * inner];
        sum += (u64)v;
        if (op == 3) out[row * out_stride + ((i64)o * n + j) * inner + i] = (i64)sum;
        if (op == 2 ? v < best : v > best) best = v, place = j;
    }
    if (op != 3) out[row * out_stride + lane] = op == 0 ? (i64)sum : op == 4 ? place : best;
}
EXPORT(fold_i64);

// Whether a comes before b in descending order; NaN first, then by size.
__device__ __forceinline__ int order(float a, float b) {
    if (a != a || b != b) return (b != b) - (a != a);
    return a > b ? -1 : a < b ? 1 : 0;
}

// The places of the k largest of each lane, in descending order, ties by place. k = 1 is argmax.
extern "C" __global__ void top_k(const float* x, i64 x_stride, int outer, int n, int inner, int k, i64* out,
                                 i64 out_stride) {
    LANE()
    const float* from = x + row * x_stride + (i64)o * n * inner + i;
    int last = -1;
    for (int c = 0; c < k; c++) {
        int best = -1;
        for (int j = 0; j < n; j++) {
            float v = from[(i64)j * inner];
            if (last >= 0) {
                int side = order(from[(i64)last * inner], v);
                if (side > 0 || (side == 0 && j <= last)) continue;
            }
            if (best < 0 || order(v, from[(i64)best * inner]) < 0) best = j;
        }
        last = best < 0 ? 0 : best;
        out[row * out_stride + ((i64)o * k + c) * inner + i] = last;
    }
}
EXPORT(top_k);

__device__ __forceinline__ int order(i64 a, i64 b) { return a > b ? -1 : a < b ? 1 : 0; }

// The places of the first k of each lane in order, ties by place: a thread counts how many come before its element. The
// lanes are the last axis.
#define SORT(name, E)                                                                                                  \
    extern "C" __global__ void name(int descending, const E* x, i64 x_stride, int outer, int n, int k, i64* out,       \
                                    i64 out_stride) {                                                                  \
        int place = blockIdx.y * blockDim.x + threadIdx.x;                                                             \
        if (place >= outer * n) return;                                                                                \
        int o = place / n, own = place % n, before = 0;                                                                \
        const E* from = x + (i64)blockIdx.x * x_stride + (i64)o * n;                                                   \
        for (int j = 0; j < n; j++) {                                                                                  \
            int side = descending ? order(from[j], from[own]) : order(from[own], from[j]);                             \
            before += side < 0 || (side == 0 && j < own);                                                              \
        }                                                                                                              \
        if (before < k) out[(i64)blockIdx.x * out_stride + (i64)o * k + before] = own;                                 \
    }                                                                                                                  \
    EXPORT(name);
SORT(sort_f32, float)
SORT(sort_i64, i64)

// out[j, ..] = table[index[j], ..], `inner` elements each.
#define TAKE(name, E)                                                                                                  \
    extern "C" __global__ void name(const E* table, int n, const i64* index, i64 index_stride, int inner, E* out,      \
                                    i64 out_stride, int cols, i64* error) {                                            \
        i64 row = blockIdx.x;                                                                                          \
        int column = blockIdx.y * blockDim.x + threadIdx.x;                                                            \
        if (column >= cols) return;                                                                                    \
        i64 from = index[row * index_stride + column / inner];                                                         \
        bool inside = from >= 0 && from < n;                                                                           \
        if (!inside) report(error, 3, from);                                                                           \
        out[row * out_stride + column] = inside ? table[from * inner + column % inner] : (E)0;                         \
    }                                                                                                                  \
    EXPORT(name);
TAKE(take_1, u8)
TAKE(take_4, u32)
TAKE(take_8, u64)

// Matrix products within rows, sums in f64 and in order. `a_at` and `b_at` say where the matrices of each of a row's
// products begin.
extern "C" __global__ void matmul(const float* a, i64 a_stride, const int* a_at, const float* b, i64 b_stride,
                                  const int* b_at, int m, int k, int n, float* out, i64 out_stride, int cols) {
    i64 row = blockIdx.x;
    int column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= cols) return;
    int which = column / (m * n), i = column / n % m, j = column % n;
    const float* left = a + row * a_stride + a_at[which] + (i64)i * k;
    const float* right = b + row * b_stride + b_at[which] + j;
    double sum = 0.0;
    for (int c = 0; c < k; c++) sum += (double)left[c] * (double)right[(i64)c * n];
    out[row * out_stride + column] = (float)sum;
}
EXPORT(matmul);

// out[.., j, ..] = x[.., index[.., j, ..], ..], `out_n` of each lane.
#define GATHER(name, E)                                                                                                \
    extern "C" __global__ void name(const E* x, i64 x_stride, const i64* index, i64 index_stride, int outer, int n,    \
                                    int inner, int out_n, E* out, i64 out_stride, i64* error) {                        \
        LANE()                                                                                                         \
        for (int j = 0; j < out_n; j++) {                                                                              \
            i64 to = ((i64)o * out_n + j) * inner + i, from = index[row * index_stride + to];                          \
            bool inside = from >= 0 && from < n;                                                                       \
            if (!inside) report(error, 3, from);                                                                       \
            out[row * out_stride + to] = inside ? x[row * x_stride + ((i64)o * n + from) * inner + i] : (E)0;          \
        }                                                                                                              \
    }                                                                                                                  \
    EXPORT(name);
GATHER(gather_1, u8)
GATHER(gather_4, u32)
GATHER(gather_8, u64)

// out = x, then out[.., index[.., j, ..], ..] = values[.., j, ..] in order; with `sum` it is added.
#define SCATTER(name, E, write)                                                                                        \
    extern "C" __global__ void name(const E* x, i64 x_stride, const i64* index, i64 index_stride, const E* values,     \
                                    i64 values_stride, int outer, int n, int inner, int out_n, E* out, i64 out_stride, \
                                    i64* error) {                                                                      \
        LANE()                                                                                                         \
        E* to = out + row * out_stride + (i64)o * n * inner + i;                                                       \
        for (int j = 0; j < n; j++) to[(i64)j * inner] = x[row * x_stride + ((i64)o * n + j) * inner + i];             \
        for (int j = 0; j < out_n; j++) {                                                                              \
            i64 from = ((i64)o * out_n + j) * inner + i, at = index[row * index_stride + from];                        \
            E value = values[row * values_stride + from];                                                              \
            if (at >= 0 && at < n) to[at * inner] write value;                                                         \
            else report(error, 3, at);                                                                                 \
        }                                                                                                              \
    }                                                                                                                  \
    EXPORT(name);
SCATTER(scatter_1, u8, =)
SCATTER(scatter_4, u32, =)
SCATTER(scatter_8, u64, =)
SCATTER(scatter_add_f32, float, +=)
SCATTER(scatter_add_i64, u64, +=)

// out[column] = operand[which[column]][at[column]]. `operands` are pairs of an address and a row stride.
#define MOVE(name, E)                                                                                                  \
    extern "C" __global__ void name(const u64* operands, const int* which, const int* at, E* out, i64 out_stride,      \
                                    int cols) {                                                                        \
        i64 row = blockIdx.x;                                                                                          \
        int column = blockIdx.y * blockDim.x + threadIdx.x;                                                            \
        if (column >= cols) return;                                                                                    \
        int k = which[column];                                                                                         \
        const E* from = (const E*)operands[2 * k];                                                                     \
        out[row * out_stride + column] = from[row * (i64)operands[2 * k + 1] + at[column]];                            \
    }                                                                                                                  \
    EXPORT(name);
MOVE(move_1, u8)
MOVE(move_4, u32)
MOVE(move_8, u64)
