// Calls every method of a plugin through the C++ interface, as TensorRT does, and writes the results to `report`.
// The plugin can be written in Python: the bindings then pass each call on.
#include <NvInferRuntime.h>
#include <NvInferRuntimePlugin.h>

#include <cstring>
#include <deque>
#include <sstream>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace {

// A dimension: a constant, or a name.
class Dimension final : public IDimensionExpr, public apiv::VDimensionExpr {
public:
    explicit Dimension(std::string text) : text(std::move(text)) { mImpl = this; }
    bool isConstant() const override { return text != "n"; }
    int64_t getConstantValue() const override { return std::stoll(text); }
    bool isSizeTensor() const override { return false; }
    std::string text;
};

class Builder final : public IExprBuilder, public apiv::VExprBuilder {
public:
    Builder() { mImpl = this; }
    IDimensionExpr const* constant(int64_t value) override { return make(std::to_string(value)); }
    IDimensionExpr const* operation(
        DimensionOperation operation, IDimensionExpr const& a, IDimensionExpr const& b) override {
        auto text = [](IDimensionExpr const& each) { return static_cast<Dimension const&>(each).text; };
        return make(text(a) + " op" + std::to_string(static_cast<int>(operation)) + " " + text(b));
    }
    IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&, IDimensionExpr const&) override {
        return nullptr;
    }
    IDimensionExpr const* make(std::string text) { return &dimensions_.emplace_back(std::move(text)); }

private:
    std::deque<Dimension> dimensions_;
};

struct Attribute {
    char const* name;
    double value;
    int32_t isFloat;
};

struct Run {
    int64_t const* dims;  // of the input
    int32_t rank;
    void const* input;  // device address; null: do not run
    void* const* outputs;
    void* workspace;
    void* stream;
};

PluginTensorDesc describe(Dims const& dims, DataType type) { return {dims, type, TensorFormat::kLINEAR, 1.0F}; }

void writeFields(std::ostream& out, PluginFieldCollection const* fields) {
    for (int32_t i = 0; i < fields->nbFields; i++) {
        PluginField const& field = fields->fields[i];
        out << ' ' << field.name << '=';
        if (field.type == PluginFieldType::kFLOAT32) out << *static_cast<float const*>(field.data);
        else out << *static_cast<int32_t const*>(field.data);
    }
    out << '\n';
}

}  // namespace

extern "C" int32_t drive(IPluginCreatorV3One* creator, Attribute const* attributes, int32_t count, Run const* run,
    char* report, int32_t size) {
    std::ostringstream out;
    auto fail = [&](char const* what) {
        out << "failed: " << what << '\n';
        std::strncpy(report, out.str().c_str(), size - 1);
        return 1;
    };
    out << "creator " << creator->getPluginName() << ' ' << creator->getPluginVersion() << ", fields "
        << creator->getFieldNames()->nbFields << '\n';

    std::vector<float> floats(count);
    std::vector<int32_t> integers(count);
    std::vector<PluginField> fields;
    for (int32_t i = 0; i < count; i++) {
        floats[i] = static_cast<float>(attributes[i].value), integers[i] = static_cast<int32_t>(attributes[i].value);
        void const* data = attributes[i].isFloat ? static_cast<void const*>(&floats[i]) : &integers[i];
        auto type = attributes[i].isFloat ? PluginFieldType::kFLOAT32 : PluginFieldType::kINT32;
        fields.emplace_back(attributes[i].name, data, type, 1);
    }
    PluginFieldCollection collection{count, fields.data()};
    IPluginV3* parsed = creator->createPlugin("node", &collection, TensorRTPhase::kBUILD);
    if (!parsed) return fail("createPlugin");
    IPluginV3* plugin = parsed->clone();
    if (!plugin) return fail("clone");

    auto* core = static_cast<IPluginV3OneCore*>(plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
    auto* build = static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
    if (!core || !build) return fail("getCapabilityInterface");
    out << "core " << core->getPluginName() << ' ' << core->getPluginVersion() << '\n';

    Dims dims{run->rank, {}};
    for (int32_t i = 0; i < run->rank; i++) dims.d[i] = run->dims[i];
    int32_t const outputs = build->getNbOutputs();
    DataType const input = DataType::kFLOAT;
    std::vector<DataType> types(outputs);
    if (build->getOutputDataTypes(types.data(), outputs, &input, 1)) return fail("getOutputDataTypes");
    Builder builder;
    DimsExprs symbolic{run->rank, {}};
    for (int32_t i = 0; i < run->rank; i++) symbolic.d[i] = i ? builder.constant(dims.d[i]) : builder.make("n");
    std::vector<DimsExprs> shapes(outputs);
    if (build->getOutputShapes(&symbolic, 1, nullptr, 0, shapes.data(), outputs, builder)) return fail("getOutputShapes");

    std::vector<DynamicPluginTensorDesc> dynamic{{describe(dims, input), dims, dims, dims}};
    std::vector<PluginTensorDesc> concrete{dynamic[0].desc};
    for (int32_t o = 0; o < outputs; o++) {
        out << "output type " << static_cast<int>(types[o]) << " shape";
        Dims shape{shapes[o].nbDims, {}};
        for (int32_t i = 0; i < shapes[o].nbDims; i++) {
            auto const* dimension = static_cast<Dimension const*>(shapes[o].d[i]);
            out << ' ' << dimension->text;
            shape.d[i] = dimension->isConstant() ? dimension->getConstantValue() : dims.d[0];
        }
        out << '\n';
        dynamic.push_back({describe(shape, types[o]), shape, shape, shape});
        concrete.push_back(dynamic.back().desc);
    }
    for (int32_t at = 0; at <= outputs; at++)
        if (!build->supportsFormatCombination(at, dynamic.data(), 1, outputs)) return fail("supportsFormatCombination");
    dynamic[0].desc.type = DataType::kBOOL;
    out << "takes bool " << build->supportsFormatCombination(0, dynamic.data(), 1, outputs) << '\n';
    dynamic[0].desc.type = input;
    if (build->configurePlugin(dynamic.data(), 1, dynamic.data() + 1, outputs)) return fail("configurePlugin");
    out << "workspace " << build->getWorkspaceSize(dynamic.data(), 1, dynamic.data() + 1, outputs) << '\n';

    auto* saved = static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    if (!saved || !saved->getFieldsToSerialize()) return fail("getFieldsToSerialize");
    out << "fields";
    writeFields(out, saved->getFieldsToSerialize());
    IPluginV3* loaded = creator->createPlugin("node", saved->getFieldsToSerialize(), TensorRTPhase::kRUNTIME);
    if (!loaded) return fail("createPlugin of an engine");
    auto* runtime = static_cast<IPluginV3OneRuntime*>(loaded->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    IPluginV3* attached = runtime->attachToContext(nullptr);
    if (!attached) return fail("attachToContext");
    runtime = static_cast<IPluginV3OneRuntime*>(attached->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    out << "loaded";
    writeFields(out, runtime->getFieldsToSerialize());
    out << "set tactic " << runtime->setTactic(0) << '\n';
    out << "shape change " << runtime->onShapeChange(concrete.data(), 1, concrete.data() + 1, outputs) << '\n';
    if (run->input) {
        auto stream = static_cast<cudaStream_t>(run->stream);
        void const* inputs[] = {run->input};
        out << "enqueue "
            << runtime->enqueue(concrete.data(), concrete.data() + 1, inputs, run->outputs, run->workspace, stream) << '\n';
    }
    std::strncpy(report, out.str().c_str(), size - 1);
    return 0;
}
