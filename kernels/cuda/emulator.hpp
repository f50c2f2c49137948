// Runs kernels on the CPU: one OS thread, a fiber for each thread of a block, block after block. Included by `device.cuh`
// when the same .cu files are compiled by a C++ compiler into a shared library, which `kernels::cuda::emulated` loads.
//
// What it notices: threads of a block at different barriers, lanes of a warp in different collectives or gone from one,
// blocks in which no thread can go on, copies that nobody waited for. What shared memory holds before it is written is NaN.
// The seed of a launch chooses the order in which threads run, warps that stall, and when asynchronous copies land: between
// their start and the wait for them. Built with a sanitizer, accesses outside of buffers are errors of that.
//
// A fault ends the launch with a message; the fibers of its block are abandoned where they stand.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>
#if !defined(__x86_64__) || defined(EMULATOR_UCONTEXT)
#include <ucontext.h>
#define EMULATOR_PORTABLE 1
#endif
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
extern "C" void __sanitizer_start_switch_fiber(void**, const void*, size_t);
extern "C" void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
#define EMULATOR_ASAN 1
#endif

#if defined(__SANITIZE_THREAD__)
// To the thread sanitizer every fiber is a thread, and nothing but what kernels may rely on orders them: barriers of the
// block, and the ends of the launch. The emulator's own bookkeeping is not looked at.
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#define EMULATOR_TSAN 1
#define UNSEEN __attribute__((no_sanitize_thread))
#else
#define UNSEEN
#endif

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;
typedef long long i64;
#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct __align__(16) uint4 {
    u32 x, y, z, w;
};
struct __align__(16) float4 {
    float x, y, z, w;
};
struct int2 {
    int x, y;
};

namespace emulator {

// What happens while there is one is not looked at by the thread sanitizer.
struct Unseen {
#ifdef EMULATOR_TSAN
    Unseen() {
        AnnotateIgnoreReadsBegin("", 0);
        AnnotateIgnoreWritesBegin("", 0);
    }
    ~Unseen() {
        AnnotateIgnoreWritesEnd("", 0);
        AnnotateIgnoreReadsEnd("", 0);
    }
#else
    Unseen() {}
#endif
};

// What was done before `passed_on` of an address is seen by who calls `taken_up` afterwards.
inline void passed_on(void* at) {
#ifdef EMULATOR_TSAN
    __tsan_release(at);
#else
    (void)at;
#endif
}
inline void taken_up(void* at) {
#ifdef EMULATOR_TSAN
    __tsan_acquire(at);
#else
    (void)at;
#endif
}

struct Copy {
    void* to;
    u64 data[2];
    int group;
};

struct Fiber {
    void* stack = nullptr;
#ifdef EMULATOR_PORTABLE
    ucontext_t context;
#else
    void* sp = nullptr;
#endif
    dim3 index;
    int number = 0, lane = 0, warp = 0;
    bool done = false;
    std::vector<Copy> copies;
    int group = 0;
    void* fake_stack = nullptr;
    // As the thread sanitizer knows it.
    void* thread = nullptr;
};

struct Warp {
    int waiting = 0, turn = 0, alive = 0, total = 0, line = -1, stall = 0;
    // What lanes hand to each other: two slots in turn, so that a fast lane does not overwrite what a slow one reads.
    alignas(16) unsigned char slot[2][32][32];
};

const size_t STACK = 64 << 10;
inline Fiber* now;
inline dim3 grid_size, block_size, block_index;
inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline const std::function<void()>* body;
inline unsigned char* shared;
inline int alive, waiting, turn, line;
inline long progress;
inline u64 state;
inline bool faulted, shuffled;
inline std::string fault_message;
#ifdef EMULATOR_PORTABLE
inline ucontext_t main_context;
#else
inline void* main_sp;
#endif
inline const void* main_stack;
inline size_t main_stack_size;
inline void* main_fake_stack;
inline void* main_thread;
// Begin and end of the launch, for the thread sanitizer.
inline char begun, ended;

inline u32 random() {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (u32)(state >> 32);
}

#ifndef EMULATOR_PORTABLE
extern "C" void emulator_switch(void** from, void* to);
asm(".text\n.globl emulator_switch\n.hidden emulator_switch\n.type emulator_switch, @function\nemulator_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");
#endif

// From a fiber back to the loop of `launch`.
UNSEEN inline void yield() {
    Fiber* self = now;
#ifdef EMULATOR_TSAN
    __tsan_switch_to_fiber(main_thread, 1);
#endif
#ifdef EMULATOR_ASAN
    __sanitizer_start_switch_fiber(self->done ? nullptr : &self->fake_stack, main_stack, main_stack_size);
#endif
#ifdef EMULATOR_PORTABLE
    swapcontext(&self->context, &main_context);
#else
    emulator_switch(&self->sp, main_sp);
#endif
#ifdef EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(self->fake_stack, &main_stack, &main_stack_size);
#endif
}

// Remembers the first fault; a fiber that calls it never runs again.
inline void fault(const char* what, int at) {
    Unseen unseen;
    if (!faulted) {
        char text[256];
        std::snprintf(text, sizeof text, "%s (line %d, block %u,%u,%u, thread %d)", what, at, block_index.x,
                      block_index.y, block_index.z, now ? now->number : -1);
        fault_message = text;
        faulted = true;
    }
    while (now) yield();
}

inline void release_block() {
    waiting = 0;
    turn++;
    line = -1;
    progress++;
}

inline void sync_threads(int at) {
    Unseen unseen;
    // Two in turn: who is fast may be at the next one already.
    void* order = shared + 8 * (turn & 1);
    passed_on(order);
    if (line == -1) line = at;
    if (line != at) fault("threads of a block wait at different barriers", at);
    int mine = turn;
    if (++waiting == alive) release_block();
    while (turn == mine) yield();
    taken_up(order);
}

// Waits for all lanes of the warp; returns the slot in which they left their values.
inline int meet(int at) {
    Warp& warp = warps[now->warp];
    if (warp.alive != warp.total) fault("a lane is missing from a collective of its warp", at);
    if (warp.line == -1) warp.line = at;
    if (warp.line != at) fault("lanes of a warp are in different collectives", at);
    int mine = warp.turn;
    if (++warp.waiting == warp.alive) {
        warp.waiting = 0;
        warp.turn++;
        warp.line = -1;
        progress++;
    }
    while (warp.turn == mine) yield();
    return mine & 1;
}

inline const unsigned char (*exchange(const void* value, size_t size, int at))[32] {
    Unseen unseen;
    Warp& warp = warps[now->warp];
    std::memcpy(warp.slot[warp.turn & 1][now->lane], value, size);
    return warp.slot[meet(at)];
}

template <class T> T shuffle(u32 mask, T value, int from, int at) {
    if (mask != 0xffffffffu) fault("only whole warps shuffle", at);
    auto all = exchange(&value, sizeof value, at);
    Unseen unseen;
    T result;
    std::memcpy(&result, all[from & 31], sizeof result);
    return result;
}

inline void land(const Copy& copy) { std::memcpy(copy.to, copy.data, 16); }

inline void copy_async(void* to, const void* from, int at) {
    if (((uintptr_t)to | (uintptr_t)from) & 15) fault("an asynchronous copy is not aligned to 16 bytes", at);
    Copy copy{to, {}, now->group};
    std::memcpy(copy.data, from, 16);
    // The hardware may be done at once, or as late as the wait.
    bool at_once;
    {
        Unseen unseen;
        at_once = shuffled && random() & 1;
        if (!at_once) now->copies.push_back(copy);
    }
    if (at_once) land(copy);
}

inline void copy_wait(int latest) {
    std::vector<Copy> rest;
    for (auto& copy : now->copies) {
        if (copy.group < now->group - latest) land(copy);
        else rest.push_back(copy);
    }
    now->copies.swap(rest);
}

inline float widened(u16 x) {
    u32 bits = (u32)x << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}

inline void mma_bf16(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1, int at) {
    u32 mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    auto all = exchange(mine, sizeof mine, at);
    u32 values[32][6];
    {
        Unseen unseen;
        std::memset(values, 0, sizeof values);
        for (int lane = 0; lane < 32; lane++) std::memcpy(values[lane], all[lane], sizeof mine);
    }
    int g = now->lane / 4, t = now->lane % 4;
    for (int i = 0; i < 4; i++) {
        int row = g + 8 * (i / 2), column = 2 * t + i % 2;
        float sum = sums[i];
        for (int k = 0; k < 16; k++) {
            u32 x = values[row % 8 * 4 + k % 8 / 2][row / 8 + 2 * (k / 8)];
            u32 y = values[column * 4 + k % 8 / 2][4 + k / 8];
            sum += widened((u16)(k % 2 ? x >> 16 : x)) * widened((u16)(k % 2 ? y >> 16 : y));
        }
        sums[i] = sum;
    }
}

// A thread of the block is done.
inline void leave() {
    Unseen unseen;
    if (!now->copies.empty()) fault("a thread ends before it has waited for its asynchronous copies", 0);
    Warp& warp = warps[now->warp];
    if (warp.waiting > 0) fault("a lane ends while its warp is in a collective", warp.line);
    now->done = true;
    alive--;
    warp.alive--;
    progress++;
    if (alive > 0 && waiting == alive) release_block();
}

// The first function of a fiber.
UNSEEN inline void enter() {
    taken_up(&begun);
#ifdef EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &main_stack, &main_stack_size);
#endif
    (*body)();
    passed_on(&ended);
    leave();
    yield();
    std::abort();
}

UNSEEN inline void resume(Fiber& fiber) {
    now = &fiber;
#ifdef EMULATOR_TSAN
    __tsan_switch_to_fiber(fiber.thread, 1);
#endif
#ifdef EMULATOR_ASAN
    __sanitizer_start_switch_fiber(&main_fake_stack, fiber.stack, STACK);
#endif
#ifdef EMULATOR_PORTABLE
    swapcontext(&main_context, &fiber.context);
#else
    emulator_switch(&main_sp, fiber.sp);
#endif
#ifdef EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(main_fake_stack, nullptr, nullptr);
#endif
    now = nullptr;
}

inline void begin(Fiber& fiber, int number) {
    fiber.number = number;
    fiber.lane = number % 32;
    fiber.warp = number / 32;
    fiber.index = {number % block_size.x, number / block_size.x % block_size.y,
                   number / (block_size.x * block_size.y)};
    fiber.done = false;
    fiber.copies.clear();
    fiber.group = 0;
    warps[fiber.warp].alive++;
    warps[fiber.warp].total++;
#ifdef EMULATOR_ASAN
    ASAN_UNPOISON_MEMORY_REGION(fiber.stack, STACK);
#endif
#ifdef EMULATOR_PORTABLE
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
#else
    void** sp = (void**)((char*)fiber.stack + STACK - 64);
    *--sp = nullptr;
    *--sp = (void*)enter;
    for (int k = 0; k < 6; k++) *--sp = nullptr;
    fiber.sp = sp;
#endif
}

inline void run_block(int threads, std::vector<int>& order) {
    warps.assign((threads + 31) / 32, Warp());
    alive = threads;
    waiting = turn = 0;
    line = -1;
    for (int i = 0; i < threads; i++) begin(fibers[i], i);
    while (alive > 0 && !faulted) {
        long before = progress;
        bool stalled = false;
        if (shuffled) {
            for (auto& warp : warps) {
                if (warp.stall > 0) warp.stall--;
                else if (random() % 8 == 0) warp.stall = random() % 16;
                stalled |= warp.stall > 0;
            }
            for (int i = threads - 1; i > 0; i--) std::swap(order[i], order[random() % (i + 1)]);
        }
        for (int i : order) {
            if (fibers[i].done || warps[fibers[i].warp].stall > 0) continue;
            resume(fibers[i]);
            if (faulted) return;
        }
        if (progress == before && !stalled) fault("no thread can go on: a barrier or collective is not reached by all", line);
    }
}

// Seed 0 runs threads in order and lets copies land at their waits; every other seed is a schedule of its own.
inline void launch(dim3 grid, dim3 block, size_t shared_bytes, u64 seed, const std::function<void()>& kernel) {
    Unseen unseen;
    passed_on(&begun);
    grid_size = grid;
    block_size = block;
    body = &kernel;
    shuffled = seed != 0;
    state = seed * 0x9E3779B97F4A7C15ull + 1;
    faulted = false;
    int threads = block.x * block.y * block.z;
    if ((int)fibers.size() < threads) fibers.resize(threads);
#ifdef EMULATOR_TSAN
    main_thread = __tsan_get_current_fiber();
    for (int i = 0; i < threads; i++)
        if (!fibers[i].thread) fibers[i].thread = __tsan_create_fiber(0);
#endif
    for (int i = 0; i < threads; i++) {
        if (fibers[i].stack) continue;
        fibers[i].stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (fibers[i].stack == MAP_FAILED) {
            fibers[i].stack = nullptr;
            return fault("no memory for the stacks of a block", 0);
        }
    }
    std::vector<int> order(threads);
    for (int i = 0; i < threads; i++) order[i] = i;
    // As large as asked for, so that a sanitizer sees its end.
    size_t room = (shared_bytes + 15) / 16 * 16 + 16;
    std::vector<void*> rooms;
    shared = (unsigned char*)std::aligned_alloc(16, room);
    if (!shared) return fault("no memory for shared memory", 0);
#ifdef EMULATOR_ASAN
    ASAN_POISON_MEMORY_REGION(shared + shared_bytes, room - shared_bytes);
#endif
    for (block_index.z = 0; block_index.z < grid.z && !faulted; block_index.z++)
        for (block_index.y = 0; block_index.y < grid.y && !faulted; block_index.y++)
            for (block_index.x = 0; block_index.x < grid.x && !faulted; block_index.x++) {
#ifdef EMULATOR_TSAN
                // Each block has its own: nothing orders blocks.
                rooms.push_back(shared);
                shared = (unsigned char*)std::aligned_alloc(16, room);
                if (!shared) return fault("no memory for shared memory", 0);
#endif
                std::memset(shared, 0xff, shared_bytes);
                run_block(threads, order);
            }
#ifdef EMULATOR_ASAN
    ASAN_UNPOISON_MEMORY_REGION(shared, room);
#endif
    taken_up(&ended);
    for (void* used : rooms) std::free(used);
    std::free(shared);
    shared = nullptr;
}

// One letter for each parameter: p pointer, f float, i int, l 64-bit integer.
template <class T> constexpr char letter() {
    using U = std::remove_cv_t<T>;
    if (std::is_pointer_v<U>) return 'p';
    if (std::is_floating_point_v<U>) return 'f';
    return sizeof(U) == 8 ? 'l' : 'i';
}

struct Entry {
    const char* name;
    std::string letters;
    std::function<void(void**)> call;
};
inline std::vector<Entry>& table() {
    static std::vector<Entry> entries;
    return entries;
}

template <class... A, size_t... I> void apply(void (*kernel)(A...), void** p, std::index_sequence<I...>) {
    kernel(*(std::remove_reference_t<A>*)p[I]...);
}

struct Register {
    template <class... A> Register(const char* name, void (*kernel)(A...)) {
        table().push_back({name, std::string{letter<A>()...}, [kernel](void** p) {
                               apply(kernel, p, std::index_sequence_for<A...>{});
                           }});
    }
};

} // namespace emulator

// Runs the kernel of this name. `letters` are the kinds of the arguments that are given. 0, or 1 with a message.
extern "C" inline __attribute__((used, visibility("default"))) int
emulator_launch(const char* name, const u32* grid, const u32* block, size_t shared, u64 seed, const char* letters,
                void** arguments, char* message, size_t room) {
    for (auto& entry : emulator::table()) {
        if (std::strcmp(entry.name, name) != 0) continue;
        if (entry.letters != letters) {
            std::snprintf(message, room, "takes parameters %s, is given %s", entry.letters.c_str(), letters);
            return 1;
        }
        emulator::launch({grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared, seed,
                         [&] { entry.call(arguments); });
        if (!emulator::faulted) return 0;
        std::snprintf(message, room, "%s", emulator::fault_message.c_str());
        return 1;
    }
    std::snprintf(message, room, "there is no kernel of this name");
    return 1;
}

// Memory of the emulated device comes from the library, so that a sanitizer that it was built with watches over it.
extern "C" inline __attribute__((used, visibility("default"))) void* emulator_allocate(size_t bytes) {
    void* memory = std::malloc(bytes);
    // Whoever reads what was never written reads NaN.
    if (memory) std::memset(memory, 0xff, bytes);
    return memory;
}
extern "C" inline __attribute__((used, visibility("default"))) void emulator_free(void* memory) { std::free(memory); }

#define EXPORT(name) static emulator::Register register_##name(#name, name)
#define SHARED(name) unsigned char* name = emulator::shared
#define threadIdx (emulator::now->index)
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)
#define __syncthreads() emulator::sync_threads(__LINE__)
#define __syncwarp() ((void)emulator::meet(__LINE__))
#define __shfl_sync(mask, value, from) emulator::shuffle(mask, value, from, __LINE__)
#define __shfl_xor_sync(mask, value, with) emulator::shuffle(mask, value, emulator::now->lane ^ (with), __LINE__)
#define copy_async(shared, global) emulator::copy_async(shared, global, __LINE__)
#define mma_bf16(sums, a, b0, b1) emulator::mma_bf16(sums, a, b0, b1, __LINE__)

inline void copy_commit() { emulator::now->group++; }
template <int N> inline void copy_wait() { emulator::copy_wait(N); }
inline float bits_as_float(u32 x) {
    float y;
    std::memcpy(&y, &x, 4);
    return y;
}
inline u32 float_as_bits(float x) {
    u32 y;
    std::memcpy(&y, &x, 4);
    return y;
}
inline float half_as_float(u16 x) {
    u32 sign = (u32)(x & 0x8000) << 16, exponent = x >> 10 & 31, fraction = x & 1023;
    if (exponent == 31) return bits_as_float(sign | 0x7f800000u | fraction << 13);
    if (exponent > 0) return bits_as_float(sign | (exponent + 112) << 23 | fraction << 13);
    float small = (float)fraction / 16777216.0f;
    return sign ? -small : small;
}
inline u32 bf16_pair(float low, float high) {
    auto one = [](float x) -> u32 {
        u32 bits = float_as_bits(x);
        if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
        return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    };
    return one(low) | one(high) << 16;
}
inline bool first_to_set(u64* at, u64 value) {
    emulator::Unseen unseen;
    if (*at) return false;
    *at = value;
    return true;
}
inline void add_to(u64* at, u64 value) {
    emulator::Unseen unseen;
    *at += value;
}
inline u64 high_of_product(u64 a, u64 b) { return (u64)((unsigned __int128)a * b >> 64); }
inline i64 nearest_whole(float x) { return std::llrintf(x); }
template <class T> inline T min(T a, T b) { return a < b ? a : b; }
template <class T> inline T max(T a, T b) { return a > b ? a : b; }
