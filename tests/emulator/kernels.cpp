// One shared library per kernel file and set of definitions: KERNEL names the file, emulated.py passes the rest.
#include "emulator.h"
#include <tuple>
#include <utility>
#include KERNEL

namespace {

struct Launch {
    dim3 grid, block;
    unsigned shared;
    std::function<void()> body;
};

// Reads the arguments when a kernel is launched, as on a GPU, not when it runs.
template <typename... Arguments, size_t... Index>
std::function<void()> bound(void (*kernel)(Arguments...), void** given, std::index_sequence<Index...>) {
    std::tuple<Arguments...> values{*(Arguments*)given[Index]...};
    return [=] { std::apply(kernel, values); };
}

template <typename... Arguments>
std::function<void()> bound(void (*kernel)(Arguments...), void** given) {
    return bound(kernel, given, std::index_sequence_for<Arguments...>{});
}

}  // namespace

extern "C" Launch* prepare(const char* name, const unsigned* geometry, unsigned shared, void** arguments) {
    Launch* launch = new Launch{
        dim3{geometry[0], geometry[1], geometry[2]}, dim3{geometry[3], geometry[4], geometry[5]}, shared, {}};
#ifdef KERNEL_LETTERBOX
    if (!std::strcmp(name, "letterbox")) launch->body = bound(letterbox, arguments);
#endif
#ifdef KERNEL_CROPS
    if (!std::strcmp(name, "cut")) launch->body = bound(cut, arguments);
#endif
#ifdef KERNEL_STAR_RELU
    if (!std::strcmp(name, "star_relu")) launch->body = bound(star_relu, arguments);
#endif
#ifdef KERNEL_POSTPROCESS
    if (!std::strcmp(name, "find_pairs")) launch->body = bound(find_pairs, arguments);
    if (!std::strcmp(name, "objects")) launch->body = bound(objects, arguments);
#if MASKS
    if (!std::strcmp(name, "masks")) launch->body = bound(masks, arguments);
#endif
#endif
    if (!launch->body) {
        std::fprintf(stderr, "emulator: no kernel %s\n", name);
        std::abort();
    }
    return launch;
}

extern "C" void run(Launch* launch, unsigned long long seed) {
    emulator::launch(launch->grid, launch->block, launch->shared, seed, launch->body);
}

extern "C" void forget(Launch* launch) { delete launch; }
