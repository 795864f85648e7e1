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
            find_pairs(ARGUMENT(const Frame*, 0), ARGUMENT(const ScoreValue*, 1), ARGUMENT(const int*, 2),
                       ARGUMENT(const int*, 3), ARGUMENT(u64*, 4), ARGUMENT(u32*, 5), ARGUMENT(Threshold, 6));
        };
    if (!std::strcmp(name, "objects"))
        body = [=] {
            objects(ARGUMENT(const Frame*, 0), ARGUMENT(const ScoreValue*, 1), ARGUMENT(const BoxValue*, 2),
                    ARGUMENT(const int*, 3), ARGUMENT(const int*, 4), ARGUMENT(const u64*, 5), ARGUMENT(const u32*, 6),
                    ARGUMENT(Threshold, 7), ARGUMENT(float, 8), ARGUMENT(Work*, 9), ARGUMENT(Result*, 10),
                    ARGUMENT(float4*, 11), ARGUMENT(float*, 12), ARGUMENT(int*, 13));
        };
#endif
    if (!body) {
        std::fprintf(stderr, "emulator: no kernel %s\n", name);
        std::abort();
    }
    emulator::launch(grid, block, shared, seed, body);
}
