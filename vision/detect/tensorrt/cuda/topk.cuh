// Exact selection of the greatest keys, and sorting of keys. Each function runs in one block.
#pragma once
#include "device.cuh"

// Finds mask and prefix such that the keys `k` with (k & mask) >= prefix are the `limit` greatest of key_at(0) to
// key_at(count - 1). Keys are unique, except 0, which means that there is no key. There must be more than `limit` keys.
// All threads of the block must call this function.
//
// The method is radix selection, which starts at the highest digit. In each round, a histogram shows the digit of the
// border, and the next round counts only keys with the digits found so far. Usually, a few of the eight rounds suffice.
template <typename KeyAt>
__device__ void find_border(KeyAt key_at, u32 count, u32 limit, u64* mask_out, u64* prefix_out) {
    __shared__ u32 histogram[256];
    __shared__ u32 digit_shared, above_shared, inside_shared;
    u64 mask = 0, prefix = 0;
    for (int shift = 56;; shift -= 8) {
        for (u32 bin = threadIdx.x; bin < 256; bin += blockDim.x) histogram[bin] = 0;
        __syncthreads();
        for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
            u64 key = key_at(i);
            if (key && (key & mask) == prefix) atomicAdd(&histogram[(u32)(key >> shift) & 255u], 1u);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            u32 above = 0, digit = 255;
            while (above + histogram[digit] < limit) above += histogram[digit--];
            digit_shared = digit, above_shared = above, inside_shared = histogram[digit];
        }
        __syncthreads();
        prefix |= (u64)digit_shared << shift;
        mask |= 255ull << shift;
        limit -= above_shared;
        bool whole = inside_shared == limit;
        __syncthreads();
        if (whole || shift == 0) break;
    }
    *mask_out = mask, *prefix_out = prefix;
}

// Sorts keys[0 .. size) in descending order. `size` is a power of two. All threads of the block must call this
// function.
__device__ void sort_descending(u64* keys, u32 size) {
    for (u32 run = 2; run <= size; run <<= 1)
        for (u32 reach = run >> 1; reach; reach >>= 1) {
            for (u32 i = threadIdx.x; i < size / 2; i += blockDim.x) {
                u32 low = 2 * i - (i & (reach - 1)), high = low + reach;
                u64 first = keys[low], second = keys[high];
                if ((first < second) == ((low & run) == 0)) keys[low] = second, keys[high] = first;
            }
            __syncthreads();
        }
}
