// One shared library per kernel file and set of definitions: KERNEL names the file, emulated.py passes the rest.
#include "emulator.h"
#include KERNEL

#define ARGUMENT(type, index) (*(type*)arguments[index])

extern "C" void launch(const char* name, const unsigned* geometry, unsigned shared, unsigned long long seed, void** arguments) {
    dim3 grid{geometry[0], geometry[1], geometry[2]}, block{geometry[3], geometry[4], geometry[5]};
    std::function<void()> body;
#ifdef KERNEL_LETTERBOX
    if (!std::strcmp(name, "letterbox"))
        body = [=] {
            letterbox(ARGUMENT(const Frame*, 0), ARGUMENT(Input*, 1), ARGUMENT(u32*, 2), ARGUMENT(Normalise, 3));
        };
#endif
#ifdef KERNEL_POSTPROCESS
    if (!std::strcmp(name, "find_pairs"))
        body = [=] {
            find_pairs(ARGUMENT(const Frame*, 0), ARGUMENT(const ScoreValue*, 1), ARGUMENT(u64*, 2), ARGUMENT(u32*, 3),
                   ARGUMENT(Threshold, 4));
        };
    if (!std::strcmp(name, "objects"))
        body = [=] {
            objects(ARGUMENT(const Frame*, 0), ARGUMENT(const ScoreValue*, 1), ARGUMENT(const BoxValue*, 2),
                    ARGUMENT(const u64*, 3), ARGUMENT(const u32*, 4), ARGUMENT(Threshold, 5), ARGUMENT(float, 6),
                    ARGUMENT(Work*, 7), ARGUMENT(Result*, 8), ARGUMENT(float4*, 9), ARGUMENT(float*, 10),
                    ARGUMENT(int*, 11));
        };
#endif
    if (!body) {
        std::fprintf(stderr, "emulator: no kernel %s\n", name);
        std::abort();
    }
    emulator::launch(grid, block, shared, seed, body);
}
