// The source of every kernel library. KERNEL names the file of the kernel; emulated.py passes the other definitions.
#include "emulator.h"
#include <utility>
#include KERNEL

namespace {

template <std::size_t Index, typename Argument>
struct Held {
    Argument value;
};

template <typename Sequence, typename... Arguments>
struct Bound;

// Reads the arguments when a kernel is launched, as a GPU does, and not when it runs. std::tuple compiles more slowly.
template <std::size_t... Index, typename... Arguments>
struct Bound<std::index_sequence<Index...>, Arguments...> : emulator::Call, Held<Index, Arguments>... {
    void (*kernel)(Arguments...);

    Bound(void (*kernel)(Arguments...), void** given)
        : Held<Index, Arguments>{*(Arguments*)given[Index]}..., kernel(kernel) {}

    void run() override { kernel(Held<Index, Arguments>::value...); }
};

template <typename... Arguments>
emulator::Call* bound(void (*kernel)(Arguments...), void** given) {
    return new Bound<std::index_sequence_for<Arguments...>, Arguments...>(kernel, given);
}

emulator::Call* call(const char* name, void** arguments) {
#define KERNEL_NAMED(kernel) if (!__builtin_strcmp(name, #kernel)) return bound(kernel, arguments);
#ifdef KERNEL_LETTERBOX
    KERNEL_NAMED(letterbox)
#endif
#ifdef KERNEL_CROPS
    KERNEL_NAMED(cut)
#endif
#ifdef KERNEL_STAR_RELU
    KERNEL_NAMED(star_relu)
#endif
#ifdef KERNEL_POSTPROCESS
    KERNEL_NAMED(find_pairs)
    KERNEL_NAMED(objects)
#if MASKS
    KERNEL_NAMED(masks)
#endif
#endif
    emulator::fail("no such kernel");
}

struct Launch {
    dim3 grid, block;
    unsigned shared;
    emulator::Call* call;
};

}  // namespace

extern "C" Launch* prepare(const char* name, const unsigned* geometry, unsigned shared, void** arguments) {
    return new Launch{
        dim3{geometry[0], geometry[1], geometry[2]}, dim3{geometry[3], geometry[4], geometry[5]}, shared,
        call(name, arguments)};
}

extern "C" void run(Launch* launch, unsigned long long seed) {
    emulator::launch(launch->grid, launch->block, launch->shared, seed, *launch->call);
}

extern "C" void forget(Launch* launch) {
    delete launch->call;
    delete launch;
}
