// Elementwise primitives with broadcasting: a thread for each element, block x is the row, block y counts columns. Each operand is a
// pointer, the stride of its rows (0 for what is the same in every row), and which of its columns each column reads (null:
// the same column). The numbers of ops are those of `kernels::cuda::ElementOp`.
#include "device.cuh"
#include "math.cuh"

#define OPERAND(E, x) const E* x, i64 x##_stride, const int* x##_columns
#define AT(x) x[row * x##_stride + (x##_columns ? x##_columns[column] : column)]
#define ELEMENT()                                                                                                      \
    i64 row = blockIdx.x;                                                                                              \
    int column = blockIdx.y * blockDim.x + threadIdx.x;                                                                \
    if (column >= cols) return;

__device__ __forceinline__ float float_unary(int op, float x) {
    switch (op) {
    case 0: return -x;
    case 1: return fabsf(x);
    case 2: return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x;
    case 3: return exp_(x);
    case 4: return logf(x);
    case 5: return sqrtf(x);
    case 6: return 1.0f / sqrtf(x);
    case 7: return sinf(x);
    case 8: return cosf(x);
    case 9: return tanh_(x);
    case 10: return sigmoid_(x);
    case 11: return erf_(x);
    case 12: return floorf(x);
    case 13: return ceilf(x);
    default: return rintf(x);
    }
}

__device__ __forceinline__ float float_binary(int op, float a, float b) {
    switch (op) {
    case 20: return a + b;
    case 21: return a - b;
    case 22: return a * b;
    case 23: return a / b;
    case 24: return (float)pow((double)a, (double)b);
    case 25: return a != a || a > b ? a : b;
    case 26: return a != a || a < b ? a : b;
    default: {
        float rest = fmodf(a, b);
        return rest != 0.0f && (rest < 0.0f) != (b < 0.0f) ? rest + b : rest;
    }
    }
}

__device__ __forceinline__ i64 wrapping(u64 x) { return (i64)x; }

// Rounds down; the divisor is not 0. The lowest number over -1 is itself.
__device__ __forceinline__ i64 floor_div(i64 a, i64 b) {
    if (b == -1) return wrapping(0ull - (u64)a);
    i64 quotient = a / b, rest = a % b;
    return rest != 0 && (rest < 0) != (b < 0) ? quotient - 1 : quotient;
}

__device__ __forceinline__ i64 int_unary(int op, i64 x) {
    switch (op) {
    case 0: return wrapping(0ull - (u64)x);
    case 1: return x < 0 ? wrapping(0ull - (u64)x) : x;
    default: return x > 0 ? 1 : x < 0 ? -1 : 0;
    }
}

__device__ __forceinline__ i64 int_binary(int op, i64 a, i64 b, i64* error) {
    if ((op == 23 || op == 27) && b == 0) {
        report(error, 2, a);
        return 0;
    }
    switch (op) {
    case 20: return wrapping((u64)a + (u64)b);
    case 21: return wrapping((u64)a - (u64)b);
    case 22: return wrapping((u64)a * (u64)b);
    case 23: return floor_div(a, b);
    case 25: return a > b ? a : b;
    case 26: return a < b ? a : b;
    default: return wrapping((u64)a - (u64)floor_div(a, b) * (u64)b);
    }
}

template <class E> __device__ __forceinline__ u8 compare(int op, E a, E b) {
    switch (op) {
    case 40: return a == b;
    case 41: return a != b;
    case 42: return a < b;
    case 43: return a <= b;
    case 44: return a > b;
    default: return a >= b;
    }
}

extern "C" __global__ void map_f32(int op, OPERAND(float, a), float* out, i64 out_stride, int cols) {
    ELEMENT()
    out[row * out_stride + column] = float_unary(op, AT(a));
}
EXPORT(map_f32);

extern "C" __global__ void map_i64(int op, OPERAND(i64, a), i64* out, i64 out_stride, int cols) {
    ELEMENT()
    out[row * out_stride + column] = int_unary(op, AT(a));
}
EXPORT(map_i64);

extern "C" __global__ void zip_f32(int op, OPERAND(float, a), OPERAND(float, b), float* out, i64 out_stride, int cols) {
    ELEMENT()
    out[row * out_stride + column] = float_binary(op, AT(a), AT(b));
}
EXPORT(zip_f32);

extern "C" __global__ void zip_i64(int op, OPERAND(i64, a), OPERAND(i64, b), i64* out, i64 out_stride, int cols,
                                   i64* error) {
    ELEMENT()
    out[row * out_stride + column] = int_binary(op, AT(a), AT(b), error);
}
EXPORT(zip_i64);

extern "C" __global__ void compare_f32(int op, OPERAND(float, a), OPERAND(float, b), u8* out, i64 out_stride, int cols) {
    ELEMENT()
    out[row * out_stride + column] = compare<float>(op, AT(a), AT(b));
}
EXPORT(compare_f32);

extern "C" __global__ void compare_i64(int op, OPERAND(i64, a), OPERAND(i64, b), u8* out, i64 out_stride, int cols) {
    ELEMENT()
    out[row * out_stride + column] = compare<i64>(op, AT(a), AT(b));
}
EXPORT(compare_i64);

extern "C" __global__ void compare_bool(int op, OPERAND(u8, a), OPERAND(u8, b), u8* out, i64 out_stride, int cols) {
    ELEMENT()
    out[row * out_stride + column] = compare<u8>(op, AT(a), AT(b));
}
EXPORT(compare_bool);

// 60: not a; 61: a and b; 62: a or b. For `not`, b is a.
extern "C" __global__ void logic(int op, OPERAND(u8, a), OPERAND(u8, b), u8* out, i64 out_stride, int cols) {
    ELEMENT()
    u8 x = AT(a), y = AT(b);
    out[row * out_stride + column] = op == 60 ? !x : op == 61 ? x && y : x || y;
}
EXPORT(logic);

extern "C" __global__ void select_f32(OPERAND(u8, which), OPERAND(float, a), OPERAND(float, b), float* out,
                                      i64 out_stride, int cols) {
    ELEMENT()
    out[row * out_stride + column] = AT(which) ? AT(a) : AT(b);
}
EXPORT(select_f32);

extern "C" __global__ void select_i64(OPERAND(u8, which), OPERAND(i64, a), OPERAND(i64, b), i64* out, i64 out_stride,
                                      int cols) {
    ELEMENT()
    out[row * out_stride + column] = AT(which) ? AT(a) : AT(b);
}
EXPORT(select_i64);

extern "C" __global__ void select_bool(OPERAND(u8, which), OPERAND(u8, a), OPERAND(u8, b), u8* out, i64 out_stride,
                                       int cols) {
    ELEMENT()
    out[row * out_stride + column] = AT(which) ? AT(a) : AT(b);
}
EXPORT(select_bool);

extern "C" __global__ void cast_i64_f32(OPERAND(i64, a), float* out, i64 out_stride, int cols) {
    ELEMENT()
    out[row * out_stride + column] = (float)AT(a);
}
EXPORT(cast_i64_f32);

// Towards zero; what does not fit becomes the nearest that does, NaN becomes 0.
extern "C" __global__ void cast_f32_i64(OPERAND(float, a), i64* out, i64 out_stride, int cols) {
    ELEMENT()
    float x = AT(a);
    const i64 largest = 0x7fffffffffffffffll;
    i64 y = x != x ? 0 : x >= 9223372036854775808.0f ? largest : x <= -9223372036854775808.0f ? -largest - 1 : (i64)x;
    out[row * out_stride + column] = y;
}
EXPORT(cast_f32_i64);

extern "C" __global__ void cast_bool_f32(OPERAND(u8, a), float* out, i64 out_stride, int cols) {
    ELEMENT()
    out[row * out_stride + column] = AT(a) ? 1.0f : 0.0f;
}
EXPORT(cast_bool_f32);

extern "C" __global__ void cast_bool_i64(OPERAND(u8, a), i64* out, i64 out_stride, int cols) {
    ELEMENT()
    out[row * out_stride + column] = AT(a) ? 1 : 0;
}
EXPORT(cast_bool_i64);

extern "C" __global__ void cast_f32_bool(OPERAND(float, a), u8* out, i64 out_stride, int cols) {
    ELEMENT()
    out[row * out_stride + column] = AT(a) != 0.0f;
}
EXPORT(cast_f32_bool);

extern "C" __global__ void cast_i64_bool(OPERAND(i64, a), u8* out, i64 out_stride, int cols) {
    ELEMENT()
    out[row * out_stride + column] = AT(a) != 0;
}
EXPORT(cast_i64_bool);
