// Decodes the outputs of a network, for one head per compilation, with the arithmetic of
// vision/detect/reference/heads.py.
//
// Definitions: HEAD, BOXES (cells or queries of one frame), CLASSES, SIGMOID, HALF_SCORES, HALF_BOXES (1: fp16),
// SCORE_COLUMNS and BOX_COLUMNS (row lengths of their tensors; both can be in one tensor), BOX_OFFSET (column of the
// first box value), UNIT_X, UNIT_Y (model pixels per unit of a box), and, for nanodet, BINS, STRIDES, WIDTH, HEIGHT.
#pragma once
#include "device.cuh"

#define NANODET 0
#define YOLOV5 1
#define YOLOV8 2
#define END_TO_END 3
#define RT_DETR 4
#define EFFICIENT_NMS 5  // the four outputs of the plugin EfficientNMS_TRT

#define ONE_CLASS_A_BOX (HEAD == END_TO_END || HEAD == EFFICIENT_NMS)  // the index of a pair is the index of its box

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

struct Threshold {
    float score;         // lowest score of a candidate
    float floor;         // lowest raw value that can reach `score`
    const u8* keep;      // one byte per class: 1 if the detector reports it
};

__device__ __forceinline__ float activated(float raw) {
#if SIGMOID
    return 1.0f / (1.0f + expf(-raw));
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

// ---------------------------------------------------------------------------------------------- pairs of box and class

#if HEAD == YOLOV8
#define ELEMENTS (CLASSES * BOXES)
#define FIRST_ELEMENT (4 * BOXES)
#define SCORES_OF_A_FRAME ((4 + CLASSES) * BOXES)
#else
#define ELEMENTS (BOXES * SCORE_COLUMNS)
#define FIRST_ELEMENT 0
#define SCORES_OF_A_FRAME ELEMENTS
#endif
#define BOXES_OF_A_FRAME (HEAD == YOLOV8 ? SCORES_OF_A_FRAME : BOXES * BOX_COLUMNS)

// The score tensors of one frame. Only EFFICIENT_NMS uses `classes` and `number`.
struct Scores {
    const ScoreValue* values;
    const int* classes;
    u32 number;  // number of valid rows

    __device__ __forceinline__ Scores(const ScoreValue* all, const int* all_classes, const int* numbers, u32 frame)
        : values(all + (u64)frame * SCORES_OF_A_FRAME + FIRST_ELEMENT), classes(0), number(0) {
#if HEAD == EFFICIENT_NMS
        classes = all_classes + (u64)frame * BOXES;
        number = (u32)numbers[frame];
#endif
    }
};

// Returns the key of the pair at element `at` of a frame's scores; 0 if the element is not a score, or is below the
// threshold. `raw` is the value of the element. The threshold is tested first, because most elements are far below it.
__device__ __forceinline__ u64 pair_key(Scores scores, u32 at, float raw, Threshold limit) {
    float score = raw;
#if HEAD == YOLOV5
    u32 box = at / SCORE_COLUMNS, column = at % SCORE_COLUMNS;
    if (column < 5) return 0;
    float objectness = value_of_score(scores.values[box * SCORE_COLUMNS + 4]);
    if (!(objectness >= limit.floor)) return 0;
    u32 class_id = column - 5;
#elif HEAD == END_TO_END
    u32 box = at / SCORE_COLUMNS;
    if (at % SCORE_COLUMNS != 4 || !(raw >= limit.floor)) return 0;
    float named = value_of_score(scores.values[at + 1]);
    if (!(named >= 0.0f && named < (float)CLASSES) || named != floorf(named)) return 0;
    u32 class_id = (u32)named;
#elif HEAD == EFFICIENT_NMS
    u32 box = at, class_id = (u32)scores.classes[at];
    if (at >= scores.number || class_id >= CLASSES || !(raw >= limit.floor)) return 0;
#else
    if (!(raw >= limit.floor)) return 0;
#if HEAD == YOLOV8
    u32 class_id = at / BOXES, box = at % BOXES;
#else
    u32 box = at / SCORE_COLUMNS, class_id = at % SCORE_COLUMNS;
    if (class_id >= CLASSES) return 0;
#endif
#endif
    if (!limit.keep[class_id]) return 0;
    score = activated(score);
#if HEAD == YOLOV5
    score = __fmul_rn(score, activated(objectness));
#endif
    if (!(score >= limit.score)) return 0;
    return key_of(score, ONE_CLASS_A_BOX ? box : box * CLASSES + class_id);
}

__device__ __forceinline__ u32 box_of(u32 index) { return ONE_CLASS_A_BOX ? index : index / CLASSES; }

__device__ __forceinline__ int class_of(Scores scores, u32 index) {
#if HEAD == END_TO_END
    return (int)value_of_score(scores.values[index * SCORE_COLUMNS + 5]);
#elif HEAD == EFFICIENT_NMS
    return scores.classes[index];
#else
    return (int)(index % CLASSES);
#endif
}

// ---------------------------------------------------------------------------------------------- boxes

#if HEAD == NANODET
// Returns the center of a cell along x (axis 0) or y (axis 1), and its stride.
__device__ __forceinline__ float center_of(u32 cell, int axis, float* stride_px) {
    const int strides[] = {STRIDES};
#pragma unroll
    for (int level = 0; level < (int)(sizeof(strides) / sizeof(int)); level++) {
        u32 stride = strides[level], columns = (WIDTH + stride - 1) / stride, rows = (HEIGHT + stride - 1) / stride;
        if (cell < columns * rows) {
            *stride_px = (float)stride;
            return (float)((axis ? cell / columns : cell % columns) * stride) + (float)(stride - 1) * 0.5f;
        }
        cell -= columns * rows;
    }
    *stride_px = 0.0f;
    return 0.0f;
}

// Returns the expectation of the softmax over the bins of one side.
__device__ __forceinline__ float distance_of(const BoxValue* side) {
    float logits[BINS], highest = value_of_box(side[0]);
    logits[0] = highest;
#pragma unroll
    for (int bin = 1; bin < BINS; bin++) {
        logits[bin] = value_of_box(side[bin]);
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
__device__ __forceinline__ float coordinate(const BoxValue* boxes, u32 box, int side) {
    const float unit = side & 1 ? (float)UNIT_Y : (float)UNIT_X;
#if HEAD == NANODET
    float stride, center = center_of(box, side & 1, &stride);
    float distance = __fmul_rn(distance_of(boxes + (u64)box * BOX_COLUMNS + BOX_OFFSET + side * BINS), stride);
    float edge = side < 2 ? __fsub_rn(center, distance) : __fadd_rn(center, distance);
#elif ONE_CLASS_A_BOX
    float edge = value_of_box(boxes[(u64)box * BOX_COLUMNS + side]);
#else
#if HEAD == YOLOV8
    float center = value_of_box(boxes[(u64)(side & 1) * BOXES + box]);
    float extent = value_of_box(boxes[(u64)(2 + (side & 1)) * BOXES + box]);
#else
    float center = value_of_box(boxes[(u64)box * BOX_COLUMNS + BOX_OFFSET + (side & 1)]);
    float extent = value_of_box(boxes[(u64)box * BOX_COLUMNS + BOX_OFFSET + 2 + (side & 1)]);
#endif
    float half = __fmul_rn(extent, 0.5f);
    float edge = side < 2 ? __fsub_rn(center, half) : __fadd_rn(center, half);
#endif
    return __fmul_rn(edge, unit);
}
