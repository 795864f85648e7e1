// Greedy non-maximum suppression of sorted candidates, with the arithmetic of vision/detect/reference/postprocess.py, and
// of rotated.py for rotated boxes.
#pragma once
#include "device.cuh"

__device__ __forceinline__ float side_of(float low, float high) { return fmaxf(__fsub_rn(high, low), 0.0f); }

__device__ __forceinline__ float area_of(float4 box) {
    return __fmul_rn(side_of(box.x, box.z), side_of(box.y, box.w));
}

// Returns true if the kept box `a` suppresses box `b`. Each operation is rounded, without fused multiply-add.
__device__ __forceinline__ bool suppresses(float4 a, float area_a, float4 b, float area_b, float iou) {
    float width = side_of(fmaxf(a.x, b.x), fminf(a.z, b.z));
    float height = side_of(fmaxf(a.y, b.y), fminf(a.w, b.w));
    float intersection = __fmul_rn(width, height);
    float joined = __fsub_rn(__fadd_rn(area_a, area_b), intersection);
    return intersection > __fmul_rn(iou, joined);
}

// Overlaps above which a box suppresses boxes of the same class (`same`), and of other classes (`across`).
struct Overlaps {
    float same, across;
};

// Sorted candidates with upright boxes.
struct UprightBoxes {
    const float4* boxes;
    const float* areas;
    const int* classes;
    Overlaps iou;

    struct One {
        float4 box;
        float area;
        int class_id;
    };
    __device__ __forceinline__ One at(u32 i) const { return One{boxes[i], areas[i], classes[i]}; }

    __device__ __forceinline__ bool suppress(const One& a, const One& b) const {
        return suppresses(a.box, a.area, b.box, b.area, a.class_id == b.class_id ? iou.same : iou.across);
    }
};

// The normal distribution of a rotated box: p = width^2 / 12, q = height^2 / 12, root = sqrt(p q).
struct Gaussian {
    float x, y, p, q, root, cosine, sine;
};

// Returns the distance of two rotated boxes, as in vision/detect/reference/rotated.py. The distance is not finite if a
// box has no area.
__device__ __forceinline__ float distance_of(const Gaussian& a, const Gaussian& b) {
    float dx = b.x - a.x, dy = b.y - a.y;
    float cosine = a.cosine * b.cosine + a.sine * b.sine, sine = a.sine * b.cosine - a.cosine * b.sine;
    cosine *= cosine, sine *= sine;
    float total = a.root * a.root + b.root * b.root + a.p * (b.q * cosine + b.p * sine) +
                  a.q * (b.p * cosine + b.q * sine);
    float u1 = dx * a.cosine + dy * a.sine, v1 = dy * a.cosine - dx * a.sine;
    float u2 = dx * b.cosine + dy * b.sine, v2 = dy * b.cosine - dx * b.sine;
    float apart = a.q * u1 * u1 + a.p * v1 * v1 + b.q * u2 * u2 + b.p * v2 * v2;
    return apart / (4.0f * total) + 0.5f * logf(total / (4.0f * a.root * b.root));
}

// Sorted candidates with rotated boxes. The members of `limit` are distances below which boxes overlap too much.
struct RotatedBoxes {
    const Gaussian* boxes;
    const int* classes;
    Overlaps limit;

    struct One {
        Gaussian box;
        int class_id;
    };
    __device__ __forceinline__ One at(u32 i) const { return One{boxes[i], classes[i]}; }

    __device__ __forceinline__ bool suppress(const One& a, const One& b) const {
        return distance_of(a.box, b.box) < (a.class_id == b.class_id ? limit.same : limit.across);
    }
};

// Sets gone[i] for every candidate i that an earlier candidate suppresses. Ignores candidates that are already gone.
// All threads of the block must call this function.
//
// Processes 64 candidates at a time. All their pairs are tested in parallel, and the results are stored in 64-bit
// masks. One thread then processes the masks in order. The kept candidates are tested against all later candidates.
template <typename Candidates>
__device__ void suppress(const Candidates& candidates, volatile u8* gone, u32 count) {
    __shared__ u64 rows[64];
    __shared__ u32 halves[2];
    __shared__ u32 kept[64], kept_count;
    for (u32 start = 0; start < count; start += 64) {
        u32 size = min((int)(count - start), 64);
        if (threadIdx.x < 64) {
            bool here = threadIdx.x < size && !gone[start + threadIdx.x];
            u32 votes = __ballot_sync(0xFFFFFFFFu, here);
            if (threadIdx.x % 32 == 0) halves[threadIdx.x / 32] = votes;
            rows[threadIdx.x] = 0;
        }
        __syncthreads();
        u64 alive = (u64)halves[1] << 32 | halves[0];
        if (alive & (alive - 1)) {  // more than one bit is set, so candidates can suppress each other
            u32* words = (u32*)rows;
            for (u32 pair = threadIdx.x; pair < size * 64; pair += blockDim.x) {
                u32 i = pair / 64, j = pair % 64;
                bool hit = false;
                if (j > i && j < size && (alive >> i & 1) && (alive >> j & 1))
                    hit = candidates.suppress(candidates.at(start + i), candidates.at(start + j));
                u32 votes = __ballot_sync(0xFFFFFFFFu, hit);
                if (threadIdx.x % 32 == 0) words[2 * i + j / 32] = votes;
            }
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            u32 found = 0;
            u64 left = alive;
#pragma unroll 8
            for (u32 i = 0; i < 64; i++) {
                u64 row = rows[i];
                if (left >> i & 1) {
                    left &= ~row;
                    kept[found++] = start + i;
                }
            }
            halves[0] = (u32)left, halves[1] = (u32)(left >> 32);
            kept_count = found;
        }
        __syncthreads();
        if (threadIdx.x < size && !(halves[threadIdx.x / 32] >> (threadIdx.x % 32) & 1)) gone[start + threadIdx.x] = 1;
        u32 found = kept_count;
        for (u32 j = start + 64 + threadIdx.x; j < count; j += blockDim.x) {
            if (gone[j]) continue;
            const typename Candidates::One later = candidates.at(j);
            for (u32 k = 0; k < found; k++) {
                if (candidates.suppress(candidates.at(kept[k]), later)) {
                    gone[j] = 1;
                    break;
                }
            }
        }
        __syncthreads();
    }
}
