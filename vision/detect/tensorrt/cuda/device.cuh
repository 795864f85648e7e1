// Common definitions of all kernels. The kernels do not include CUDA's headers, because NVRTC does not contain these
// headers, and JetPack ships them in a separate package. In the tests, the host compiler reads the files of the kernels
// after emulator.h.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef EMULATED

#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

__device__ __forceinline__ float half_to_float(u16 bits) {
    float value;
    asm("{ cvt.f32.f16 %0, %1; }" : "=f"(value) : "h"(bits));
    return value;
}

__device__ __forceinline__ u16 float_to_half(float value) {
    u16 bits;
    asm("{ cvt.rn.f16.f32 %0, %1; }" : "=h"(bits) : "f"(value));
    return bits;
}

// Converts two numbers to fp16, and packs them into one word, the first number in the low half.
__device__ __forceinline__ u32 floats_to_halves(float first, float second) {
#if __CUDA_ARCH__ >= 800
    u32 bits;
    asm("{ cvt.rn.f16x2.f32 %0, %1, %2; }" : "=r"(bits) : "f"(second), "f"(first));
    return bits;
#else
    return (u32)float_to_half(first) | (u32)float_to_half(second) << 16;
#endif
}

// Reads one byte of a frame with an instruction for read-only global memory. The compiler cannot know that frames are in
// global memory and do not change.
__device__ __forceinline__ u32 load(const u8* address) {
    u32 value;
    asm("{ .reg .u16 byte; ld.global.nc.u8 byte, [%1]; cvt.u32.u16 %0, byte; }" : "=r"(value) : "l"(address));
    return value;
}

// Reads one aligned word of a frame.
__device__ __forceinline__ u32 load(const u32* address) {
    u32 value;
    asm("ld.global.nc.u32 %0, [%1];" : "=r"(value) : "l"(address));
    return value;
}

__device__ __forceinline__ float float_of_bits(u32 bits) { return __uint_as_float(bits); }

// Stores 16 bytes in one instruction. The compiler might use two instructions, each of which would write half of every
// memory sector.
__device__ __forceinline__ void store_words(void* address, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                 : : "l"(address), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

// Shifts the 64 bits of `high` and `low` right by less than 32 bits. Returns the low 32 bits of the result.
__device__ __forceinline__ u32 funnel(u32 low, u32 high, u32 shift) { return __funnelshift_r(low, high, shift); }

#endif

// One frame of a batch, as `vision.detect.tensorrt.kernels.FRAME` writes it.
struct Frame {
    const u8* plane[3];  // bgr and bgrx use one plane, nv12 uses Y and UV, i420 uses Y, U, and V
    int pitch[2];        // bytes from row to row in the first plane, and in the other planes
    int width, height;   // source pixels; a width of 0 means that this row of the batch has no frame
    int format;          // one of FORMAT_...
    int content_width, content_height;  // model pixels that the scaled frame covers
    int pad_x, pad_y;
    int luma_offset;                      // black level: 16 for limited range, 0 for full range
    int luma, u_blue, u_green, v_green, v_red;  // in units of 2^-FRACTION_BITS, see `vision.detect.reference.yuv`
    float ratio_x, ratio_y;               // source pixels per model pixel
    int step, step_rest;                  // from row to row: quotient, remainder of 2 * height / (2 * content_height)
    float per_x, per_y;                   // 1 / (2 * content_width) and 1 / (2 * content_height)
    int reserved;
};

enum { FORMAT_BGR = 0, FORMAT_BGRX = 1, FORMAT_NV12 = 2, FORMAT_I420 = 3 };
