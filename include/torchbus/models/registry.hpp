#pragma once
/// The models that run files know by name, and the functions that make them in code.

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <torchbus/model.hpp>
#include <torchbus/option_reader.hpp>
#include <torchbus/registry.hpp>

namespace torchbus {

/// Linear layers with ReLU between them. Shapes: inputs [N, …] are flattened; output [N, classes].
struct MlpOptions {
    std::int64_t inputs = 784;                ///< elements of a sample
    std::vector<std::int64_t> hidden = {128}; ///< widths of the hidden layers
    std::int64_t classes = 10;
    double dropout = 0;                       ///< after each hidden layer; in [0, 1)
};
Model make_mlp(MlpOptions options = {});

/// For 28 × 28 images of one channel. Shapes: inputs [N, 1, 28, 28]; output [N, classes].
/// Source: LeCun et al. 1998, with ReLU and max pooling.
struct LenetOptions {
    std::int64_t classes = 10;
};
Model make_lenet(LenetOptions options = {});

/// Parameters and buffers bear torchvision's names. Shapes: inputs [N, channels, H, W]; output [N, classes].
/// Source: He et al. 2016, arXiv:1512.03385.
struct Resnet18Options {
    std::int64_t channels = 3;
    std::int64_t classes = 1000;
    bool small_images = false;  ///< a 3 × 3 stem without pooling, for images of about 32 × 32
};
Model make_resnet18(Resnet18Options options = {});

/// Draws the weights, once all options are read.
using ModelMaker = std::function<Model()>;

struct ModelEntry {
    std::string_view kind;
    std::string_view summary;
    ModelMaker (*from_json)(OptionReader& options);
};
/// The library's models and those of plug-ins. Thread: any.
Registry<ModelEntry>& model_table();
std::span<const ModelEntry> model_registry();

/// Reads `{"kind": "mlp", …}`. Throws: ConfigError with the JSON path, and a suggestion for an unknown kind.
Model model_from_json(const nlohmann::json& json, const std::string& where);

}  // namespace torchbus
