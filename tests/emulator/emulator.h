// Runs CUDA kernels on the CPU, so that the very files that go to the GPU are tested where there is none.
//
// Every thread of a block is a fiber. A fiber runs until it has to wait for others (a barrier, a shuffle, a vote), and
// the next one to run is drawn at random: a missing barrier shows as a result that changes with the seed. Blocks run one
// after the other. Out-of-bounds accesses are for the address sanitizer and compute-sanitizer to find.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define EMULATED 1
#define __global__
#define __device__
#define __forceinline__ inline
#define __noinline__
#define __restrict__
#define __shared__ static
#define __constant__ static const
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define DYNAMIC_SHARED(name) unsigned char* name = emulator::dynamic_shared.data()

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct int2 { int x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline float4 make_float4(float x, float y, float z, float w) { return float4{x, y, z, w}; }

namespace emulator {

struct Fiber {
    ucontext_t context;
    dim3 thread;
    unsigned index = 0;
    enum { READY, AT_BLOCK, AT_WARP, DONE } state = READY;
    unsigned mask = 0;       // of the warp collective it waits at
    unsigned long long value = 0;
    unsigned long long seen[32];  // values of the warp's fibers, once all have come
};

inline std::vector<Fiber> fibers;
inline std::vector<std::vector<unsigned char>> stacks;
inline std::vector<unsigned char> dynamic_shared;
inline Fiber* current;
inline ucontext_t scheduler;
inline dim3 block_index, block_size, grid_size;
inline std::function<void()> body;
inline unsigned long long random_state = 1;

inline unsigned draw(unsigned below) {
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)((random_state >> 33) % below);
}

inline void pause(int state) {
    current->state = (decltype(current->state))state;
    swapcontext(&current->context, &scheduler);
}

inline void trampoline() {
    body();
    pause(Fiber::DONE);
}

inline void fail(const char* what) {
    std::fprintf(stderr, "emulator: %s in block (%u, %u, %u)\n", what, block_index.x, block_index.y, block_index.z);
    std::abort();
}

// Wakes the warp's fibers that wait at the same collective, if all that are named in the mask have come.
inline bool release_warp(unsigned warp) {
    unsigned first = warp * 32, last = std::min<size_t>(first + 32, fibers.size());
    bool woke = false;
    for (unsigned i = first; i < last; i++) {
        if (fibers[i].state != Fiber::AT_WARP) continue;
        unsigned mask = fibers[i].mask, come = 0;
        for (unsigned j = first; j < last; j++)
            if (fibers[j].state == Fiber::AT_WARP && fibers[j].mask == mask) come |= 1u << (j - first);
        if ((come & mask) != mask) continue;
        if (come != mask) fail("a thread that its own mask does not name");
        for (unsigned j = first; j < last; j++) {
            if (!(mask >> (j - first) & 1)) continue;
            for (unsigned k = first; k < last; k++) fibers[j].seen[k - first] = fibers[k].value;
        }
        for (unsigned j = first; j < last; j++)
            if (mask >> (j - first) & 1) fibers[j].state = Fiber::READY;
        woke = true;
    }
    return woke;
}

inline void run_block() {
    std::vector<Fiber*> ready;
    for (;;) {
        ready.clear();
        unsigned waiting = 0, done = 0;
        for (Fiber& fiber : fibers) {
            if (fiber.state == Fiber::READY) ready.push_back(&fiber);
            waiting += fiber.state == Fiber::AT_BLOCK;
            done += fiber.state == Fiber::DONE;
        }
        if (done == fibers.size()) return;
        if (!ready.empty()) {
            for (size_t i = ready.size(); i > 1; i--) std::swap(ready[i - 1], ready[draw((unsigned)i)]);
            for (Fiber* fiber : ready) {
                current = fiber;
                swapcontext(&scheduler, &fiber->context);
            }
            continue;
        }
        bool woke = false;
        for (unsigned warp = 0; warp * 32 < fibers.size(); warp++) woke |= release_warp(warp);
        if (woke) continue;
        if (waiting + done == fibers.size()) {  // threads that have returned do not count at a barrier
            for (Fiber& fiber : fibers)
                if (fiber.state == Fiber::AT_BLOCK) fiber.state = Fiber::READY;
            continue;
        }
        fail("threads wait for each other at different places");
    }
}

inline void launch(dim3 grid, dim3 block, size_t shared, unsigned long long seed, std::function<void()> kernel) {
    grid_size = grid, block_size = block, body = kernel, random_state = seed * 2 + 1;
    unsigned count = block.x * block.y * block.z;
    dynamic_shared.assign(shared + 1, 0xCD);
    while (stacks.size() < count) stacks.emplace_back(64 << 10);
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                block_index = dim3{x, y, z};
                fibers.clear();
                fibers.resize(count);
                for (unsigned i = 0; i < count; i++) {
                    Fiber& fiber = fibers[i];
                    fiber.index = i;
                    fiber.thread = dim3{i % block.x, i / block.x % block.y, i / (block.x * block.y)};
                    getcontext(&fiber.context);
                    fiber.context.uc_stack.ss_sp = stacks[i].data();
                    fiber.context.uc_stack.ss_size = stacks[i].size();
                    fiber.context.uc_link = nullptr;
                    makecontext(&fiber.context, trampoline, 0);
                }
                run_block();
            }
}

inline void collect(unsigned mask, unsigned long long value) {
    current->mask = mask;
    current->value = value;
    pause(Fiber::AT_WARP);
}

}  // namespace emulator

#define threadIdx (emulator::current->thread)
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)

inline void __syncthreads() { emulator::pause(emulator::Fiber::AT_BLOCK); }
inline void __syncwarp(unsigned mask = ~0u) { emulator::collect(mask, 0); }

inline unsigned __ballot_sync(unsigned mask, int predicate) {
    emulator::collect(mask, predicate != 0);
    unsigned votes = 0;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) votes |= (unsigned)(emulator::current->seen[i] & 1) << i;
    return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }

template <typename T>
T emulated_shuffle(unsigned mask, T value, unsigned from) {
    static_assert(sizeof(T) <= 8, "");
    unsigned long long bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    emulator::collect(mask, bits);
    if (!(mask >> from & 1)) emulator::fail("a shuffle from a thread outside the mask");
    std::memcpy(&value, &emulator::current->seen[from], sizeof(T));
    return value;
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int from) { return emulated_shuffle(mask, value, (unsigned)from & 31); }
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
    return emulated_shuffle(mask, value, (emulator::current->index & 31) ^ (unsigned)lanes);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes) {
    unsigned lane = emulator::current->index & 31;
    return emulated_shuffle(mask, value, lane >= lanes ? lane - lanes : lane);
}

inline int __syncthreads_or(int predicate) {
    static int any;
    __syncthreads();
    any = 0;
    __syncthreads();
    if (predicate) any = 1;
    __syncthreads();
    return any;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz((unsigned)bits) : 32; }
inline unsigned __float_as_uint(float value) { unsigned bits; std::memcpy(&bits, &value, 4); return bits; }
inline float __uint_as_float(unsigned bits) { float value; std::memcpy(&value, &bits, 4); return value; }
template <typename T>
T atomicAdd(T* at, T value) { T old = *at; *at += value; return old; }
template <typename T>
T atomicMax(T* at, T value) { T old = *at; *at = std::max(old, value); return old; }
template <typename T>
T atomicOr(T* at, T value) { T old = *at; *at |= value; return old; }
template <typename T>
T __ldg(const T* at) { return *at; }
inline void __threadfence() {}
inline void __threadfence_system() {}
inline float __expf(float value) { return std::exp(value); }

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline unsigned min(unsigned a, unsigned b) { return std::min(a, b); }
inline int min(int a, int b) { return std::min(a, b); }
inline int max(int a, int b) { return std::max(a, b); }

// GCC 11, the compiler of Ubuntu 22.04, has no 16-bit floats in C++, so integers do the conversions.
inline float half_to_float(unsigned short bits) {
    unsigned sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ffu;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * std::ldexp((float)fraction, -24);
    unsigned whole = sign | (exponent == 31 ? 255u : exponent + 112u) << 23 | fraction << 13;
    float value;
    std::memcpy(&value, &whole, 4);
    return value;
}
inline unsigned load(const unsigned char* address) { return *address; }
inline unsigned load(const unsigned* address) { return *address; }
inline float float_of_bits(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline void store_words(void* address, unsigned a, unsigned b, unsigned c, unsigned d) {
    const unsigned words[] = {a, b, c, d};
    std::memcpy(address, words, sizeof words);
}
inline unsigned funnel(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((unsigned long long)high << 32 | low) >> shift);
}
inline unsigned short float_to_half(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    unsigned sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (unsigned short)(sign | 0x7e00u);   // not a number
    if (magnitude >= 0x477ff000u) return (unsigned short)(sign | 0x7c00u);  // infinite after rounding
    if (magnitude < 0x38800000u)                                            // below the smallest normal number
        return (unsigned short)(sign | (unsigned)std::nearbyint(std::ldexp(std::fabs(value), 24)));
    unsigned rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);  // half to even
    return (unsigned short)(sign | (rounded - 0x38000000u) >> 13);
}
inline unsigned floats_to_halves(float first, float second) {
    return float_to_half(first) | (unsigned)float_to_half(second) << 16;
}
