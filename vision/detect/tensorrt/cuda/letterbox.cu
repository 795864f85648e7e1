// Scales a batch of frames of any size and format to the model's canvas, in one launch.
//
// The arithmetic is that of tests/letterbox_reference.py (`sample`, `normalized`): bilinear interpolation between pixel
// centers, with exact integer positions. The result is rounded to integer levels, as in 8-bit libraries. In the shipped
// clip, the GPU finds 100 % of the objects that the CPU finds, with an overlap over 0.98. Without rounding, it finds
// 99.6 %.
//
// The rate of instructions limits this kernel more than the memory does. Therefore, levels become floats without a
// conversion (`raised`), additions replace divisions, and the branch on the format is outside of all loops.
//
// Definitions:
//
// - WIDTH, HEIGHT: size of the canvas.
// - INPUT_TYPE: type of the tensor. 0: fp32, 1: fp16, 2: uint8.
// - INTERLEAVED: shape of the tensor. 0: (B, 3, HEIGHT, WIDTH), 3: (B, HEIGHT, WIDTH, 3), 4: (B, HEIGHT, WIDTH, 4) with
//   zeros in the fourth channel.
// - RED_FIRST: 1: the channels are red, green, blue, 0: blue, green, red.
// - FRACTION_BITS: number of fraction bits of the factors in `Frame`.
// - DOWN: number of rows per thread.
#include "device.cuh"

struct Normalize {
    float gain[3], offset[3];  // in the order of the model's channels
    float fill[3];             // normalized level of the canvas around the frame
};

// ---------------------------------------------------------------------------------------------------------- positions

// A position in the source: whole pixels, and a remainder in units of 1 / (2 * scaled) pixels.
struct Position {
    int whole, rest;
};

// Returns the source position of model pixel `at` on a side of `scaled` model pixels and `side` source pixels.
// `per_unit` is 1 / (2 * scaled). Positions range from -1/2 (whole part -1) to side - 1/2.
__device__ __forceinline__ Position position(int at, int scaled, float per_unit, int side) {
    int numerator = (2 * at + 1) * side - scaled, denominator = 2 * scaled;
    int whole = (int)((float)numerator * per_unit);  // off by at most 1 if sides have at most 15 bits
    int rest = numerator - whole * denominator;
    if (rest < 0) whole--, rest += denominator;
    if (rest >= denominator) whole++, rest -= denominator;
    return Position{whole, rest};
}

// The two source rows between which a model pixel lies.
struct Rows {
    int first, second;
    float weight;  // of `second`
};

__device__ __forceinline__ Rows rows_at(Position y, const Frame& frame) {
    return Rows{max(y.whole, 0), min(y.whole + 1, frame.height - 1), (float)y.rest * frame.per_y};
}

// The first of two neighboring source columns. Both can be read, except in a frame with a single column.
struct Columns {
    int first;
    float weight;  // of the second column
};

__device__ __forceinline__ Columns columns_at(Position x, const Frame& frame) {
    int last = max(frame.width - 2, 0);
    if (x.whole < 0) return Columns{0, 0.0f};
    if (x.whole > last) return Columns{last, 1.0f};
    return Columns{x.whole, (float)x.rest * frame.per_x};
}

// ------------------------------------------------------------------------------------------------------------- levels

// 2^23. Floats from this value on have no fraction, so that one addition converts or rounds a number. The dedicated
// instructions run at a quarter of the rate of an addition.
#define WHOLE 8388608.0f

// Returns WHOLE + whole, for `whole` from 0 to 2^22.
__device__ __forceinline__ float raised(u32 whole) { return float_of_bits(0x4b000000u | whole); }

// Returns WHOLE + fixed / 2^FRACTION_BITS, rounded down, in one instruction.
__device__ __forceinline__ float raised_quotient(u32 fixed) {
    return float_of_bits(funnel(fixed, 0x4b000000u >> (32 - FRACTION_BITS), FRACTION_BITS));
}

// Converts an integer from 0 to 2^22.
__device__ __forceinline__ float float_of(u32 whole) { return raised(whole) - WHOLE; }

// Rounds a value from 0 to 2^22 to the nearest integer, ties to even.
__device__ __forceinline__ float rounded(float value) { return value + WHOLE - WHOLE; }

struct Levels {
    float blue, green, red;
};

// Levels plus WHOLE. Setting bits converts an integer to such a float. Their differences are those of the levels.
struct Raised {
    float blue, green, red;
};

__device__ __forceinline__ float mix(float first, float second, float weight) {
    return first + (second - first) * weight;
}

__device__ __forceinline__ Levels mix(Levels a, Levels b, float weight) {
    return Levels{mix(a.blue, b.blue, weight), mix(a.green, b.green, weight), mix(a.red, b.red, weight)};
}

__device__ __forceinline__ float mix_raised(float first, float second, float weight) {
    return (first - WHOLE) + (second - first) * weight;
}

__device__ __forceinline__ Levels mix(Raised a, Raised b, float weight) {
    return Levels{
        mix_raised(a.blue, b.blue, weight),
        mix_raised(a.green, b.green, weight),
        mix_raised(a.red, b.red, weight),
    };
}

// Returns the levels of blue, green, and red in the low three bytes of a word.
__device__ __forceinline__ Raised raised_bytes(u32 word) {
    return Raised{raised(word & 255u), raised(word >> 8 & 255u), raised(word >> 16 & 255u)};
}

__device__ __forceinline__ float raised_fixed(int fixed) {
    return raised_quotient((u32)max(min(fixed, (256 << FRACTION_BITS) - 1), 0));
}

// ------------------------------------------------------------------------------------------------------------ sources

// Returns an address in a plane. An offset of 32 bits is large enough.
__device__ __forceinline__ const u8* at(const u8* plane, u32 offset) { return plane + offset; }

// One column of model pixels, for frames of one format. It stores the byte offsets of its two source pixels in a row.
// `along` interpolates between these two pixels of a source row, and returns the levels.
template <int FORMAT>
struct Column;

template <int BYTES>
struct PackedColumn {
    int pixels;
    float weight;

    __device__ __forceinline__ PackedColumn(Columns x) : pixels(BYTES * x.first), weight(x.weight) {}
};

template <>
struct Column<FORMAT_BGR> : PackedColumn<3> {
    using PackedColumn<3>::PackedColumn;

    // Reads six neighboring bytes as two or three aligned words instead of six loads.
    __device__ __forceinline__ Levels along(const Frame& frame, int row) const {
        u64 address = (u64)at(frame.plane[0], row * frame.pitch[0] + pixels);
        const u32* words = (const u32*)(address & ~3ull);
        u32 shift = 8 * (u32)(address & 3);
        bool three = shift == 24;
        u32 low = load(words), middle = load(words + 1), high = load(words + (three ? 2 : 1));
        u32 first = funnel(low, middle, shift), second = funnel(middle, high, shift);
        return mix(raised_bytes(first), raised_bytes(funnel(first, second, 24)), weight);
    }
};

template <>
struct Column<FORMAT_BGRX> : PackedColumn<4> {
    using PackedColumn<4>::PackedColumn;

    __device__ __forceinline__ Levels along(const Frame& frame, int row) const {
        const u32* words = (const u32*)at(frame.plane[0], row * frame.pitch[0] + pixels);
        return mix(raised_bytes(load(words)), raised_bytes(load(words + 1)), weight);
    }
};

// Stands for frames with a single column, in bgr or bgrx.
enum { ONE_COLUMN = 4 };

template <>
struct Column<ONE_COLUMN> {
    __device__ __forceinline__ Column(Columns) {}

    __device__ __forceinline__ Levels along(const Frame& frame, int row) const {
        const u8* pixel = at(frame.plane[0], row * frame.pitch[0]);
        return Levels{float_of(load(pixel)), float_of(load(pixel + 1)), float_of(load(pixel + 2))};
    }
};

__device__ __forceinline__ Raised from_yuv(const Frame& frame, int luma, int u, int v) {
    const int half = 1 << (FRACTION_BITS - 1), gray = 128;
    int y = max(luma - frame.luma_offset, 0);
    int blue = u * frame.u_blue + (half - gray * frame.u_blue);
    int green = u * frame.u_green + (v * frame.v_green + (half - gray * (frame.u_green + frame.v_green)));
    int red = v * frame.v_red + (half - gray * frame.v_red);
    return Raised{
        raised_fixed(y * frame.luma + blue),
        raised_fixed(y * frame.luma + green),
        raised_fixed(y * frame.luma + red),
    };
}

template <int FORMAT>
struct YuvColumn {
    int luma, chroma[2];
    float weight;

    __device__ __forceinline__ YuvColumn(Columns x) : luma(x.first), weight(x.weight) {
#pragma unroll
        for (int i = 0; i < 2; i++) chroma[i] = ((x.first + i) >> 1) * (FORMAT == FORMAT_NV12 ? 2 : 1);
    }

    __device__ __forceinline__ Levels along(const Frame& frame, int row) const {
        const u8* y = at(frame.plane[0], row * frame.pitch[0] + luma);
        Raised levels[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int offset = (row >> 1) * frame.pitch[1] + chroma[i];
            const u8* u = at(frame.plane[1], offset);
            const u8* v = FORMAT == FORMAT_NV12 ? u + 1 : at(frame.plane[2], offset);
            levels[i] = from_yuv(frame, load(y + i), load(u), load(v));
        }
        return mix(levels[0], levels[1], weight);
    }
};

template <>
struct Column<FORMAT_NV12> : YuvColumn<FORMAT_NV12> {
    using YuvColumn<FORMAT_NV12>::YuvColumn;
};

template <>
struct Column<FORMAT_I420> : YuvColumn<FORMAT_I420> {
    using YuvColumn<FORMAT_I420>::YuvColumn;
};

// ------------------------------------------------------------------------------------------------------------- tensor

#define ACROSS 2  // adjacent pixels per thread, so that an interleaved fp16 store has 16 bytes

#if INPUT_TYPE == 2  // levels: there is no normalization
typedef u8 Input;
typedef u16 Pair;
__device__ __forceinline__ Input to_input(float value) { return (Input)value; }
__device__ __forceinline__ Pair to_pair(float first, float second) { return (Pair)((u32)first | (u32)second << 8); }
#elif INPUT_TYPE == 1
typedef u16 Input;
typedef u32 Pair;
__device__ __forceinline__ Input to_input(float value) { return float_to_half(value); }
__device__ __forceinline__ Pair to_pair(float first, float second) { return floats_to_halves(first, second); }
#else
typedef float Input;
struct __align__(8) Pair {
    float first, second;
};
__device__ __forceinline__ Input to_input(float value) { return value; }
__device__ __forceinline__ Pair to_pair(float first, float second) { return Pair{first, second}; }
#endif

// A pixel of the tensor: normalized, in the order of the model's channels.
struct Pixel {
    float channel[3];
};

__device__ __forceinline__ Pixel normalized(Levels levels, const Normalize& norm) {
    float first = RED_FIRST ? levels.red : levels.blue, third = RED_FIRST ? levels.blue : levels.red;
    return Pixel{{
        rounded(first) * norm.gain[0] + norm.offset[0],
        rounded(levels.green) * norm.gain[1] + norm.offset[1],
        rounded(third) * norm.gain[2] + norm.offset[2],
    }};
}

#if INTERLEAVED == 3

__device__ __forceinline__ void store(Input* tensor, int row, int left, Pixel a, Pixel b) {
    Input* out = tensor + (((u64)blockIdx.y * HEIGHT + row) * WIDTH + left) * 3;
#pragma unroll
    for (int c = 0; c < 3; c++) {
        out[c] = to_input(a.channel[c]);
        if (WIDTH % ACROSS == 0 || left + 1 < WIDTH) out[3 + c] = to_input(b.channel[c]);
    }
}

#elif INTERLEAVED == 4

struct __align__(4 * sizeof(Input)) Interleaved {
    Pair at[2];
};

__device__ __forceinline__ void store(Input* tensor, int row, int left, Pixel a, Pixel b) {
    Interleaved* out = (Interleaved*)tensor + ((u64)blockIdx.y * HEIGHT + row) * WIDTH + left;
    Interleaved first = {{to_pair(a.channel[0], a.channel[1]), to_pair(a.channel[2], 0.0f)}};
    Interleaved second = {{to_pair(b.channel[0], b.channel[1]), to_pair(b.channel[2], 0.0f)}};
#if INPUT_TYPE == 1
    if (WIDTH % ACROSS == 0) {
        store_words(out, first.at[0], first.at[1], second.at[0], second.at[1]);
        return;
    }
#endif
    out[0] = first;
    if (WIDTH % ACROSS == 0 || left + 1 < WIDTH) out[1] = second;
}

#else

__device__ __forceinline__ void store(Input* tensor, int row, int left, Pixel a, Pixel b) {
    Input* out = tensor + ((u64)blockIdx.y * 3 * HEIGHT + row) * WIDTH + left;
#pragma unroll
    for (int c = 0; c < 3; c++, out += HEIGHT * WIDTH) {
        if (WIDTH % ACROSS == 0) {
            *(Pair*)out = to_pair(a.channel[c], b.channel[c]);
        } else {
            out[0] = to_input(a.channel[c]);
            if (left + 1 < WIDTH) out[1] = to_input(b.channel[c]);
        }
    }
}

#endif

// Writes the pixels of one thread: two columns from `left` on, and DOWN rows from `top` on.
template <int FORMAT>
__device__ __forceinline__ void draw(
    const Frame& frame, const Columns* x, const bool* inside, int left, int top, Input* tensor, const Normalize& norm
) {
    const Column<FORMAT> columns[] = {Column<FORMAT>(x[0]), Column<FORMAT>(x[1])};
    int inside_y = top - frame.pad_y;
    Position y = position(max(inside_y, 0), frame.content_height, frame.per_y, frame.height);
#pragma unroll 1  // unrolling would need more registers, so that fewer blocks could run at the same time
    for (int row = top, end = min(top + DOWN, HEIGHT); row < end; row++, inside_y++) {
        Pixel fill = {{norm.fill[0], norm.fill[1], norm.fill[2]}}, pixels[ACROSS] = {fill, fill};
        if (inside_y >= 0 && inside_y < frame.content_height) {
            Rows rows = rows_at(y, frame);
            y.whole += frame.step, y.rest += frame.step_rest;  // go to the next row
            if (y.rest >= 2 * frame.content_height) y.whole++, y.rest -= 2 * frame.content_height;
#pragma unroll
            for (int i = 0; i < ACROSS; i++) {
                Levels above = columns[i].along(frame, rows.first), below = columns[i].along(frame, rows.second);
                Pixel pixel = normalized(mix(above, below, rows.weight), norm);
#pragma unroll
                for (int c = 0; c < 3; c++) pixels[i].channel[c] = inside[i] ? pixel.channel[c] : fill.channel[c];
            }
        }
        store(tensor, row, left, pixels[0], pixels[1]);
    }
}

// Launch: grid (ceil(ceil(WIDTH / ACROSS) * ceil(HEIGHT / DOWN) / 256), batch), block 256. Threads are numbered across
// the whole canvas, so that no thread is idle at the edges.
extern "C" __global__ void __launch_bounds__(256)
letterbox(const Frame* frames, Input* tensor, u32* counts, Normalize norm) {
    const int across = (WIDTH + ACROSS - 1) / ACROSS;
    int index = blockIdx.x * 256 + threadIdx.x;
    if (index == 0) counts[blockIdx.y] = 0;  // number of pairs, which `find_pairs` increases
    const Frame frame = frames[blockIdx.y];
    int left = index % across * ACROSS, top = index / across * DOWN;
    if (frame.width == 0 || top >= HEIGHT) return;

    Columns x[ACROSS];
    bool inside[ACROSS];
#pragma unroll
    for (int i = 0; i < ACROSS; i++) {
        int inside_x = left + i - frame.pad_x;
        inside[i] = inside_x >= 0 && inside_x < frame.content_width;
        x[i] = columns_at(position(max(inside_x, 0), frame.content_width, frame.per_x, frame.width), frame);
    }
    // One branch for all pixels of the thread, so that their loads do not wait for each other.
    switch (frame.format) {
        case FORMAT_NV12: return draw<FORMAT_NV12>(frame, x, inside, left, top, tensor, norm);
        case FORMAT_I420: return draw<FORMAT_I420>(frame, x, inside, left, top, tensor, norm);
        default:
            if (frame.width == 1) return draw<ONE_COLUMN>(frame, x, inside, left, top, tensor, norm);
            if (frame.format == FORMAT_BGRX) return draw<FORMAT_BGRX>(frame, x, inside, left, top, tensor, norm);
            return draw<FORMAT_BGR>(frame, x, inside, left, top, tensor, norm);
    }
}
