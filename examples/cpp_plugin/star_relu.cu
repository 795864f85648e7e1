// Plugin library for TensorRT 10.3 and later: the activation scale * max(x, 0)^2 + bias, as the node ExampleStarRelu.
//
// A plugin has three parts: the core (names), the build (types, shapes, formats), and the runtime (the kernel). One class
// implements them here. The creator makes plugins from the attributes of a node, and from the fields in an engine.
// TensorRT calls the functions at the end of this file when it loads the library.
#include <NvInferRuntime.h>
#include <NvInferRuntimePlugin.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>

namespace star_relu {

using namespace nvinfer1;

constexpr char kName[] = "ExampleStarRelu";
constexpr char kVersion[] = "1";
constexpr int kThreads = 256;

__device__ float load(float value) { return value; }
__device__ float load(__half value) { return __half2float(value); }
__device__ void store(float* target, float value) { *target = value; }
__device__ void store(__half* target, float value) { *target = __float2half(value); }

template <typename Value>
__global__ void starRelu(const Value* input, Value* output, int64_t count, float scale, float bias) {
    int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float positive = fmaxf(load(input[i]), 0.0f);
    store(output + i, scale * positive * positive + bias);
}

class StarRelu final : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuild, public IPluginV3OneRuntime {
public:
    StarRelu(float scale, float bias) : scale_(scale), bias_(bias) {
        fields_[0] = PluginField("scale", &scale_, PluginFieldType::kFLOAT32, 1);
        fields_[1] = PluginField("bias", &bias_, PluginFieldType::kFLOAT32, 1);
        serialized_.nbFields = 2;
        serialized_.fields = fields_;
    }

    // ------------------------------------------------------------------------------------------------ IPluginV3

    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
        switch (type) {
            case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
            case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
            case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }
    IPluginV3* clone() noexcept override { return new StarRelu(scale_, bias_); }

    // ----------------------------------------------------------------------------------------------------- core

    AsciiChar const* getPluginName() const noexcept override { return kName; }
    AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    AsciiChar const* getPluginNamespace() const noexcept override { return ""; }

    // ---------------------------------------------------------------------------------------------------- build

    int32_t getNbOutputs() const noexcept override { return 1; }

    int32_t getOutputDataTypes(
        DataType* outputs, int32_t, DataType const* inputs, int32_t) const noexcept override {
        outputs[0] = inputs[0];
        return 0;
    }

    int32_t getOutputShapes(DimsExprs const* inputs, int32_t, DimsExprs const*, int32_t, DimsExprs* outputs, int32_t,
        IExprBuilder&) noexcept override {
        outputs[0] = inputs[0];
        return 0;
    }

    // Linear tensors in float32 or float16. The output has the type of the input.
    bool supportsFormatCombination(
        int32_t position, DynamicPluginTensorDesc const* tensors, int32_t, int32_t) noexcept override {
        PluginTensorDesc const& desc = tensors[position].desc;
        if (desc.format != TensorFormat::kLINEAR) return false;
        if (position > 0) return desc.type == tensors[0].desc.type;
        return desc.type == DataType::kFLOAT || desc.type == DataType::kHALF;
    }

    int32_t configurePlugin(
        DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*, int32_t) noexcept override {
        return 0;
    }

    // -------------------------------------------------------------------------------------------------- runtime

    int32_t onShapeChange(PluginTensorDesc const*, int32_t, PluginTensorDesc const*, int32_t) noexcept override {
        return 0;
    }

    int32_t enqueue(PluginTensorDesc const* descriptions, PluginTensorDesc const*, void const* const* inputs,
        void* const* outputs, void*, cudaStream_t stream) noexcept override {
        int64_t count = 1;
        for (int32_t i = 0; i < descriptions[0].dims.nbDims; i++) count *= descriptions[0].dims.d[i];
        if (count == 0) return 0;
        auto blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
        if (descriptions[0].type == DataType::kHALF) {
            starRelu<<<blocks, kThreads, 0, stream>>>(
                static_cast<__half const*>(inputs[0]), static_cast<__half*>(outputs[0]), count, scale_, bias_);
        } else {
            starRelu<<<blocks, kThreads, 0, stream>>>(
                static_cast<float const*>(inputs[0]), static_cast<float*>(outputs[0]), count, scale_, bias_);
        }
        return cudaPeekAtLastError() == cudaSuccess ? 0 : -1;
    }

    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }

    PluginFieldCollection const* getFieldsToSerialize() noexcept override { return &serialized_; }

private:
    float scale_, bias_;
    PluginField fields_[2];
    PluginFieldCollection serialized_{};
};

class Creator final : public IPluginCreatorV3One {
public:
    Creator() {
        names_.nbFields = 2;
        names_.fields = fields_;
    }

    AsciiChar const* getPluginName() const noexcept override { return kName; }
    AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    AsciiChar const* getPluginNamespace() const noexcept override { return ""; }
    PluginFieldCollection const* getFieldNames() noexcept override { return &names_; }

    // Returns null, which makes the build fail, if a field is unknown or is not one float.
    IPluginV3* createPlugin(AsciiChar const*, PluginFieldCollection const* given, TensorRTPhase) noexcept override {
        float scale = 0.8944F, bias = -0.4472F;
        for (int32_t i = 0; i < given->nbFields; i++) {
            PluginField const& field = given->fields[i];
            float* target = !std::strcmp(field.name, "scale") ? &scale : !std::strcmp(field.name, "bias") ? &bias : nullptr;
            if (!target || field.type != PluginFieldType::kFLOAT32 || field.length != 1) return nullptr;
            *target = *static_cast<float const*>(field.data);
        }
        return new StarRelu(scale, bias);
    }

private:
    PluginField fields_[2]{PluginField("scale", nullptr, PluginFieldType::kFLOAT32, 1),
        PluginField("bias", nullptr, PluginFieldType::kFLOAT32, 1)};
    PluginFieldCollection names_{};
};

}  // namespace star_relu

extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder*) {}  // for libraries that write to TensorRT's log

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static star_relu::Creator creator;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
    count = 1;
    return creators;
}
