// Chooses tokens from rows of logits, by the rules and with the numbers of `host::engine::sampler`: penalties, temperature,
// min_p, top_k, top_p, and a draw at a random number that the caller gives. Equal logits give equal tokens, bit for bit: the
// exponential is that of `kernels::cpu::logits`, and probabilities are whole numbers wherever they are
// added up, so that the order of adding has no part in it. One block a row; a row is read some twenty times, never sorted.
#include "device.cuh"
#include "math.cuh"

// `kernels::cuda::Draw`, with the row it is of and its part of the seen tokens.
struct Draw {
    u64 random;
    int row, first, seen, top_k;
    float temperature, top_p, min_p, repetition, frequency, presence;
};

const int SAMPLERS = 256, BINS = 256;

struct SampleRoom {
    u64 sums[BINS], counts[BINS], warps[SAMPLERS / 32], left;
    int bin;
};

// The sum, or the least, over the block, in every thread.
__device__ __forceinline__ u64 join(u64 x, bool least, SampleRoom& room) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        u64 other = __shfl_xor_sync(0xffffffffu, x, step);
        x = least ? min(x, other) : x + other;
    }
    if (threadIdx.x % 32 == 0) room.warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = room.warps[0];
    for (int warp = 1; warp < SAMPLERS / 32; warp++) x = least ? min(x, room.warps[warp]) : x + room.warps[warp];
    __syncthreads();
    return x;
}

// Orders places of a row: smaller keys hold larger numbers, and of equal ones the first.
__device__ __forceinline__ u64 key_of(float x, int index) {
    u32 bits = float_as_bits(x + 0.0f); // -0 becomes 0
    u32 ascending = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (u64)(~ascending) << 32 | (u32)index;
}

// e^x for x <= 0, as the sampler has it. Below -87 it is 1e-38.
__device__ __forceinline__ float exp_below(float x) {
    x = x > -87.0f ? x : -87.0f;
    float rounded = x * 1.44269504f + 12582912.0f;
    float n = rounded - 12582912.0f;
    float rest = x - n * 0.693359375f - n * -2.12194440e-4f;
    float p = 1.9875691e-4f;
    p = p * rest + 1.3981999e-3f;
    p = p * rest + 8.333452e-3f;
    p = p * rest + 4.1665796e-2f;
    p = p * rest + 0.16666665f;
    p = p * rest + 0.5f;
    p = p * rest * rest + rest + 1.0f;
    return p * bits_as_float((float_as_bits(rounded) << 23) + (127u << 23));
}

// A weight from 0 to 1 in whole numbers of 2^-40.
__device__ __forceinline__ u64 whole(float weight) { return (u64)nearest_whole(weight * 1099511627776.0f); }

// The bin with which the sums of the bins reach `wanted`, and what of it is left for that bin; by one warp.
__device__ __forceinline__ void find_bin(u64 wanted, SampleRoom& room) {
    int lane = threadIdx.x;
    u64 own = 0;
    for (int b = 8 * lane; b < 8 * lane + 8; b++) own += room.sums[b];
    u64 through = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        u64 other = __shfl_sync(0xffffffffu, through, lane - step);
        if (lane >= step) through += other;
    }
    u64 before = through - own;
    for (int b = 8 * lane; b < 8 * lane + 8; b++) {
        u64 here = room.sums[b];
        if (before < wanted && wanted <= before + here) room.bin = b, room.left = wanted - before;
        before += here;
    }
}

// In order of the keys, the last of the shortest beginning that holds `wanted` of the weights; all ones if all hold less.
// By digits of 8 bits from `digit` on (indices are below 2^24, so the fourth has nothing in it). Unless `exact`, a larger
// number may come back which no other key lies before.
template <class Key, class Weight>
__device__ __forceinline__ u64 last_of(int count, int digit, u64 wanted, bool exact, SampleRoom& room, Key key, Weight weight) {
    u64 prefix = 0;
    int t = threadIdx.x;
    for (; digit >= 0; digit--) {
        if (digit == 3) continue;
        if (t < BINS) room.sums[t] = room.counts[t] = 0;
        if (t == 0) room.bin = BINS;
        __syncthreads();
        for (int i = t; i < count; i += SAMPLERS) {
            u64 k = key(i);
            if (digit < 7 && (k ^ prefix) >> (8 * digit + 8) != 0) continue;
            int bin = (int)(k >> (8 * digit) & 255);
            add_to(&room.counts[bin], 1);
            u64 w = weight(i, k);
            if (w > 0) add_to(&room.sums[bin], w);
        }
        __syncthreads();
        if (t < 32) find_bin(wanted, room);
        __syncthreads();
        int bin = room.bin;
        wanted = room.left;
        bool alone = bin < BINS && room.counts[bin] == 1;
        __syncthreads();
        if (bin == BINS) return ~0ull;
        prefix |= (u64)bin << (8 * digit);
        if (alone && !exact) return prefix | ((1ull << (8 * digit)) - 1);
    }
    return prefix;
}

// The least key of the row. If a number is NaN or infinite, its index in `bad`.
__device__ __forceinline__ u64 best_of(const float* row, int vocab, SampleRoom& room, u64& bad) {
    u64 best = ~0ull, wrong = ~0ull;
    for (int i = threadIdx.x; i < vocab; i += SAMPLERS) {
        float x = row[i];
        if (!(x < INFINITE)) wrong = min(wrong, (u64)i);
        else best = min(best, key_of(x, i));
    }
    bad = join(wrong, true, room);
    return join(best, true, room);
}

__device__ __forceinline__ void penalise(float* row, int vocab, const Draw& draw, const int2* seen) {
    for (int s = threadIdx.x; s < draw.seen; s += SAMPLERS) {
        int2 token = seen[draw.first + s];
        if (token.x < 0 || token.x >= vocab) continue;
        float x = row[token.x];
        if (draw.repetition != 1.0f) x = x > 0.0f ? x / draw.repetition : x * draw.repetition;
        if (token.y > 0) {
            x -= draw.frequency * (float)token.y;
            x -= draw.presence;
        }
        row[token.x] = x;
    }
}

// The token at `draw.random` of the weights of those that the parameters leave.
__device__ __forceinline__ u32 drawn(const float* row, int vocab, const Draw& draw, float best, SampleRoom& room) {
    auto key = [&](int i) { return key_of(row[i], i); };
    u64 top = ~0ull;
    if (draw.top_k > 0 && draw.top_k < vocab) {
        top = last_of(vocab, 7, (u64)draw.top_k, false, room, key, [&](int i, u64) { return (u64)(row[i] > -INFINITE); });
    }
    auto weight = [&](int i, u64 k) {
        float e = k <= top ? exp_below((row[i] - best) / draw.temperature) : 0.0f;
        return e < draw.min_p ? 0.0f : e;
    };
    auto total = [&](u64 last) {
        u64 sum = 0;
        for (int i = threadIdx.x; i < vocab; i += SAMPLERS) {
            u64 k = key(i);
            if (k <= last) sum += whole(weight(i, k));
        }
        return join(sum, false, room);
    };
    u64 last = ~0ull, sum = total(last);
    if (draw.top_p < 1.0f) {
        double share = ceil((double)sum * (double)draw.top_p);
        u64 wanted = max(min((u64)share, sum), (u64)1);
        last = last_of(vocab, 7, wanted, false, room, key, [&](int i, u64 k) { return whole(weight(i, k)); });
        sum = total(last);
    }
    u64 at = high_of_product(draw.random, sum);
    u64 place = last_of(vocab, 2, at + 1, true, room, [](int i) { return (u64)i; }, [&](int i, u64) {
        u64 k = key(i);
        return k <= last ? whole(weight(i, k)) : (u64)0;
    });
    return (u32)min(place, (u64)(vocab - 1));
}

// Three numbers for each draw: 0 and a token; 1, the first token whose logit is not a number, and that logit; or 2 if no
// token is left. Penalties change the row. Block x is the draw.
extern "C" __global__ void __launch_bounds__(256, 2)
    sample(float* rows, i64 stride, int vocab, const Draw* draws, const int2* seen, int* out) {
    SHARED(shared);
    SampleRoom& room = *(SampleRoom*)shared;
    Draw draw = draws[blockIdx.x];
    float* row = rows + draw.row * stride;
    u64 bad, best = best_of(row, vocab, room, bad);
    if (bad == ~0ull && draw.seen > 0) {
        penalise(row, vocab, draw, seen);
        __syncthreads();
        best = best_of(row, vocab, room, bad);
    }
    u32 token = (u32)best;
    int code = bad != ~0ull ? 1 : row[token] == -INFINITE ? 2 : 0;
    if (code == 1) token = (u32)bad;
    if (code == 0 && draw.temperature > 0.0f) token = drawn(row, vocab, draw, row[token], room);
    if (threadIdx.x == 0) {
        int* to = out + 3 * blockIdx.x;
        to[0] = code, to[1] = (int)token, to[2] = (int)float_as_bits(row[token]);
    }
}
EXPORT(sample);
