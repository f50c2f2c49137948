// Kernels that compute rows from rows: embedding, norms, softmax, rotary embedding, activations, sums, copies, argmax.
// Strides are in elements, from one row to the next; block x is the row unless said otherwise.
#include "device.cuh"
#include "math.cuh"

// out[row] = table[ids[row]].
template <class W>
__device__ __forceinline__ void embed(const W* table, i64 vocabulary, const i64* ids, float* out, i64 out_stride, int dim,
                                      i64* error) {
    i64 row = blockIdx.x, id = ids[row];
    bool known = id >= 0 && id < vocabulary;
    if (!known && threadIdx.x == 0) report(error, 1, id);
    for (int i = threadIdx.x; i < dim; i += blockDim.x) {
        out[row * out_stride + i] = known ? widen(table[id * dim + i]) : 0.0f;
    }
}

#define EMBED(name, W)                                                                                                 \
    extern "C" __global__ void name(const W* table, i64 vocabulary, const i64* ids, float* out, i64 out_stride,        \
                                    int dim, i64* error) {                                                             \
        embed<W>(table, vocabulary, ids, out, out_stride, dim, error);                                                 \
    }                                                                                                                  \
    EXPORT(name);
EMBED(embed_f32, float)
EMBED(embed_bf16, bf16)
EMBED(embed_f16, f16)

// x / sqrt(mean(x^2) + eps) * (weight + offset) over each `width` columns; block y is the part of the row.
extern "C" __global__ void rms_norm(const float* x, i64 x_stride, const float* weight, float offset, float eps, int width,
                                    float* out, i64 out_stride) {
    SHARED(shared);
    float* room = (float*)shared;
    const float* from = x + (i64)blockIdx.x * x_stride + (i64)blockIdx.y * width;
    float* to = out + (i64)blockIdx.x * out_stride + (i64)blockIdx.y * width;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) squares = fmaf(from[i], from[i], squares);
    float factor = 1.0f / sqrtf(block_sum(squares, room) / (float)width + eps);
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        to[i] = from[i] * factor * (weight ? weight[i] + offset : 1.0f);
    }
}
EXPORT(rms_norm);

// (x - mean) / sqrt(variance + eps) * weight + bias over each `width` columns; block y is the part of the row.
extern "C" __global__ void layer_norm(const float* x, i64 x_stride, const float* weight, const float* bias, float eps,
                                      int width, float* out, i64 out_stride) {
    SHARED(shared);
    float* room = (float*)shared;
    const float* from = x + (i64)blockIdx.x * x_stride + (i64)blockIdx.y * width;
    float* to = out + (i64)blockIdx.x * out_stride + (i64)blockIdx.y * width;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum += from[i];
    float mean = block_sum(sum, room) / (float)width;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) squares = fmaf(from[i] - mean, from[i] - mean, squares);
    float factor = 1.0f / sqrtf(block_sum(squares, room) / (float)width + eps);
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        to[i] = fmaf((from[i] - mean) * factor, weight ? weight[i] : 1.0f, bias ? bias[i] : 0.0f);
    }
}
EXPORT(layer_norm);

// Softmax over each `width` columns; block y is the part of the row.
extern "C" __global__ void softmax(const float* x, i64 x_stride, int width, float* out, i64 out_stride) {
    SHARED(shared);
    float* room = (float*)shared;
    const float* from = x + (i64)blockIdx.x * x_stride + (i64)blockIdx.y * width;
    float* to = out + (i64)blockIdx.x * out_stride + (i64)blockIdx.y * width;
    float largest = -INFINITE;
    for (int i = threadIdx.x; i < width; i += blockDim.x) largest = fmaxf(largest, from[i]);
    largest = block_max(largest, room);
    float sum = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float e = exp_(from[i] - largest);
        sum += e;
        to[i] = e;
    }
    float factor = 1.0f / block_sum(sum, room);
    // Each thread reads what it wrote itself.
    for (int i = threadIdx.x; i < width; i += blockDim.x) to[i] *= factor;
}
EXPORT(softmax);

// Rotates the first 2 * half elements of every head of `dim`: pairs (i, i + half), or (2i, 2i + 1) if interleaved. `cos`
// and `sin` are [rows, half]. The rest is copied, unless `out` is `x`.
extern "C" __global__ void rope(const float* x, i64 x_stride, const float* cos, const float* sin, int heads, int dim,
                                int half, int interleaved, float* out, i64 out_stride) {
    const float* from = x + (i64)blockIdx.x * x_stride;
    float* to = out + (i64)blockIdx.x * out_stride;
    for (int i = threadIdx.x; i < heads * half; i += blockDim.x) {
        int head = i / half, pair = i % half;
        int first = head * dim + (interleaved ? 2 * pair : pair), second = first + (interleaved ? 1 : half);
        float c = cos[(i64)blockIdx.x * half + pair], s = sin[(i64)blockIdx.x * half + pair];
        float a = from[first], b = from[second];
        to[first] = a * c - b * s;
        to[second] = b * c + a * s;
    }
    if (x == out) return;
    int rest = dim - 2 * half;
    for (int i = threadIdx.x; i < heads * rest; i += blockDim.x) {
        int at = i / rest * dim + 2 * half + i % rest;
        to[at] = from[at];
    }
}
EXPORT(rope);

// The kernels below have one thread for each element; block x is the row, block y counts columns.
#define ELEMENT()                                                                                                      \
    i64 row = blockIdx.x;                                                                                              \
    int column = blockIdx.y * blockDim.x + threadIdx.x;                                                                \
    if (column >= cols) return;

extern "C" __global__ void activate(int kind, const float* x, i64 x_stride, float* out, i64 out_stride, int cols) {
    ELEMENT()
    out[row * out_stride + column] = activation(kind, x[row * x_stride + column]);
}
EXPORT(activate);

// activation(gate) * up
extern "C" __global__ void gated(int kind, const float* gate, i64 gate_stride, const float* up, i64 up_stride, float* out,
                                 i64 out_stride, int cols) {
    ELEMENT()
    out[row * out_stride + column] = activation(kind, gate[row * gate_stride + column]) * up[row * up_stride + column];
}
EXPORT(gated);

extern "C" __global__ void add(const float* a, i64 a_stride, const float* b, i64 b_stride, float* out, i64 out_stride,
                               int cols) {
    ELEMENT()
    out[row * out_stride + column] = a[row * a_stride + column] + b[row * b_stride + column];
}
EXPORT(add);

// out[row] = x[rows ? rows[row] : row], for elements of 1, 4 and 8 bytes.
#define COPY(name, E)                                                                                                  \
    extern "C" __global__ void name(const E* x, i64 x_stride, const int* rows, E* out, i64 out_stride, int cols) {     \
        ELEMENT()                                                                                                      \
        i64 from = rows ? rows[row] : row;                                                                             \
        out[row * out_stride + column] = x[from * x_stride + column];                                                  \
    }                                                                                                                  \
    EXPORT(name);
COPY(copy_1, u8)
COPY(copy_4, u32)
COPY(copy_8, u64)

// The column of the largest element of each row, the first of equals. One block of 256 threads a row.
extern "C" __global__ void argmax(const float* x, i64 x_stride, int cols, i64* out) {
    SHARED(shared);
    float* values = (float*)shared;
    int* places = (int*)(values + blockDim.x);
    const float* from = x + (i64)blockIdx.x * x_stride;
    float best = -INFINITE;
    int place = cols;
    for (int i = threadIdx.x; i < cols; i += blockDim.x) {
        if (place == cols || from[i] > best) best = from[i], place = i;
    }
    values[threadIdx.x] = best;
    places[threadIdx.x] = place;
    __syncthreads();
    for (int step = blockDim.x / 2; step > 0; step /= 2) {
        if ((int)threadIdx.x < step) {
            int other = threadIdx.x + step;
            bool better = values[other] > values[threadIdx.x] ||
                          (values[other] == values[threadIdx.x] && places[other] < places[threadIdx.x]);
            if (places[other] < cols && (places[threadIdx.x] == cols || better)) {
                values[threadIdx.x] = values[other];
                places[threadIdx.x] = places[other];
            }
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) out[blockIdx.x] = places[0];
}
EXPORT(argmax);
