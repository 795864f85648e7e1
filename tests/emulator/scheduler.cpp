// Runs the threads of a block as fibers. Compiled once, and linked with every kernel file.
#include "scheduler.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace emulator {

Fiber* current;
dim3 block_index, block_size, grid_size;
unsigned char* dynamic_shared;

namespace {

struct Place {
    jmp_buf registers;
    bool started = false;
};

std::vector<Fiber> fibers;
std::vector<Place> places;  // one for each fiber
std::vector<std::vector<unsigned char>> stacks;
std::vector<unsigned char> shared_memory;
jmp_buf scheduler;
Call* running;
unsigned long long random_state = 1;

unsigned draw(unsigned below) {
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)((random_state >> 33) % below);
}

void trampoline() {
    for (;;) {  // once for each block
        running->run();
        pause(Fiber::DONE);
    }
}

// Runs a fiber until it pauses. swapcontext is slower, because it makes two system calls.
void enter(Fiber& fiber) {
    current = &fiber;
    Place& place = places[fiber.index];
    if (_setjmp(scheduler)) return;
    if (place.started) _longjmp(place.registers, 1);
    place.started = true;
    ucontext_t start;
    getcontext(&start);
    start.uc_stack.ss_sp = stacks[fiber.index].data();
    start.uc_stack.ss_size = stacks[fiber.index].size();
    start.uc_link = nullptr;
    makecontext(&start, trampoline, 0);
    setcontext(&start);
}

// Wakes the fibers of a warp that wait at the same collective, if all fibers in the mask have arrived there.
bool release_warp(unsigned warp) {
    unsigned first = warp * 32, last = std::min<size_t>(first + 32, fibers.size());
    bool woke = false;
    for (unsigned i = first; i < last; i++) {
        if (fibers[i].state != Fiber::AT_WARP) continue;
        unsigned mask = fibers[i].mask, come = 0;
        for (unsigned j = first; j < last; j++)
            if (fibers[j].state == Fiber::AT_WARP && fibers[j].mask == mask) come |= 1u << (j - first);
        if ((come & mask) != mask) continue;
        if (come != mask) fail("a thread that its own mask does not name");
        for (unsigned j = first; j < last; j++) {
            if (!(mask >> (j - first) & 1)) continue;
            for (unsigned k = first; k < last; k++) fibers[j].seen[k - first] = fibers[k].value;
        }
        for (unsigned j = first; j < last; j++)
            if (mask >> (j - first) & 1) fibers[j].state = Fiber::READY;
        woke = true;
    }
    return woke;
}

void run_block() {
    std::vector<Fiber*> ready;
    for (;;) {
        ready.clear();
        unsigned waiting = 0, done = 0;
        for (Fiber& fiber : fibers) {
            if (fiber.state == Fiber::READY) ready.push_back(&fiber);
            waiting += fiber.state == Fiber::AT_BLOCK;
            done += fiber.state == Fiber::DONE;
        }
        if (done == fibers.size()) return;
        if (!ready.empty()) {
            for (size_t i = ready.size(); i > 1; i--) std::swap(ready[i - 1], ready[draw((unsigned)i)]);
            for (Fiber* fiber : ready) enter(*fiber);
            continue;
        }
        bool woke = false;
        for (unsigned warp = 0; warp * 32 < fibers.size(); warp++) woke |= release_warp(warp);
        if (woke) continue;
        if (waiting + done == fibers.size()) {  // threads that have returned do not count at a barrier
            for (Fiber& fiber : fibers)
                if (fiber.state == Fiber::AT_BLOCK) fiber.state = Fiber::READY;
            continue;
        }
        fail("threads wait for each other at different places");
    }
}

}  // namespace

void pause(Fiber::State state) {
    current->state = state;
    if (!_setjmp(places[current->index].registers)) _longjmp(scheduler, 1);
}

void collect(unsigned mask, unsigned long long value) {
    current->mask = mask;
    current->value = value;
    pause(Fiber::AT_WARP);
}

void fail(const char* what) {
    std::fprintf(stderr, "emulator: %s in block (%u, %u, %u)\n", what, block_index.x, block_index.y, block_index.z);
    std::abort();
}

void launch(dim3 grid, dim3 block, unsigned shared, unsigned long long seed, Call& call) {
    grid_size = grid, block_size = block, running = &call, random_state = seed * 2 + 1;
    unsigned count = block.x * block.y * block.z;
    shared_memory.assign(shared + 1, 0xCD);
    dynamic_shared = shared_memory.data();
    while (stacks.size() < count) stacks.emplace_back(64 << 10);
    fibers.assign(count, {});
    places.assign(count, {});
    for (unsigned i = 0; i < count; i++) {
        fibers[i].index = i;
        fibers[i].thread = dim3{i % block.x, i / block.x % block.y, i / (block.x * block.y)};
    }
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                block_index = dim3{x, y, z};
                for (Fiber& fiber : fibers) fiber.state = Fiber::READY;
                run_block();
            }
}

}  // namespace emulator
