// Causal attention over a paged KV cache, and writing to that cache.
//
// K and V of a layer are [blocks][kv_heads][16][dim], f32 or bf16. A row of the step has a position, and the place in
// `tables` where the block table of its sequence begins.
//
// A block of 256 threads takes a tile of rows of one sequence and the heads of one kv head: at most 16 queries, two for
// each warp. Keys come in tiles of `tile` positions, which the threads copy to shared memory asynchronously, one tile
// ahead; a lane scores a key, then lanes own columns of the value.
//
// Batch invariance: tiles begin at absolute multiples of `tile`. The softmax runs over parts of 256 positions, also at
// absolute multiples, and parts are joined in order, by this kernel or by `attention_join`, with the same arithmetic. A
// masked key contributes exactly nothing. So an output depends on its query, its position, and the keys and values it sees.
#include "device.cuh"
#include "math.cuh"

const int BLOCK = 16, PART = 256, WARPS = 8;

template <class E>
__device__ __forceinline__ void write_kv(const float* k, i64 k_stride, const float* v, i64 v_stride, const int* positions,
                                         const int* row_tables, const int* tables, E* k_cache, E* v_cache, int kv_heads,
                                         int dim, int value_dim) {
    i64 row = blockIdx.x;
    int position = positions[row];
    i64 block = tables[row_tables[row] + position / BLOCK];
    int slot = position % BLOCK;
    for (int i = threadIdx.x; i < kv_heads * dim; i += blockDim.x) {
        k_cache[((block * kv_heads + i / dim) * BLOCK + slot) * dim + i % dim] = narrow<E>(k[row * k_stride + i]);
    }
    for (int i = threadIdx.x; i < kv_heads * value_dim; i += blockDim.x) {
        v_cache[((block * kv_heads + i / value_dim) * BLOCK + slot) * value_dim + i % value_dim] =
            narrow<E>(v[row * v_stride + i]);
    }
}

#define WRITE_KV(name, E)                                                                                              \
    extern "C" __global__ void name(const float* k, i64 k_stride, const float* v, i64 v_stride, const int* positions,  \
                                    const int* row_tables, const int* tables, E* k_cache, E* v_cache, int kv_heads,    \
                                    int dim, int value_dim) {                                                          \
        write_kv<E>(k, k_stride, v, v_stride, positions, row_tables, tables, k_cache, v_cache, kv_heads, dim,          \
                    value_dim);                                                                                        \
    }                                                                                                                  \
    EXPORT(name);
WRITE_KV(write_kv_f32, float)
WRITE_KV(write_kv_bf16, bf16)

// The softmax of one query so far: the largest score, and the sum of e^(score - max); the weighted sum of values is with
// the lanes.
struct Soft {
    float max, sum;
};

// How what was gathered for `a` and for `b` is weighed when they are joined.
struct Weights {
    float a, b;
};

__device__ __forceinline__ Weights join(Soft& a, Soft b) {
    float max = fmaxf(a.max, b.max);
    Weights w;
    w.a = a.max == -INFINITE ? 0.0f : exp_(a.max - max);
    w.b = exp_(b.max - max);
    a.sum = fmaf(a.sum, w.a, b.sum * w.b);
    a.max = max;
    return w;
}

__device__ __forceinline__ int first_seen(int position, int window, int chunk) {
    int first = window > 0 && position + 1 > window ? position + 1 - window : 0;
    return chunk > 0 ? max(first, position - position % chunk) : first;
}

#define ATTENTION                                                                                                      \
    const float *q, i64 q_stride, const int *positions, const int *row_tables, const int *tables, const int2 *tiles,   \
        int heads, int kv_heads, int dim, int value_dim, float scale, int window, int chunk, float softcap,            \
        const float *sinks, const float *slopes, int tile, int splits, float *parts, float *out, i64 out_stride

// Elements of 16 bytes.
template <class E> constexpr int LINE = 16 / (int)sizeof(E);

// From one key or value to the next in shared memory: whole lines, and one more, so that lanes use different banks.
template <class E> __device__ __forceinline__ int pitch(int dim) { return (dim + LINE<E> - 1) / LINE<E> * LINE<E> + LINE<E>; }

// Copies the keys and values of positions low..high, all in the tile that begins at `base`, as one group.
template <class E>
__device__ __forceinline__ void fetch(const E* k_cache, const E* v_cache, const int* table, int kv_head, int kv_heads,
                                      int dim, int value_dim, int base, int low, int high, E* k_tile, E* v_tile) {
    int dims[2] = {dim, value_dim};
    for (int which = 0; which < 2; which++) {
        int size = dims[which], wide = pitch<E>(size);
        const E* cache = which ? v_cache : k_cache;
        E* to = which ? v_tile : k_tile;
        // Rows of the cache begin at multiples of 16 bytes if their length is one.
        bool whole = size % LINE<E> == 0 && ((u64)cache) % 16 == 0;
        int each = whole ? LINE<E> : 1, pieces = size / each;
        for (int i = threadIdx.x; i < (high - low) * pieces; i += blockDim.x) {
            int position = low + i / pieces, at = i % pieces * each;
            i64 block = table[position / BLOCK];
            const E* from = cache + ((block * kv_heads + kv_head) * BLOCK + position % BLOCK) * size + at;
            E* place = to + (position - base) * wide + at;
            if (whole) copy_async(place, from);
            else *place = *from;
        }
    }
    copy_commit();
}

// The dot product of a query with the lane's key; both are followed by zeros to a whole line.
__device__ __forceinline__ float dot(const float* q, const float* key, int dim) {
    float sum = 0.0f;
    for (int d = 0; d < dim; d += 4) {
        float4 a = *(const float4*)(q + d), b = *(const float4*)(key + d);
        sum = fmaf(a.x, b.x, sum);
        sum = fmaf(a.y, b.y, sum);
        sum = fmaf(a.z, b.z, sum);
        sum = fmaf(a.w, b.w, sum);
    }
    return sum;
}

__device__ __forceinline__ float dot(const float* q, const bf16* key, int dim) {
    float sum = 0.0f;
    for (int d = 0; d < dim; d += 8) {
        uint4 b = *(const uint4*)(key + d);
        u32 pairs[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (int e = 0; e < 4; e++) {
            sum = fmaf(q[d + 2 * e], bits_as_float(pairs[e] << 16), sum);
            sum = fmaf(q[d + 2 * e + 1], bits_as_float(pairs[e] & 0xffff0000u), sum);
        }
    }
    return sum;
}

// `A` columns of the value a lane: value_dim <= 32 * A. Block x is the tile (first row, rows), block y the kv head and,
// if more than 16 heads share it, which 16 of them; block z the part of the context, if `splits` > 0.
template <class E, int A> __device__ __forceinline__ void attend(const E* k_cache, const E* v_cache, ATTENTION) {
    SHARED(shared);
    const int QUERIES = 2;
    int group = heads / kv_heads, heads_each = min(group, 2 * WARPS), pieces = (group + heads_each - 1) / heads_each;
    int kv_head = blockIdx.y / pieces, first_head = kv_head * group + blockIdx.y % pieces * heads_each;
    int heads_here = min(heads_each, kv_head * group + group - first_head);
    int first_row = tiles[blockIdx.x].x, rows = tiles[blockIdx.x].y, queries = rows * heads_here;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int k_pitch = pitch<E>(dim), v_pitch = pitch<E>(value_dim), padded = (dim + LINE<E> - 1) / LINE<E> * LINE<E>;
    // Queries, then two tiles of keys and values.
    float* q_tile = (float*)shared;
    E* kv_tiles = (E*)(q_tile + 2 * WARPS * padded);
    int tile_size = tile * (k_pitch + v_pitch);

    for (int i = threadIdx.x; i < queries * padded; i += blockDim.x) {
        int query = i / padded, d = i % padded;
        i64 row = first_row + query / heads_here, head = first_head + query % heads_here;
        q_tile[i] = d < dim ? q[row * q_stride + head * dim + d] : 0.0f;
    }
    if (padded != dim) {
        // No copy reaches the zeros behind the keys.
        for (int i = threadIdx.x; i < 2 * tile * (padded - dim); i += blockDim.x) {
            int key = i / (padded - dim), d = dim + i % (padded - dim);
            kv_tiles[key / tile * tile_size + key % tile * k_pitch + d] = narrow<E>(0.0f);
        }
    }

    const int* table = tables + row_tables[first_row];
    int from = first_seen(positions[first_row], window, chunk), to = positions[first_row + rows - 1] + 1;
    if (splits > 0) {
        from = max(from, (int)blockIdx.z * PART);
        to = min(to, (int)blockIdx.z * PART + PART);
    }

    Soft all[QUERIES], part[QUERIES];
    float all_values[QUERIES][A], values[QUERIES][A];
    int position[QUERIES], seen[QUERIES];
    bool mine[QUERIES];
#pragma unroll
    for (int i = 0; i < QUERIES; i++) {
        int query = warp + WARPS * i;
        mine[i] = query < queries;
        position[i] = mine[i] ? positions[first_row + query / heads_here] : 0;
        seen[i] = first_seen(position[i], window, chunk);
        part[i] = all[i] = Soft{-INFINITE, 0.0f};
        if (sinks && splits == 0 && mine[i]) all[i] = Soft{sinks[first_head + query % heads_here], 1.0f};
#pragma unroll
        for (int a = 0; a < A; a++) all_values[i][a] = values[i][a] = 0.0f;
    }

    int base = from / tile * tile, turn = 0;
    if (base < to) {
        fetch<E>(k_cache, v_cache, table, kv_head, kv_heads, dim, value_dim, base, from, min(to, base + tile), kv_tiles,
                 kv_tiles + tile * k_pitch);
    }
    for (; base < to; base += tile, turn ^= 1) {
        int next = base + tile;
        if (next < to) {
            E* there = kv_tiles + (turn ^ 1) * tile_size;
            fetch<E>(k_cache, v_cache, table, kv_head, kv_heads, dim, value_dim, next, next, min(to, next + tile), there,
                     there + tile * k_pitch);
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        __syncthreads();
        const E* k_tile = kv_tiles + turn * tile_size;
        const E* v_tile = k_tile + tile * k_pitch;
#pragma unroll
        for (int i = 0; i < QUERIES; i++) {
            if (!mine[i]) continue;
            int query = warp + WARPS * i, key = base + lane;
            bool visible = lane < tile && key >= max(seen[i], from) && key < min(position[i] + 1, to);
            float score = -INFINITE;
            if (visible) {
                score = dot(q_tile + query * padded, k_tile + lane * k_pitch, padded) * scale;
                if (softcap > 0.0f) score = softcap * tanh_(score / softcap);
                if (slopes) score = fmaf(slopes[first_head + query % heads_here], (float)(key - position[i]), score);
            }
            float largest = warp_max(score);
            if (largest > -INFINITE) {
                float max = fmaxf(part[i].max, largest);
                float shrink = part[i].max == -INFINITE ? 0.0f : exp_(part[i].max - max);
                float weight = visible ? exp_(score - max) : 0.0f;
                part[i].sum = fmaf(part[i].sum, shrink, warp_sum(weight));
                part[i].max = max;
#pragma unroll
                for (int a = 0; a < A; a++) values[i][a] *= shrink;
                for (int j = 0; j < tile; j++) {
                    float w = __shfl_sync(0xffffffffu, weight, j);
                    if (w == 0.0f) continue; // nothing was copied there, perhaps
#pragma unroll
                    for (int a = 0; a < A; a++) {
                        int column = lane + 32 * a;
                        if (column < value_dim) values[i][a] = fmaf(w, widen(v_tile[j * v_pitch + column]), values[i][a]);
                    }
                }
            }
            // The end of a part, or of all.
            if ((next % PART == 0 || next >= to) && part[i].max > -INFINITE && splits == 0) {
                Weights w = join(all[i], part[i]);
#pragma unroll
                for (int a = 0; a < A; a++) {
                    all_values[i][a] = fmaf(all_values[i][a], w.a, values[i][a] * w.b);
                    values[i][a] = 0.0f;
                }
                part[i] = Soft{-INFINITE, 0.0f};
            }
        }
        __syncthreads();
    }

#pragma unroll
    for (int i = 0; i < QUERIES; i++) {
        if (!mine[i]) continue;
        int query = warp + WARPS * i;
        i64 row = first_row + query / heads_here, head = first_head + query % heads_here;
        if (splits > 0) {
            float* to_part = parts + ((row * heads + head) * splits + blockIdx.z) * (value_dim + 2);
            if (lane == 0) to_part[0] = part[i].max, to_part[1] = part[i].sum;
#pragma unroll
            for (int a = 0; a < A; a++)
                if (lane + 32 * a < value_dim) to_part[2 + lane + 32 * a] = values[i][a];
        } else {
            float factor = 1.0f / all[i].sum;
#pragma unroll
            for (int a = 0; a < A; a++)
                if (lane + 32 * a < value_dim)
                    out[row * out_stride + head * value_dim + lane + 32 * a] = all_values[i][a] * factor;
        }
    }
}

#define ATTEND(name, E, A)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256, 1) name(const E* k_cache, const E* v_cache, ATTENTION) {            \
        attend<E, A>(k_cache, v_cache, q, q_stride, positions, row_tables, tables, tiles, heads, kv_heads, dim,        \
                     value_dim, scale, window, chunk, softcap, sinks, slopes, tile, splits, parts, out, out_stride);   \
    }                                                                                                                  \
    EXPORT(name);
ATTEND(attention_f32_2, float, 2)
ATTEND(attention_f32_4, float, 4)
ATTEND(attention_f32_8, float, 8)
ATTEND(attention_f32_16, float, 16)
ATTEND(attention_bf16_2, bf16, 2)
ATTEND(attention_bf16_4, bf16, 4)
ATTEND(attention_bf16_8, bf16, 8)
ATTEND(attention_bf16_16, bf16, 16)

// Joins the parts of each query in order. Block x is the row, block y the head.
extern "C" __global__ void attention_join(const float* parts, int splits, int heads, int value_dim, const float* sinks,
                                          float* out, i64 out_stride) {
    i64 row = blockIdx.x, head = blockIdx.y;
    const float* from = parts + (row * heads + head) * splits * (value_dim + 2);
    for (int d = threadIdx.x; d < value_dim; d += blockDim.x) {
        Soft all = sinks ? Soft{sinks[head], 1.0f} : Soft{-INFINITE, 0.0f};
        float value = 0.0f;
        for (int s = 0; s < splits; s++) {
            const float* part = from + (i64)s * (value_dim + 2);
            if (part[0] == -INFINITE) continue;
            Weights w = join(all, Soft{part[0], part[1]});
            value = fmaf(value, w.a, part[2 + d] * w.b);
        }
        out[row * out_stride + head * value_dim + d] = value * (1.0f / all.sum);
    }
}
EXPORT(attention_join);
