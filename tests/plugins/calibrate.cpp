// Calls a calibrator of TensorRT 10 through the C++ interface, in the order of the builder, and writes the results to
// `report`. The calibrator can be written in Python: the bindings then pass each call on. In place of the builder, this
// program reads the batches from host memory, and writes the largest absolute value of each input as a table of scales.
#include <NvInfer.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

using namespace nvinfer1;

extern "C" int32_t calibrate(IInt8Calibrator* calibrator, char const** names, int64_t const* sizes, int32_t count,
    char* report, int32_t size) {
    std::ostringstream out;
    out << "batch size " << calibrator->getBatchSize() << '\n';
    out << "algorithm " << static_cast<int>(calibrator->getAlgorithm()) << '\n';
    std::size_t length = 1;
    void const* cache = calibrator->readCalibrationCache(length);
    out << "cache " << (cache != nullptr) << '\n';
    std::vector<float> largest(count);
    std::vector<void*> bindings(count);
    int32_t batches = 0;
    for (; calibrator->getBatch(bindings.data(), names, count); batches++) {
        for (int32_t i = 0; i < count; i++)
            for (int64_t j = 0; j < sizes[i]; j++)
                largest[i] = std::fmax(largest[i], std::fabs(static_cast<float const*>(bindings[i])[j]));
    }
    out << "batches " << batches << '\n';
    std::string table = "TRT-100300-EntropyCalibration2\n";
    for (int32_t i = 0; i < count; i++) {
        float const scale = largest[i] / 127;
        uint32_t bits;
        char text[16];
        std::memcpy(&bits, &scale, 4);
        std::snprintf(text, sizeof text, "%x", bits);
        table += std::string(names[i]) + ": " + text + "\n";
    }
    if (batches > 0) calibrator->writeCalibrationCache(table.data(), table.size());
    std::strncpy(report, out.str().c_str(), size - 1);
    return batches;
}
