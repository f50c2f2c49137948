// What keeps a state of fixed size for each sequence. `spans` are four integers for each sequence of the step: first row,
// rows, slot, and whether its state begins at zero. A thread walks through the rows of one sequence in order, so the result
// does not depend on how they are cut into steps.
#include "device.cuh"
#include "math.cuh"

struct __align__(16) Span {
    int first_row, rows, slot, fresh;
};

const int MAX_WIDTH = 16;

// A convolution along the sequence, each channel by itself. Block y is the sequence, a thread a channel. The state is
// [slots, width - 1, channels], the weight [channels, width].
extern "C" __global__ void causal_conv(const float* x, i64 x_stride, const Span* spans, const float* weight,
                                       const float* bias, int width, int channels, int activated, int kind, float* state,
                                       float* out, i64 out_stride) {
    int channel = blockIdx.x * blockDim.x + threadIdx.x;
    if (channel >= channels) return;
    Span span = spans[blockIdx.y];
    if (span.rows == 0) return;
    float* slot = state + (i64)span.slot * (width - 1) * channels + channel;
    // The rows that an output sees, oldest first.
    float seen[MAX_WIDTH], weights[MAX_WIDTH];
#pragma unroll
    for (int w = 0; w < MAX_WIDTH; w++) {
        weights[w] = w < width ? weight[(i64)channel * width + w] : 0.0f;
        seen[w] = w < width - 1 && !span.fresh ? slot[(i64)w * channels] : 0.0f;
    }
    for (i64 row = span.first_row; row < (i64)span.first_row + span.rows; row++) {
        float y = bias ? bias[channel] : 0.0f, next = x[row * x_stride + channel];
#pragma unroll
        for (int w = 0; w < MAX_WIDTH; w++) {
            if (w == width - 1) seen[w] = next;
            if (w < width) y = fmaf(weights[w], seen[w], y);
        }
        out[row * out_stride + channel] = activated ? activation(kind, y) : y;
#pragma unroll
        for (int w = 0; w + 1 < MAX_WIDTH; w++) seen[w] = seen[w + 1];
    }
#pragma unroll
    for (int w = 0; w < MAX_WIDTH; w++)
        if (w < width - 1) slot[(i64)w * channels] = seen[w];
}
EXPORT(causal_conv);

// Attention by a running matrix S for each head: S = e^decay S + k u^T, y = q^T S; u is v, or beta (v - k^T e^decay S) with
// the delta rule. Block y is the sequence, a thread one column of one head's S. The state is
// [slots, heads, key_dim, value_dim].
extern "C" __global__ void linear_attention(const float* q, i64 q_stride, const float* k, i64 k_stride, const float* v,
                                            i64 v_stride, const float* decay, i64 decay_stride, const float* beta,
                                            i64 beta_stride, const Span* spans, int key_heads, int heads, int key_dim,
                                            int value_dim, int per_channel, float* state, float* out, i64 out_stride) {
    int place = blockIdx.x * blockDim.x + threadIdx.x;
    if (place >= heads * value_dim) return;
    int head = place / value_dim, column = place % value_dim, key_head = head / (heads / key_heads);
    Span span = spans[blockIdx.y];
    if (span.rows == 0) return;
    float* s = state + ((i64)span.slot * heads + head) * key_dim * value_dim + column;
    if (span.fresh)
        for (int i = 0; i < key_dim; i++) s[(i64)i * value_dim] = 0.0f;
    for (i64 row = span.first_row; row < (i64)span.first_row + span.rows; row++) {
        const float* key = k + row * k_stride + (i64)key_head * key_dim;
        const float* query = q + row * q_stride + (i64)key_head * key_dim;
        const float* decays = decay + row * decay_stride + (per_channel ? (i64)head * key_dim : head);
        float one = per_channel ? 0.0f : exp_(decays[0]);
        float u = v[row * v_stride + place];
        if (beta) {
            float known = 0.0f;
            for (int i = 0; i < key_dim; i++) {
                float old = s[(i64)i * value_dim] * (per_channel ? exp_(decays[i]) : one);
                s[(i64)i * value_dim] = old;
                known = fmaf(key[i], old, known);
            }
            u = beta[row * beta_stride + head] * (u - known);
        }
        float y = 0.0f;
        for (int i = 0; i < key_dim; i++) {
            float old = s[(i64)i * value_dim];
            if (!beta) old *= per_channel ? exp_(decays[i]) : one;
            float now = fmaf(key[i], u, old);
            s[(i64)i * value_dim] = now;
            y = fmaf(query[i], now, y);
        }
        out[row * out_stride + place] = y;
    }
}
EXPORT(linear_attention);
