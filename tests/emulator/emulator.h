// Runs CUDA kernels on the CPU, so that machines without a GPU can test the same files that a GPU runs.
//
// Every thread of a block is a fiber (scheduler.cpp). A fiber runs until it has to wait for others (a barrier, a shuffle,
// a vote). The next fiber is then chosen at random, so that the result changes with the seed if a barrier is missing.
// Blocks run one after the other. On a GPU, compute-sanitizer detects out-of-bounds accesses that this header does not.
#pragma once
#include "scheduler.h"

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
#define DYNAMIC_SHARED(name) unsigned char* name = emulator::dynamic_shared

// The functions of <math.h> that kernels call.
extern "C" {
float ceilf(float), cosf(float), expf(float), fabsf(float), floorf(float), fmaxf(float, float), fminf(float, float);
float logf(float), sinf(float);
}

struct int2 { int x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline float4 make_float4(float x, float y, float z, float w) { return float4{x, y, z, w}; }

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
    __builtin_memcpy(&bits, &value, sizeof(T));
    emulator::collect(mask, bits);
    if (!(mask >> from & 1)) emulator::fail("a shuffle from a thread outside the mask");
    __builtin_memcpy(&value, &emulator::current->seen[from], sizeof(T));
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
inline unsigned __float_as_uint(float value) { unsigned bits; __builtin_memcpy(&bits, &value, 4); return bits; }
inline float __uint_as_float(unsigned bits) { float value; __builtin_memcpy(&value, &bits, 4); return value; }
template <typename T>
T atomicAdd(T* at, T value) { T old = *at; *at += value; return old; }
template <typename T>
T atomicMax(T* at, T value) { T old = *at; *at = old < value ? value : old; return old; }
template <typename T>
T atomicOr(T* at, T value) { T old = *at; *at |= value; return old; }
template <typename T>
T __ldg(const T* at) { return *at; }
inline void __threadfence() {}
inline void __threadfence_system() {}
inline float __expf(float value) { return __builtin_expf(value); }

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a < b ? b : a; }

// GCC 11, the compiler of Ubuntu 22.04, has no 16-bit floats in C++, so integers do the conversions.
inline float half_to_float(unsigned short bits) {
    unsigned sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ffu;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * __builtin_ldexpf((float)fraction, -24);
    unsigned whole = sign | (exponent == 31 ? 255u : exponent + 112u) << 23 | fraction << 13;
    float value;
    __builtin_memcpy(&value, &whole, 4);
    return value;
}
inline unsigned load(const unsigned char* address) { return *address; }
inline unsigned load(const unsigned* address) { return *address; }
inline float float_of_bits(unsigned bits) {
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}
inline void store_words(void* address, unsigned a, unsigned b, unsigned c, unsigned d) {
    const unsigned words[] = {a, b, c, d};
    __builtin_memcpy(address, words, sizeof words);
}
inline unsigned funnel(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((unsigned long long)high << 32 | low) >> shift);
}
inline unsigned short float_to_half(float value) {
    unsigned bits;
    __builtin_memcpy(&bits, &value, 4);
    unsigned sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (unsigned short)(sign | 0x7e00u);   // not a number
    if (magnitude >= 0x477ff000u) return (unsigned short)(sign | 0x7c00u);  // infinite after rounding
    if (magnitude < 0x38800000u)                                            // below the smallest normal number
        return (unsigned short)(sign | (unsigned)__builtin_nearbyintf(__builtin_ldexpf(__builtin_fabsf(value), 24)));
    unsigned rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);  // half to even
    return (unsigned short)(sign | (rounded - 0x38000000u) >> 13);
}
inline unsigned floats_to_halves(float first, float second) {
    return float_to_half(first) | (unsigned)float_to_half(second) << 16;
}
