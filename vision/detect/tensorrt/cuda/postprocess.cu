// Converts the network's outputs to objects of the source frames. `find_pairs` gathers the pairs of box and class that
// reach the threshold. `objects` selects the best pairs, decodes their boxes, runs NMS, and writes the result, with one
// block per frame.
//
// The number of objects depends on the frame, but the shapes do not: the result has a fixed capacity. It contains the
// number of objects, and the number of candidates that did not fit.
//
// Definitions: those of heads.cuh, CANDIDATES (maximum for NMS), OBJECTS (maximum per frame), PAIR_CAPACITY (pairs that
// `find_pairs` can store; with more, `objects` reads the scores again), NMS, SHARED_WORK, WHOLE_LOADS (1: the scores of
// every frame and part can be loaded in units of 16 bytes).
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

// Returns the number of boxes over the threshold whose class id has no name, in one thread. All threads of the block
// must call this.
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
    u8 gone[CANDIDATES];
};

struct Result {
    u32 count, truncated, candidates, unnamed;
};

// Launch: grid (batch), block 512. Writes one element of `results` and up to OBJECTS rows per frame, to host memory.
extern "C" __global__ void __launch_bounds__(512)
objects(const Frame* frames, Tensors tensors, const u64* all_keys, const u32* counts, Threshold limit, Overlaps iou,
        Work* all_work, Result* results, float4* out_boxes, float* out_scores, int* out_classes) {
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
        work->gone[i] = !(is_finite(box.x) && is_finite(box.y) && is_finite(box.z) && is_finite(box.w));
        work->areas[i] = area_of(box);
        work->classes[i] = class_of(tensors, row, index_of(work->keys[i]));
    }
    __syncthreads();
#if NMS
    suppress(work->boxes, work->areas, work->classes, work->gone, taken, iou);
#endif

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
        }
    }
    if (threadIdx.x == 0)
        results[row] = Result{written, found - taken + (survivors > OBJECTS ? survivors - OBJECTS : 0), found, unnamed};
}
