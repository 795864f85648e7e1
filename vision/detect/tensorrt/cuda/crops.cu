// Cuts a part out of a frame of any format, and scales it to the input of a second model.
//
// The arithmetic is that of tests/crop_reference.py: the mean of all covered source pixels if the part shrinks along
// both axes, otherwise bilinear interpolation between pixel centers. Weights are whole numbers, so the levels are exact,
// and are rounded once, halves up. OpenCV, which the reference on the CPU uses, differs by at most one level.
//
// Definitions:
//
// - WIDTH, HEIGHT: size of the model's input.
// - HALF_INPUT: 1: the tensor is fp16, 0: fp32.
// - RED_FIRST: 1: the channels are red, green, blue, 0: blue, green, red.
// - FRACTION_BITS: number of fraction bits of the factors in `Frame`.
#include "device.cuh"

struct Normalize {
    float gain[3], offset[3];  // in the order of the model's channels
    float fill[3];             // normalized level around the part
};

// A part of a frame, as `vision.detect.tensorrt.crop_kernel.CROP` writes it. The sizes and positions in `frame` that
// refer to model pixels are those of the part.
struct Crop {
    Frame frame;
    int left, top, width, height;  // source pixels
    int covers;                    // 1: mean of the covered pixels, 0: bilinear interpolation
    int reserved;
};

#if HALF_INPUT
typedef u16 Input;
__device__ __forceinline__ Input to_input(float value) { return float_to_half(value); }
#else
typedef float Input;
__device__ __forceinline__ Input to_input(float value) { return value; }
#endif

struct Levels {
    u32 blue, green, red;
};

__device__ __forceinline__ u32 level(int fixed) {
    return (u32)max(min(fixed >> FRACTION_BITS, 255), 0);
}

// Returns the pixel at column `x` and row `y` of the frame.
__device__ __forceinline__ Levels pixel(const Frame& frame, int x, int y) {
    const u8* row = frame.plane[0] + (u64)y * frame.pitch[0];
    if (frame.format == FORMAT_BGR || frame.format == FORMAT_BGRX) {
        const u8* at = row + x * (frame.format == FORMAT_BGR ? 3 : 4);
        return Levels{load(at), load(at + 1), load(at + 2)};
    }
    u64 offset = (u64)(y >> 1) * frame.pitch[1] + (x >> 1) * (frame.format == FORMAT_NV12 ? 2 : 1);
    const u8* blue = frame.plane[1] + offset;
    const u8* red = frame.format == FORMAT_NV12 ? blue + 1 : frame.plane[2] + offset;
    const int half = 1 << (FRACTION_BITS - 1);
    int u = (int)load(blue) - 128, v = (int)load(red) - 128;
    int luma = max((int)load(row + x) - frame.luma_offset, 0) * frame.luma + half;
    return Levels{
        level(luma + u * frame.u_blue),
        level(luma + u * frame.u_green + v * frame.v_green),
        level(luma + v * frame.v_red),
    };
}

// The source pixels along one axis that determine a model pixel, and their weights. The weights add up to `total`.
struct Span {
    int first, last;  // relative to the part
    int start, end;   // covered section, in units of 1 / `unit` source pixels; only for the mean
    int unit, total;
    int weight;       // of `last`; only for the interpolation
};

// Returns the span of model pixel `at`, if `side` source pixels become `scaled` model pixels.
__device__ __forceinline__ Span covered(int at, int scaled, int side) {
    int start = at * side, end = start + side;
    return Span{start / scaled, (end - 1) / scaled, start, end, scaled, side, 0};
}

__device__ __forceinline__ Span between(int at, int scaled, int side) {
    int unit = 2 * scaled, position = min(max((2 * at + 1) * side - scaled, 0), (side - 1) * unit);
    int whole = position / unit;
    return Span{whole, min(whole + 1, side - 1), 0, 0, unit, unit, position - whole * unit};
}

// Returns the weight of source pixel `at` of the span.
__device__ __forceinline__ int weight(const Span& span, int at, int covers) {
    if (covers) return min((at + 1) * span.unit, span.end) - max(at * span.unit, span.start);
    int first = span.first == span.last ? span.total : span.total - span.weight;
    return at == span.first ? first : span.weight;
}

__device__ __forceinline__ float rounded(u64 sum, u64 total) { return (float)(u32)((2 * sum + total) / (2 * total)); }

// Launch: grid (ceil(WIDTH * HEIGHT / 256), 1, 1), block 256.
extern "C" __global__ void __launch_bounds__(256)
cut(Crop crop, Input* tensor, Normalize norm) {
    int index = blockIdx.x * 256 + threadIdx.x;
    if (index >= WIDTH * HEIGHT) return;
    const Frame& frame = crop.frame;
    int column = index % WIDTH - frame.pad_x, row = index / WIDTH - frame.pad_y;
    float channels[3] = {norm.fill[0], norm.fill[1], norm.fill[2]};
    if (column >= 0 && column < frame.content_width && row >= 0 && row < frame.content_height) {
        Span x, y;
        if (crop.covers) {
            x = covered(column, frame.content_width, crop.width);
            y = covered(row, frame.content_height, crop.height);
        } else {
            x = between(column, frame.content_width, crop.width);
            y = between(row, frame.content_height, crop.height);
        }
        u64 blue = 0, green = 0, red = 0;
        for (int at_y = y.first; at_y <= y.last; at_y++) {
            u32 row_blue = 0, row_green = 0, row_red = 0;  // at most 255 * 2 * 16384 each
            for (int at_x = x.first; at_x <= x.last; at_x++) {
                Levels levels = pixel(frame, crop.left + at_x, crop.top + at_y);
                u32 part = (u32)weight(x, at_x, crop.covers);
                row_blue += levels.blue * part, row_green += levels.green * part, row_red += levels.red * part;
            }
            u64 part = (u64)weight(y, at_y, crop.covers);
            blue += row_blue * part, green += row_green * part, red += row_red * part;
        }
        u64 total = (u64)x.total * (u64)y.total;
        float first = rounded(RED_FIRST ? red : blue, total), third = rounded(RED_FIRST ? blue : red, total);
        channels[0] = first * norm.gain[0] + norm.offset[0];
        channels[1] = rounded(green, total) * norm.gain[1] + norm.offset[1];
        channels[2] = third * norm.gain[2] + norm.offset[2];
    }
#pragma unroll
    for (int c = 0; c < 3; c++) tensor[c * WIDTH * HEIGHT + index] = to_input(channels[c]);
}
