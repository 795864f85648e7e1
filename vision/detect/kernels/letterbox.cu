// Pictures of any size and format onto the model's canvas, all of a batch in one launch.
//
// The arithmetic is that of vision/detect/letterbox.py (`sample`, `normalised`): bilinear between pixel centres, positions
// in exact integers. Levels are rounded to whole ones at the end, as every 8-bit library does: of the objects that the CPU
// finds in the shipped clip, 100 % instead of 99.6 % are then found with an overlap over 0.98.
//
// Compiled with WIDTH, HEIGHT (of the canvas), HALF_INPUT (1: the engine takes fp16, 0: fp32) and INTERLEAVED (1: the
// tensor is (B, HEIGHT, WIDTH, 4) with a fourth channel of zeros, 0: (B, 3, HEIGHT, WIDTH)).
#include "device.cuh"

struct Normalise {
    float gain[3], offset[3];  // in the order of the model's channels
    int channel[3];            // which of blue, green, red goes to each
    float fill;                // level of the canvas around the picture
};

// The two source pixels that a model pixel lies between: `first`, and the one behind it where `weight` is not 0.
struct Taps {
    int first;
    float weight;
};

struct Levels {
    float blue, green, red;
};

// A position in the source as a whole number of pixels and a rest, in units of 1 / denominator pixels.
struct Position {
    int whole, rest;
};

// Where model pixel `at` of `scaled` looks, for a side of `side` source pixels.
__device__ __forceinline__ Position position(int at, int scaled, int side) {
    int numerator = (2 * at + 1) * side - scaled, denominator = 2 * scaled;
    int whole = numerator < 0 ? -1 : numerator / denominator;  // never below -1/2
    return Position{whole, numerator - whole * denominator};
}

__device__ __forceinline__ Taps taps(Position at, float per_unit, int side) {
    if (at.whole < 0) return Taps{0, 0.0f};
    if (at.whole >= side - 1) return Taps{side - 1, 0.0f};
    return Taps{at.whole, (float)at.rest * per_unit};
}

__device__ __forceinline__ int behind(Taps at, int side) { return at.first + 1 < side ? at.first + 1 : at.first; }

__device__ __forceinline__ float mix(float first, float second, float weight) {
    return first + (second - first) * weight;
}

__device__ __forceinline__ Levels mix(Levels a, Levels b, float weight) {
    Levels result = {mix(a.blue, b.blue, weight), mix(a.green, b.green, weight), mix(a.red, b.red, weight)};
    return result;
}

__device__ __forceinline__ float byte_of(u64 word, int index) { return float_of((u32)(word >> (8 * index)) & 255u); }

// Both pixels are six neighbouring bytes: two or three aligned words instead of six loads. For two columns and more.
__device__ __forceinline__ Levels along_bgr(const u8* row, Taps x, int width) {
    int first = x.first == width - 1 ? width - 2 : x.first;
    float weight = x.first == width - 1 ? 1.0f : x.weight;
    u64 address = (u64)row + 3 * first;
    const u32* words = (const u32*)(address & ~3ull);
    int shift = 8 * (int)(address & 3);
    bool three = shift == 24;
    u64 bytes = ((u64)load(words) | (u64)load(words + 1) << 32) >> shift;
    bytes |= (u64)(load(words + (three ? 2 : 1)) & (three ? 255u : 0u)) << 40;
    Levels a = {byte_of(bytes, 0), byte_of(bytes, 1), byte_of(bytes, 2)};
    Levels b = {byte_of(bytes, 3), byte_of(bytes, 4), byte_of(bytes, 5)};
    return mix(a, b, weight);
}

__device__ __forceinline__ Levels along_bgrx(const u8* row, Taps x, int width) {
    u32 first = load((const u32*)row + x.first), second = load((const u32*)row + behind(x, width));
    Levels a = {byte_of(first, 0), byte_of(first, 1), byte_of(first, 2)};
    Levels b = {byte_of(second, 0), byte_of(second, 1), byte_of(second, 2)};
    return mix(a, b, x.weight);
}

__device__ __forceinline__ float clamped(int fixed) {
    int level = fixed >> 20;
    return float_of(level < 0 ? 0 : level > 255 ? 255 : level);
}

__device__ __forceinline__ Levels from_yuv(const Frame& frame, int luma, int u, int v) {
    int y = luma - frame.luma_offset;
    y = (y < 0 ? 0 : y) * frame.luma + (1 << 19);
    u -= 128, v -= 128;
    Levels result = {
        clamped(y + frame.u_blue * u),
        clamped(y + frame.u_green * u + frame.v_green * v),
        clamped(y + frame.v_red * v),
    };
    return result;
}

template <int FORMAT>
__device__ __forceinline__ Levels along_yuv(const Frame& frame, const u8* luma, int row, Taps x) {
    u64 chroma_row = (u64)(row >> 1) * frame.pitch[1];
    int second = behind(x, frame.width), left = x.first >> 1, right = second >> 1, u0, v0, u1, v1;
    if (FORMAT == FORMAT_NV12) {
        const u8* chroma = frame.plane[1] + chroma_row;
        u0 = load(chroma + 2 * left), v0 = load(chroma + 2 * left + 1);
        u1 = load(chroma + 2 * right), v1 = load(chroma + 2 * right + 1);
    } else {
        const u8 *blue = frame.plane[1] + chroma_row, *red = frame.plane[2] + chroma_row;
        u0 = load(blue + left), v0 = load(red + left);
        u1 = load(blue + right), v1 = load(red + right);
    }
    return mix(from_yuv(frame, load(luma + x.first), u0, v0), from_yuv(frame, load(luma + second), u1, v1), x.weight);
}

enum { ONE_COLUMN = 4 };  // of FORMAT_BGR

template <int FORMAT>
__device__ __forceinline__ Levels along(const Frame& frame, int row, Taps x) {
    const u8* first_plane = frame.plane[0] + (u64)row * frame.pitch[0];
    if (FORMAT == ONE_COLUMN) {
        return Levels{float_of(load(first_plane)), float_of(load(first_plane + 1)), float_of(load(first_plane + 2))};
    }
    if (FORMAT == FORMAT_BGR) return along_bgr(first_plane, x, frame.width);
    if (FORMAT == FORMAT_BGRX) return along_bgrx(first_plane, x, frame.width);
    return along_yuv<FORMAT>(frame, first_plane, row, x);
}

__device__ __forceinline__ float pick(Levels levels, int channel) {
    return channel == 0 ? levels.blue : channel == 1 ? levels.green : levels.red;
}

#if HALF_INPUT
typedef u16 Input;
__device__ __forceinline__ Input to_input(float value) { return float_to_half(value); }
#else
typedef float Input;
__device__ __forceinline__ Input to_input(float value) { return value; }
#endif

#define ACROSS 2  // pixels of a row a thread: 16 bytes in one store where they are interleaved
#define DOWN 4    // rows a thread

struct __align__(2 * sizeof(Input)) Neighbours {  // in one plane
    Input at[ACROSS];
};
struct __align__(4 * sizeof(Input)) Pixel {
    Input at[4];
};
struct __align__(16) Pixels {
    Pixel at[ACROSS];
};

template <int FORMAT>
__device__ __forceinline__ void sample(const Frame& frame, const Taps* columns, Taps y, Levels* levels) {
    int below = behind(y, frame.height);
#pragma unroll
    for (int i = 0; i < ACROSS; i++)
        levels[i] = mix(along<FORMAT>(frame, y.first, columns[i]), along<FORMAT>(frame, below, columns[i]), y.weight);
}

// One branch for all pixels, and none between them: the loads of one do not wait for those of another.
__device__ __forceinline__ void sample(const Frame& frame, const Taps* columns, Taps y, Levels* levels) {
    switch (frame.format) {
        case FORMAT_BGRX: return sample<FORMAT_BGRX>(frame, columns, y, levels);
        case FORMAT_NV12: return sample<FORMAT_NV12>(frame, columns, y, levels);
        case FORMAT_I420: return sample<FORMAT_I420>(frame, columns, y, levels);
        default:
            if (frame.width > 1) return sample<FORMAT_BGR>(frame, columns, y, levels);
            return sample<ONE_COLUMN>(frame, columns, y, levels);
    }
}

// grid (ceil(WIDTH / 64), ceil(HEIGHT / 32), batch), block (32, 8).
extern "C" __global__ void __launch_bounds__(256)
letterbox(const Frame* frames, Input* tensor, u32* counts, Normalise norm) {
    if ((blockIdx.x | blockIdx.y | threadIdx.x | threadIdx.y) == 0) counts[blockIdx.z] = 0;  // of pairs, for `find_pairs`
    const Frame frame = frames[blockIdx.z];
    int left = ACROSS * (blockIdx.x * 32 + threadIdx.x), top = DOWN * (blockIdx.y * 8 + threadIdx.y);
    if (frame.width == 0 || left >= WIDTH) return;

    Taps columns[ACROSS];
    bool in_columns[ACROSS];
    int inside_x = left - frame.pad_x;
    Position x = position(inside_x < 0 ? 0 : inside_x, frame.content_width, frame.width);
#pragma unroll
    for (int i = 0; i < ACROSS; i++, inside_x++) {
        in_columns[i] = inside_x >= 0 && inside_x < frame.content_width;
        columns[i] = taps(x, frame.per_x, frame.width);
        if (inside_x >= 0) {  // a step to the right, without a division
            x.whole += frame.step, x.rest += frame.step_rest;
            if (x.rest >= 2 * frame.content_width) x.whole++, x.rest -= 2 * frame.content_width;
        }
    }
#pragma unroll 1  // more rows at once take more registers, and so fewer blocks at once
    for (int j = 0; j < DOWN; j++) {
        int row = top + j;
        if (row >= HEIGHT) return;
        int inside_y = row - frame.pad_y;
        bool in_rows = inside_y >= 0 && inside_y < frame.content_height;
        Levels levels[ACROSS];
        if (in_rows) {
            Position y = position(inside_y, frame.content_height, frame.height);
            sample(frame, columns, taps(y, frame.per_y, frame.height), levels);
        }
        Pixels pixels = {};
#pragma unroll
        for (int i = 0; i < ACROSS; i++) {
            if (!in_rows || !in_columns[i]) levels[i] = Levels{norm.fill, norm.fill, norm.fill};
#pragma unroll
            for (int c = 0; c < 3; c++) {
                float level = rounded(pick(levels[i], norm.channel[c]));
                pixels.at[i].at[c] = to_input(level * norm.gain[c] + norm.offset[c]);
            }
        }
#if INTERLEAVED
        Pixel* out = (Pixel*)tensor + ((u64)blockIdx.z * HEIGHT + row) * WIDTH + left;
        if (WIDTH % ACROSS == 0) {
            *(Pixels*)out = pixels;
        } else {
            for (int i = 0; i < ACROSS && left + i < WIDTH; i++) out[i] = pixels.at[i];
        }
#else
        Input* out = tensor + ((u64)blockIdx.z * 3 * HEIGHT + row) * WIDTH + left;
#pragma unroll
        for (int c = 0; c < 3; c++, out += HEIGHT * WIDTH) {
            if (WIDTH % ACROSS == 0) {
                *(Neighbours*)out = Neighbours{pixels.at[0].at[c], pixels.at[1].at[c]};
            } else {
                for (int i = 0; i < ACROSS && left + i < WIDTH; i++) out[i] = pixels.at[i].at[c];
            }
        }
#endif
    }
}
