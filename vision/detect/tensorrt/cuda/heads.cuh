// Decodes a network's outputs. Each compilation is for one layout of outputs. The arithmetic is that of
// vision/detect/reference/decoder.py.
//
// Boxes are in one part, or in one part per stride, each with its own tensors. Definitions:
//
// - PARTS, PART_BOXES (boxes of each part), BOXES (of all parts), CLASSES, SIGMOID, SOFTMAX (over the classes of a box).
// - HALF_SCORES, HALF_BOXES (1: fp16).
// - For SCORE, OBJECTNESS, BOX, and CLASS (the class id of a box): _COLUMNS (values of a box in the tensor), _FIRST
//   (column of the first value).
// - SCORES_BY_COLUMN, BOXES_BY_COLUMN (1: the tensor has a column per box, 0: a row per box). Objectness is stored like
//   scores.
// - FACTOR: 0: no objectness, 1: the score is the product of class score and objectness, 2: the root of this product.
// - LABELED: 1: one score and one class per box, 0: a score per class.
// - CLASS_TYPE and NUMBER_TYPE (of the class ids, and of the number of valid boxes): see `integer_of`.
// - CODING, UNIT_X, UNIT_Y (model pixels per unit of a box). With cells: BINS, STRIDES, CENTER_SCALE, CENTER_SHIFT
//   (center of a cell = (cell + CENTER_SCALE) * stride + CENTER_SHIFT), WIDTH, HEIGHT.
// - EXTRAS (number of further values of each box). EXTRA_COLUMNS, EXTRA_FIRST, and EXTRAS_BY_COLUMN are as for boxes.
//   The type of these values is that of boxes.
#pragma once
#include "device.cuh"

#define DISTANCES 0
#define GRID 1
#define CENTERS 2
#define CORNERS 3
#define CORNERS_YX 4
#define ROTATED 5

#define PRODUCT 1
#define ROOT 2

#if HALF_SCORES
typedef u16 ScoreValue;
__device__ __forceinline__ float value_of_score(ScoreValue value) { return half_to_float(value); }
#else
typedef float ScoreValue;
__device__ __forceinline__ float value_of_score(ScoreValue value) { return value; }
#endif

#if HALF_BOXES
typedef u16 BoxValue;
__device__ __forceinline__ float value_of_box(BoxValue value) { return half_to_float(value); }
#else
typedef float BoxValue;
__device__ __forceinline__ float value_of_box(BoxValue value) { return value; }
#endif

// Addresses of the engine's outputs, as `vision.detect.tensorrt.kernels.PostprocessProgram.tensors` writes them.
struct Tensors {
    const ScoreValue* scores[PARTS];
    const ScoreValue* objectness[PARTS];
    const BoxValue* boxes[PARTS];
    const BoxValue* extras[PARTS];  // 0 if there are none
    const void* classes;
    const void* number;  // of valid boxes
    const void* prototypes;
};

struct Threshold {
    float score;         // lowest score of a candidate
    float floor;         // lowest raw value that can reach `score`
    const u8* keep;      // one byte per class: 1 if the detector reports it
};

__device__ __forceinline__ u32 boxes_in(u32 part) {
    const u32 boxes[] = {PART_BOXES};
    return boxes[PARTS == 1 ? 0 : part];
}

// Replaces the number of a box by its number in its part. Returns the part.
__device__ __forceinline__ u32 part_of(u32* box) {
    u32 part = 0;
    while (part + 1 < PARTS && *box >= boxes_in(part)) *box -= boxes_in(part++);
    return part;
}

__device__ __forceinline__ float activated(float raw) {
#if SIGMOID
    return 1.0f / (1.0f + expf(-raw));
#elif FACTOR == ROOT
    return fminf(fmaxf(raw, 0.0f), 1.0f);
#else
    return raw;
#endif
}

// Returns the sort key of a candidate, which is never 0. A higher score or, if equal, a lower index has a higher key.
__device__ __forceinline__ u64 key_of(float score, u32 index) {
    return (u64)__float_as_uint(score + 0.0f) << 32 | (0xFFFFFFFFu - index);  // adding 0.0f turns -0 into 0
}
__device__ __forceinline__ u32 index_of(u64 key) { return 0xFFFFFFFFu - (u32)key; }
__device__ __forceinline__ float score_of(u64 key) { return __uint_as_float((u32)(key >> 32)); }

// Returns an integer that a tensor stores as int32 (1), int64 (2), float (3), or fp16 (4). Returns -1 if the value is
// not a whole number, or is out of range: negative or, for all types except int32, larger than 2^24.
__device__ __forceinline__ int integer_of(const void* values, u64 at, int type) {
    if (type == 1) return max(((const int*)values)[at], -1);
    if (type == 2) {
        long long value = ((const long long*)values)[at];
        return value >= 0 && value <= 1 << 24 ? (int)value : -1;
    }
    float value = type == 3 ? ((const float*)values)[at] : half_to_float(((const u16*)values)[at]);
    return value >= 0.0f && value <= 16777216.0f && value == floorf(value) ? (int)value : -1;
}

// ------------------------------------------------------------------------------------- candidates: pairs of box, class

// Position of value `column` of a box in the part of one frame.
__device__ __forceinline__ u32 score_at(u32 boxes, u32 box, u32 column, u32 columns) {
    return SCORES_BY_COLUMN ? column * boxes + box : box * columns + column;
}

// Number of the elements of a part that contain scores. They are a range of the part's tensor, which `find_pairs` reads
// completely.
__device__ __forceinline__ u32 elements_in(u32 part) {
    return boxes_in(part) * (SCORES_BY_COLUMN ? CLASSES : SCORE_COLUMNS);
}
__device__ __forceinline__ u32 first_element(u32 part) { return SCORES_BY_COLUMN ? SCORE_FIRST * boxes_in(part) : 0; }

// The scores of one frame in one part.
struct Scores {
    const ScoreValue* values;  // from `first_element`
    const ScoreValue* objectness;
    u32 boxes, start;  // boxes in the part, and in those before it
    u32 number;        // of valid boxes

    __device__ __forceinline__ Scores(const Tensors& tensors, u32 frame, u32 part)
        : values(0), objectness(0), boxes(boxes_in(part)), start(0), number(boxes) {
        values = tensors.scores[part] + (u64)frame * boxes * SCORE_COLUMNS + first_element(part);
#if FACTOR
        objectness = tensors.objectness[part] + (u64)frame * boxes * OBJECTNESS_COLUMNS;
#endif
        for (u32 before = 0; before < part; before++) start += boxes_in(before);
#if LABELED && NUMBER_TYPE
        int valid = integer_of(tensors.number, frame, NUMBER_TYPE);
        number = (u32)min(max(valid, 0), (int)boxes);
#endif
    }
};

// Returns the class of a box, or -1 if it has no name.
__device__ __forceinline__ int labeled_class(const Tensors& tensors, u32 frame, u32 box) {
#if LABELED
    int id = integer_of(tensors.classes, ((u64)frame * BOXES + box) * CLASS_COLUMNS + CLASS_FIRST, CLASS_TYPE);
    return id < CLASSES ? id : -1;
#else
    return -1;
#endif
}

// Returns the key of the pair at element `at` of a frame's scores in a part, or 0 if the pair is not a candidate. `raw`
// is the element's value. Most elements are far below the threshold, so the threshold is tested first.
__device__ __forceinline__ u64 pair_key(
    const Tensors& tensors, const Scores& scores, u32 frame, u32 at, float raw, Threshold limit) {
    if (!(raw >= limit.floor)) return 0;
#if LABELED
    u32 box = at / SCORE_COLUMNS;
    if (at % SCORE_COLUMNS != SCORE_FIRST || box >= scores.number) return 0;
    int class_id = labeled_class(tensors, frame, box);
    if (class_id < 0 || !limit.keep[class_id]) return 0;
    float score = activated(raw);
    return score >= limit.score ? key_of(score, box) : 0;
#else
#if SCORES_BY_COLUMN
    u32 class_id = at / scores.boxes, box = at % scores.boxes;
#else
    u32 box = at / SCORE_COLUMNS, class_id = at % SCORE_COLUMNS - SCORE_FIRST;  // wraps for columns before the first
    if (class_id >= CLASSES) return 0;
#endif
    if (!limit.keep[class_id]) return 0;
    float score = activated(raw);
#if FACTOR
    float factor = value_of_score(scores.objectness[score_at(scores.boxes, box, OBJECTNESS_FIRST, OBJECTNESS_COLUMNS)]);
    if (!(factor >= limit.floor)) return 0;
    score = __fmul_rn(score, activated(factor));
#if FACTOR == ROOT
    score = __fsqrt_rn(score);
#endif
#endif
    const u32 column = SCORES_BY_COLUMN ? 0 : SCORE_FIRST;
#if !SOFTMAX
    if (!(score >= limit.score)) return 0;
#endif
    for (u32 other = 0; other < CLASSES; other++) {  // the box is of its best class
        float rival = value_of_score(scores.values[score_at(scores.boxes, box, column + other, SCORE_COLUMNS)]);
        if ((rival > raw || (rival == raw && other < class_id)) && limit.keep[other]) return 0;
    }
#if SOFTMAX
    float highest = raw, sum = 0.0f;  // over all classes, also those that are not reported
    for (u32 other = 0; other < CLASSES; other++)
        highest = fmaxf(highest, value_of_score(scores.values[score_at(scores.boxes, box, column + other, SCORE_COLUMNS)]));
    for (u32 other = 0; other < CLASSES; other++)
        sum += expf(value_of_score(scores.values[score_at(scores.boxes, box, column + other, SCORE_COLUMNS)]) - highest);
    score = expf(raw - highest) / sum;
    if (!(score >= limit.score)) return 0;
#endif
    return key_of(score, (scores.start + box) * CLASSES + class_id);
#endif
}

__device__ __forceinline__ u32 box_of(u32 index) { return LABELED ? index : index / CLASSES; }

__device__ __forceinline__ int class_of(const Tensors& tensors, u32 frame, u32 index) {
    return LABELED ? labeled_class(tensors, frame, index) : (int)(index % CLASSES);
}

// ---------------------------------------------------------------------------------------------- boxes

#if CODING == DISTANCES || CODING == GRID
// Returns the column (axis 0) or row (axis 1) of a cell in the grid of its stride.
__device__ __forceinline__ float cell_of(u32 box, int axis, float* stride_px) {
    const int strides[] = {STRIDES};
#pragma unroll
    for (int level = 0; level < (int)(sizeof(strides) / sizeof(int)); level++) {
        u32 stride = strides[level], columns = (WIDTH + stride - 1) / stride, rows = (HEIGHT + stride - 1) / stride;
        if (box < columns * rows) {
            *stride_px = (float)stride;
            return (float)(axis ? box / columns : box % columns);
        }
        box -= columns * rows;
    }
    *stride_px = 0.0f;
    return 0.0f;
}
#endif

// The values of one box. `step` is the distance between two successive values.
struct BoxValues {
    const BoxValue* values;
    u32 step;

    __device__ __forceinline__ BoxValues(const Tensors& tensors, u32 frame, u32 box) {
        u32 part = part_of(&box), boxes = boxes_in(part);
        values = tensors.boxes[part] + (u64)frame * boxes * BOX_COLUMNS;
        values += BOXES_BY_COLUMN ? (u64)BOX_FIRST * boxes + box : (u64)box * BOX_COLUMNS + BOX_FIRST;
        step = BOXES_BY_COLUMN ? boxes : 1;
    }
    __device__ __forceinline__ float operator[](u32 at) const { return value_of_box(values[at * step]); }
};

#if EXTRAS
// The further values of one box. Points are in units of a box, also if the tensor stores them relative to the cell.
struct ExtraValues {
    const BoxValue* values;
    u32 step;
#if CODING == GRID
    float stride, cells[2];  // column and row of the cell
#endif

    __device__ __forceinline__ ExtraValues(const Tensors& tensors, u32 frame, u32 box) {
#if CODING == GRID
        cells[0] = cell_of(box, 0, &stride), cells[1] = cell_of(box, 1, &stride);
#endif
        u32 part = part_of(&box), boxes = boxes_in(part);
        values = tensors.extras[part] + (u64)frame * boxes * EXTRA_COLUMNS;
        values += EXTRAS_BY_COLUMN ? (u64)EXTRA_FIRST * boxes + box : (u64)box * EXTRA_COLUMNS + EXTRA_FIRST;
        step = EXTRAS_BY_COLUMN ? boxes : 1;
    }

    __device__ __forceinline__ float operator[](u32 at) const {
        float value = value_of_box(values[at * step]);
#if CODING == GRID
        value = __fmul_rn(__fadd_rn(value, at & 1 ? cells[1] : cells[0]), stride);
#endif
        return value;
    }
};
#endif

#if CODING == ROTATED
// A box before its rotation, in model pixels, and the cosine and sine of its angle.
struct RotatedBox {
    float x, y, width, height, cosine, sine;

    __device__ __forceinline__ RotatedBox(const Tensors& tensors, u32 frame, u32 box) {
        const BoxValues values(tensors, frame, box);
        const ExtraValues angle(tensors, frame, box);
        x = __fmul_rn(values[0], (float)UNIT_X), y = __fmul_rn(values[1], (float)UNIT_Y);
        width = __fmul_rn(values[2], (float)UNIT_X), height = __fmul_rn(values[3], (float)UNIT_Y);
        cosine = cosf(angle[0]), sine = sinf(angle[0]);
    }

    // Returns x1, y1, x2, or y2 (side 0 to 3) of the upright box around this box.
    __device__ __forceinline__ float coordinate(int side) const {
        float c = fabsf(cosine), s = fabsf(sine);
        float reach = side & 1 ? __fadd_rn(__fmul_rn(width, s), __fmul_rn(height, c))
                               : __fadd_rn(__fmul_rn(width, c), __fmul_rn(height, s));
        float half = __fmul_rn(reach, 0.5f), center = side & 1 ? y : x;
        return side < 2 ? __fsub_rn(center, half) : __fadd_rn(center, half);
    }
};
#endif

#if CODING == DISTANCES
// Returns the expectation of the softmax over the bins of one side.
__device__ __forceinline__ float distance_of(const BoxValues& box, int side) {
    float logits[BINS], highest = box[side * BINS];
    logits[0] = highest;
#pragma unroll
    for (int bin = 1; bin < BINS; bin++) {
        logits[bin] = box[side * BINS + bin];
        highest = fmaxf(highest, logits[bin]);
    }
    float sum = 0.0f, weighted = 0.0f;
#pragma unroll
    for (int bin = 0; bin < BINS; bin++) {
        float weight = expf(logits[bin] - highest);
        sum += weight;
        weighted += weight * (float)bin;
    }
    return weighted / sum;
}
#endif

// Returns x1, y1, x2, or y2 (side 0 to 3) of a box, in model pixels.
__device__ __forceinline__ float coordinate(const Tensors& tensors, u32 frame, u32 box, int side) {
#if CODING == ROTATED
    return RotatedBox(tensors, frame, box).coordinate(side);
#else
    const float unit = side & 1 ? (float)UNIT_Y : (float)UNIT_X;
    const BoxValues values(tensors, frame, box);
#if CODING == DISTANCES
    float stride, cell = cell_of(box, side & 1, &stride);
    float center = __fadd_rn(__fmul_rn(__fadd_rn(cell, (float)CENTER_SCALE), stride), (float)CENTER_SHIFT);
    float distance = __fmul_rn(distance_of(values, side), stride);
    float edge = side < 2 ? __fsub_rn(center, distance) : __fadd_rn(center, distance);
#elif CODING == CORNERS
    float edge = values[side];
#elif CODING == CORNERS_YX
    float edge = values[side ^ 1];
#else
    float center = values[side & 1], extent = values[2 + (side & 1)];
#if CODING == GRID
    float stride, cell = cell_of(box, side & 1, &stride);
    center = __fmul_rn(__fadd_rn(center, cell), stride);
    extent = __fmul_rn(expf(extent), stride);
#endif
    float half = __fmul_rn(extent, 0.5f);
    float edge = side < 2 ? __fsub_rn(center, half) : __fadd_rn(center, half);
#endif
    return __fmul_rn(edge, unit);
#endif
}
