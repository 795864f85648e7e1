// The part of the emulator's scheduler that kernels use. No header of the C++ library is included: the tests compile more
// than a hundred kernels, and these headers would take most of the time.
#pragma once

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

namespace emulator {

struct Fiber {
    dim3 thread;
    unsigned index = 0;
    enum State { READY, AT_BLOCK, AT_WARP, DONE } state = READY;
    unsigned mask = 0;  // of the warp collective at which the fiber waits
    unsigned long long value = 0;
    unsigned long long seen[32];  // values of the warp's fibers, after all have arrived
};

// A kernel with its arguments.
struct Call {
    virtual void run() = 0;
    virtual ~Call() {}
};

extern Fiber* current;
extern dim3 block_index, block_size, grid_size;
extern unsigned char* dynamic_shared;

void pause(Fiber::State state);
void collect(unsigned mask, unsigned long long value);
[[noreturn]] void fail(const char* what);
void launch(dim3 grid, dim3 block, unsigned shared, unsigned long long seed, Call& call);

}  // namespace emulator
