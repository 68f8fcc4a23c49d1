#include <torchbus/models/registry.hpp>

#include <array>

#include <nlohmann/json.hpp>

namespace torchbus {
namespace {

ModelMaker mlp_from_json(OptionReader& reader) {
    MlpOptions options;
    reader.integer("inputs", options.inputs, "elements of a sample", Range::at_least(1))
        .integers("hidden", options.hidden, "widths of the hidden layers", Range::at_least(1))
        .integer("classes", options.classes, "width of the output", Range::at_least(1))
        .number("dropout", options.dropout, "share dropped after each hidden layer; in [0, 1)", Range::from_to_below(0, 1));
    return [options] { return make_mlp(options); };
}

ModelMaker lenet_from_json(OptionReader& reader) {
    LenetOptions options;
    reader.integer("classes", options.classes, "width of the output", Range::at_least(1));
    return [options] { return make_lenet(options); };
}

ModelMaker resnet18_from_json(OptionReader& reader) {
    Resnet18Options options;
    reader.integer("channels", options.channels, "channels of an image", Range::at_least(1))
        .integer("classes", options.classes, "width of the output", Range::at_least(1))
        .boolean("small_images", options.small_images, "a 3 x 3 stem without pooling, for images of about 32 x 32");
    return [options] { return make_resnet18(options); };
}

constexpr auto kModels = std::to_array<ModelEntry>({
    {"mlp", "Linear layers with ReLU between them.", mlp_from_json},
    {"lenet", "LeNet-5 with ReLU and max pooling, for 28 x 28 images.", lenet_from_json},
    {"resnet18", "ResNet-18, with torchvision's parameter names.", resnet18_from_json},
});

}  // namespace

Registry<ModelEntry>& model_table() {
    static auto* const kTable = new Registry<ModelEntry>("model", kModels);
    return *kTable;
}

std::span<const ModelEntry> model_registry() { return model_table().entries(); }

Model model_from_json(const nlohmann::json& json, const std::string& where) {
    OptionReader reader(json, where);
    const ModelMaker make = model_table().chosen(reader, "architecture").from_json(reader);
    reader.finish();
    return make();
}

}  // namespace torchbus
