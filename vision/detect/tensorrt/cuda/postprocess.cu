// Converts the network's outputs to objects of the source frames. `find_pairs` gathers the pairs of box and class that
// reach the threshold. `objects` selects the best pairs, decodes their boxes, runs NMS, and writes the result, with one
// block per frame.
//
// The number of objects depends on the frame, but the shapes do not: the result has a fixed capacity. It contains the
// number of objects, and the number of candidates that did not fit.
//
// Definitions, in addition to those of heads.cuh:
//
// - CANDIDATES: maximum number of candidates per frame.
// - OBJECTS: maximum number of objects per frame.
// - PAIR_CAPACITY: number of pairs that `find_pairs` can store. If there are more, `objects` reads the scores again.
// - NMS: 1: `objects` runs NMS.
// - SHARED_WORK: 1: `Work` is in shared memory, 0: in global memory.
// - WHOLE_LOADS: 1: the scores of every frame and part can be loaded in units of 16 bytes.
// - RESULT_EXTRAS: number of values that `objects` writes for each object in addition to its box: keypoints, the
//   rotated box, or the position of the mask.
// - MASKS: 1: `objects` lists the objects for `masks`. With MASKS: PROTOTYPES, MASK_COLUMNS, MASK_ROWS (shape of the
//   tensor of prototypes), MASK_SCALE_X, MASK_SCALE_Y (columns and rows per model pixel), HALF_PROTOTYPES (1: fp16).
#include "device.cuh"
#include "heads.cuh"
#include "nms.cuh"
#include "topk.cuh"

#define FULL_WARP 0xFFFFFFFFu
#define PER_LOAD (HALF_SCORES ? 8 : 4)
#define LOADS 2

struct __align__(16) Values {
    ScoreValue at[PER_LOAD];
};

__device__ __forceinline__ Values load_values(const ScoreValue* values_of_frame, u32 at, u32 elements) {
    Values values;
#if WHOLE_LOADS
    if (at < elements) values = *(const Values*)(values_of_frame + at);
#else
    for (u32 i = 0; i < PER_LOAD; i++)
        if (at + i < elements) values.at[i] = values_of_frame[at + i];
#endif
    return values;
}

// Launch: grid (ceil(elements / (256 * LOADS * PER_LOAD)), batch, PARTS) for the elements of the largest part, block
// 256. `letterbox` has set `counts` to 0.
extern "C" __global__ void __launch_bounds__(256)
find_pairs(const Frame* frames, Tensors tensors, u64* all_keys, u32* counts, Threshold limit) {
    u32 row = blockIdx.y, part = blockIdx.z, elements = elements_in(part);
    if (frames[row].width == 0 || blockIdx.x * LOADS * 256 * PER_LOAD >= elements) return;
    const Scores scores(tensors, row, part);
    u64* keys = all_keys + (u64)row * PAIR_CAPACITY;
    u32 start = (blockIdx.x * LOADS * 256 + threadIdx.x) * PER_LOAD;
    Values values[LOADS];
#pragma unroll
    for (int load = 0; load < LOADS; load++)
        values[load] = load_values(scores.values, start + load * 256 * PER_LOAD, elements);
#pragma unroll
    for (int load = 0; load < LOADS; load++) {
        u32 first = start + load * 256 * PER_LOAD;
        u64 found[PER_LOAD];
        bool any = false;
#pragma unroll
        for (u32 i = 0; i < PER_LOAD; i++) {
            u32 at = first + i;
            found[i] = 0;
            if (at < elements) found[i] = pair_key(tensors, scores, row, at, value_of_score(values[load].at[i]), limit);
            any |= found[i] != 0;
        }
        if (!__any_sync(FULL_WARP, any)) continue;
        u32 lane = threadIdx.x % 32;
#pragma unroll
        for (u32 i = 0; i < PER_LOAD; i++) {
            u32 votes = __ballot_sync(FULL_WARP, found[i] != 0), place = 0;
            if (!votes) continue;
            if (lane == 0) place = atomicAdd(&counts[row], (u32)__popc(votes));
            place = __shfl_sync(FULL_WARP, place, 0) + __popc(votes & ((1u << lane) - 1));
            if (found[i] && place < PAIR_CAPACITY) keys[place] = found[i];
        }
    }
}

struct FromList {
    const u64* keys;
    __device__ u64 operator()(u32 i) const { return keys[i]; }
};

// The elements of all parts, one after the other.
struct FromScores {
    const Tensors& tensors;
    u32 frame;
    Threshold limit;
    __device__ u64 operator()(u32 i) const {
        u32 part = 0;
        while (part + 1 < PARTS && i >= elements_in(part)) i -= elements_in(part++);
        const Scores scores(tensors, frame, part);
        return pair_key(tensors, scores, frame, i, value_of_score(scores.values[i]), limit);
    }
};

__device__ __forceinline__ u32 all_elements() {
    u32 elements = 0;
    for (u32 part = 0; part < PARTS; part++) elements += elements_in(part);
    return elements;
}

// Returns the number of boxes over the threshold whose class id has no name. All threads of the block must call this
// function.
__device__ u32 count_unnamed(const Tensors& tensors, u32 frame, Threshold limit) {
#if LABELED
    __shared__ u32 unnamed;
    if (threadIdx.x == 0) unnamed = 0;
    __syncthreads();
    const Scores scores(tensors, frame, 0);
    for (u32 box = threadIdx.x; box < scores.number; box += blockDim.x) {
        float raw = value_of_score(scores.values[box * SCORE_COLUMNS + SCORE_FIRST]);
        if (raw >= limit.floor && activated(raw) >= limit.score && labeled_class(tensors, frame, box) < 0)
            atomicAdd(&unnamed, 1u);
    }
    __syncthreads();
    return unnamed;
#else
    return 0;
#endif
}

template <typename KeyAt>
__device__ void gather_best(KeyAt key_at, u32 count, u64* best) {
    __shared__ u32 gathered;
    u64 mask, prefix;
    find_border(key_at, count, CANDIDATES, &mask, &prefix);
    if (threadIdx.x == 0) gathered = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
        u64 key = key_at(i);
        if (key && (key & mask) >= prefix) best[atomicAdd(&gathered, 1u)] = key;
    }
}

// Returns the number of set flags in the earlier threads of the block. `total` receives the number in the whole block.
__device__ __forceinline__ u32 rank_in_block(bool flag, u32* total) {
    __shared__ u32 of_warp[32];
    u32 votes = __ballot_sync(FULL_WARP, flag), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) of_warp[warp] = __popc(votes);
    __syncthreads();
    u32 before = 0, all = 0;
    for (u32 i = 0; i < blockDim.x / 32; i++) {
        if (i < warp) before += of_warp[i];
        all += of_warp[i];
    }
    __syncthreads();
    *total = all;
    return before + __popc(votes & ((1u << lane) - 1));
}

__device__ __forceinline__ bool is_finite(float value) { return fabsf(value) <= 3.402823466e+38f; }

__device__ __forceinline__ float to_source(float edge, int pad, float ratio, int side) {
    return fminf(fmaxf(__fmul_rn(__fsub_rn(edge, (float)pad), ratio), 0.0f), (float)side);
}

#define SORTED (CANDIDATES <= 64 ? 64 : CANDIDATES <= 128 ? 128 : CANDIDATES <= 256 ? 256 : CANDIDATES <= 512 ? 512 : \
                CANDIDATES <= 1024 ? 1024 : CANDIDATES <= 2048 ? 2048 : CANDIDATES <= 4096 ? 4096 : 8192)

struct __align__(16) Work {
    u64 keys[SORTED];
    float4 boxes[CANDIDATES];
    float areas[CANDIDATES];
    int classes[CANDIDATES];
#if CODING == ROTATED
    Gaussian rotated[CANDIDATES];
#endif
    u8 gone[CANDIDATES];
};

struct Result {
    u32 count, truncated, candidates, unnamed;
};

// An object whose mask `masks` computes: the number of its box, and the part of the prototypes that the box touches.
// `vision.detect.tensorrt.kernels.MASKED` describes the memory layout.
#define NO_BOX 0xFFFFFFFFu
struct Masked {
    u32 box;
    int left, top, right, bottom;
};

// Returns the cells that a box in model pixels touches on one axis, at least one: `low` to `high` (exclusive).
__device__ __forceinline__ void cells_of(float from, float to, float scale, int cells, int* low, int* high) {
    *low = (int)fminf(fmaxf(floorf(__fmul_rn(from, scale)), 0.0f), (float)(cells - 1));
    *high = (int)fminf(fmaxf(ceilf(__fmul_rn(to, scale)), (float)(*low + 1)), (float)cells);
}

// Returns false if one of the further values of a box is not finite.
__device__ __forceinline__ bool has_finite_extras(const Tensors& tensors, u32 frame, u32 box) {
#if EXTRAS
    const ExtraValues values(tensors, frame, box);
    for (u32 i = 0; i < EXTRAS; i++)
        if (!is_finite(values[i])) return false;
#endif
    return true;
}

// Writes the further values of `count` objects to `out`, RESULT_EXTRAS for each. `boxes` are the numbers of their boxes,
// and `places` their candidates. All threads of the block must call this function.
__device__ __forceinline__ void write_extras(
    const Tensors& tensors, u32 frame, const Work* work, const u32* places, u32 count, float* out, Masked* masked) {
#if MASKS
    for (u32 i = count + threadIdx.x; i < OBJECTS; i += blockDim.x) masked[i].box = NO_BOX;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
        float4 box = work->boxes[places[i]];
        Masked object;
        object.box = box_of(index_of(work->keys[places[i]]));
        cells_of(box.x, box.z, (float)MASK_SCALE_X, MASK_COLUMNS, &object.left, &object.right);
        cells_of(box.y, box.w, (float)MASK_SCALE_Y, MASK_ROWS, &object.top, &object.bottom);
        masked[i] = object;
        float* position = out + i * RESULT_EXTRAS;
        position[0] = (float)object.left, position[1] = (float)object.top;
        position[2] = (float)object.right, position[3] = (float)object.bottom;
    }
#elif RESULT_EXTRAS
    for (u32 i = threadIdx.x; i < count * RESULT_EXTRAS; i += blockDim.x) {
        u32 box = box_of(index_of(work->keys[places[i / RESULT_EXTRAS]])), at = i % RESULT_EXTRAS;
        const ExtraValues extras(tensors, frame, box);
#if CODING == ROTATED
        const BoxValues values(tensors, frame, box);
        out[i] = at < 4 ? __fmul_rn(values[at], at & 1 ? (float)UNIT_Y : (float)UNIT_X) : extras[at - 4];
#else
        out[i] = extras[at];
#endif
    }
#endif
}

// Launch: grid (batch), block 512. Writes one element of `results` and up to OBJECTS rows per frame, to host memory.
extern "C" __global__ void __launch_bounds__(512)
objects(const Frame* frames, Tensors tensors, const u64* all_keys, const u32* counts, Threshold limit, Overlaps iou,
        Work* all_work, Masked* masked, Result* results, float4* out_boxes, float* out_scores, int* out_classes,
        float* out_extras) {
    u32 row = blockIdx.x;
    const Frame* frame = frames + row;
    if (frame->width == 0) {
        if (threadIdx.x == 0) results[row] = Result{0, 0, 0, 0};
        return;
    }
#if SHARED_WORK
    DYNAMIC_SHARED(memory);
    Work* work = (Work*)memory;
#else
    Work* work = all_work + row;
#endif
    u32 unnamed = count_unnamed(tensors, row, limit);
    const u64* keys = all_keys + (u64)row * PAIR_CAPACITY;

    u32 found = counts[row], taken = min(found, (u32)CANDIDATES);
    if (found <= CANDIDATES) {
        for (u32 i = threadIdx.x; i < found; i += blockDim.x) work->keys[i] = keys[i];
    } else if (found <= PAIR_CAPACITY) {
        gather_best(FromList{keys}, found, work->keys);
    } else {
        gather_best(FromScores{tensors, row, limit}, all_elements(), work->keys);
    }
    u32 size = 32;
    while (size < taken) size <<= 1;
    for (u32 i = taken + threadIdx.x; i < size; i += blockDim.x) work->keys[i] = 0;
    __syncthreads();
    sort_descending(work->keys, size);

    for (u32 i = threadIdx.x; i < 4 * taken; i += blockDim.x) {  // each thread computes one side of a box
        u32 index = index_of(work->keys[i / 4]);
        ((float*)work->boxes)[i] = coordinate(tensors, row, box_of(index), i % 4);
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < taken; i += blockDim.x) {
        float4 box = work->boxes[i];
        work->gone[i] = !(is_finite(box.x) && is_finite(box.y) && is_finite(box.z) && is_finite(box.w) &&
                          has_finite_extras(tensors, row, box_of(index_of(work->keys[i]))));
        work->areas[i] = area_of(box);
        work->classes[i] = class_of(tensors, row, index_of(work->keys[i]));
#if CODING == ROTATED
        const RotatedBox rotated(tensors, row, box_of(index_of(work->keys[i])));
        const float twelfth = 1.0f / 12.0f;
        work->rotated[i] = Gaussian{
            rotated.x, rotated.y, rotated.width * rotated.width * twelfth, rotated.height * rotated.height * twelfth,
            fmaxf(rotated.width, 0.0f) * fmaxf(rotated.height, 0.0f) * twelfth, rotated.cosine, rotated.sine};
#endif
    }
    __syncthreads();
#if NMS && CODING == ROTATED
    suppress(RotatedBoxes{work->rotated, work->classes, iou}, work->gone, taken);
#elif NMS
    suppress(UprightBoxes{work->boxes, work->areas, work->classes, iou}, work->gone, taken);
#endif
    u32* places = (u32*)work->areas;  // of the objects among the candidates; the areas are no longer needed

    u32 survivors = 0, written = 0;
    u64 first = (u64)row * OBJECTS;
    for (u32 start = 0; start < taken; start += blockDim.x) {
        u32 i = start + threadIdx.x, here, solid_here;
        bool alive = i < taken && !work->gone[i];
        u32 rank = survivors + rank_in_block(alive, &here);
        survivors += here;
        float4 box = make_float4(0, 0, 0, 0);
        if (alive && rank < OBJECTS) {
            box = work->boxes[i];
            box.x = to_source(box.x, frame->pad_x, frame->ratio_x, frame->width);
            box.y = to_source(box.y, frame->pad_y, frame->ratio_y, frame->height);
            box.z = to_source(box.z, frame->pad_x, frame->ratio_x, frame->width);
            box.w = to_source(box.w, frame->pad_y, frame->ratio_y, frame->height);
        }
        bool solid = box.z > box.x && box.w > box.y;  // clipping can leave a box without area
        u32 place = written + rank_in_block(solid, &solid_here);
        written += solid_here;
        if (solid) {
            out_boxes[first + place] = box;
            out_scores[first + place] = score_of(work->keys[i]);
            out_classes[first + place] = work->classes[i];
            places[place] = i;
        }
    }
#if RESULT_EXTRAS
    __syncthreads();
    write_extras(tensors, row, work, places, written, out_extras + first * RESULT_EXTRAS, masked + first);
#endif
    if (threadIdx.x == 0)
        results[row] = Result{written, found - taken + (survivors > OBJECTS ? survivors - OBJECTS : 0), found, unnamed};
}

#if MASKS
#if HALF_PROTOTYPES
typedef u16 PrototypeValue;
__device__ __forceinline__ float value_of_prototype(PrototypeValue value) { return half_to_float(value); }
#else
typedef float PrototypeValue;
__device__ __forceinline__ float value_of_prototype(PrototypeValue value) { return value; }
#endif

#define MASK_WORDS ((MASK_ROWS * MASK_COLUMNS + 31) / 32)

// Launch: grid (OBJECTS, batch), block 256, after `objects`. Writes one bit for each cell in the position of an object's
// mask, row by row, and the lowest bit first, to host memory.
extern "C" __global__ void __launch_bounds__(256)
masks(const Frame* frames, Tensors tensors, const Masked* all_masked, u32* out_masks) {
    u32 object = blockIdx.x, row = blockIdx.y;
    if (frames[row].width == 0) return;
    const Masked masked = all_masked[(u64)row * OBJECTS + object];
    if (masked.box == NO_BOX) return;
    __shared__ float coefficients[PROTOTYPES];
    const ExtraValues values(tensors, row, masked.box);
    for (u32 i = threadIdx.x; i < PROTOTYPES; i += blockDim.x) coefficients[i] = values[i];
    __syncthreads();
    const u32 plane = MASK_ROWS * MASK_COLUMNS;
    const PrototypeValue* prototypes = (const PrototypeValue*)tensors.prototypes + (u64)row * PROTOTYPES * plane;
    u32* words = out_masks + ((u64)row * OBJECTS + object) * MASK_WORDS;
    u32 columns = masked.right - masked.left, cells = columns * (masked.bottom - masked.top);
    for (u32 start = 0; start < cells; start += blockDim.x) {
        u32 cell = start + threadIdx.x;
        float sum = 0.0f;
        if (cell < cells) {
            u32 at = (masked.top + cell / columns) * MASK_COLUMNS + masked.left + cell % columns;
#pragma unroll 8
            for (u32 i = 0; i < PROTOTYPES; i++)
                sum += coefficients[i] * value_of_prototype(prototypes[i * plane + at]);
        }
        u32 votes = __ballot_sync(FULL_WARP, sum > 0.0f);
        if (threadIdx.x % 32 == 0 && cell < cells) words[cell / 32] = votes;
    }
}
#endif
