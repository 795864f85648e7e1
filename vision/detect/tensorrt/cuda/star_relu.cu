// StarReLU, scale * max(x, 0)^2 + bias, for every value of a tensor in any of TensorRT's memory formats. Definitions:
//
// - HALF (1: fp16), SCALE, BIAS.
// - CHANNELS: number of channels; 0 if the format has no padding.
// - VECTOR (channels that are adjacent in memory), BLOCKS (vectors that cover all channels), INNER (positions of a plane).
#include "device.cuh"

#if HALF
typedef u16 Value;
__device__ __forceinline__ float value_of(Value value) { return half_to_float(value); }
__device__ __forceinline__ Value of_value(float value) { return float_to_half(value); }
#else
typedef float Value;
__device__ __forceinline__ float value_of(Value value) { return value; }
__device__ __forceinline__ Value of_value(float value) { return value; }
#endif

// Launch: one thread per value, block 256. The padding of the channels stays 0.
extern "C" __global__ void __launch_bounds__(256)
star_relu(const Value* input, u32 count, Value* output) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
#if CHANNELS
    u32 channel = i / (INNER * VECTOR) % BLOCKS * VECTOR + i % VECTOR;
    if (channel >= CHANNELS) {
        output[i] = of_value(0.0f);
        return;
    }
#endif
    float positive = fmaxf(value_of(input[i]), 0.0f);
    output[i] = of_value((float)(SCALE) * positive * positive + (float)(BIAS));
}
