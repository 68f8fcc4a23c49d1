#include <torchbus/data/registry.hpp>

#include <array>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <torch/types.h>
#include <torch/utils.h>

#include <torchbus/data/fetch.hpp>
#include <torchbus/data/mnist.hpp>
#include <torchbus/error.hpp>

namespace torchbus {
namespace {

DataMaker mnist_from_json(OptionReader& reader) {
    std::string folder;
    MnistOptions options;
    reader.text("folder", folder, "where the four files lie; empty: where 'torchbus data fetch mnist' puts them")
        .boolean("flatten", options.flatten, "samples of 784 elements instead of images");
    return [=] {
        const std::filesystem::path from = folder.empty() ? default_mnist_folder() : std::filesystem::path(folder);
        return DataSplits{load_mnist(from, MnistPart::Train, options), load_mnist(from, MnistPart::Test, options)};
    };
}

struct Synthetic {
    std::int64_t samples = 1024, features = 16, classes = 4, seed = 0;
};

DataSplits make_synthetic(const Synthetic& options) {
    auto generator = at::make_generator<at::CPUGeneratorImpl>(static_cast<std::uint64_t>(options.seed));
    const at::Tensor rule = torch::randn({options.features, options.classes}, generator);
    const auto make = [&](std::int64_t count) {
        const at::Tensor inputs = torch::randn({count, options.features}, generator);
        return std::make_shared<TensorDataset>(inputs, inputs.mm(rule).argmax(1));
    };
    auto train = make(options.samples);
    return {train, make(options.samples / 4)};
}

DataMaker synthetic_from_json(OptionReader& reader) {
    Synthetic options;
    reader.integer("samples", options.samples, "training samples; a quarter as many are for evaluation", Range::at_least(4))
        .integer("features", options.features, "elements of a sample", Range::at_least(1))
        .integer("classes", options.classes, "number of classes", Range::at_least(2))
        .integer("seed", options.seed, "seed of the samples and the rule", Range::at_least(0));
    return [options] { return make_synthetic(options); };
}

constexpr auto kData = std::to_array<DataEntry>({
    {"mnist", "Handwritten digits, 60,000 to train and 10,000 to test, or files in that format.", mnist_from_json},
    {"synthetic", "Classes of a random linear rule: learnable by any model, and nothing need be fetched.", synthetic_from_json},
});

}  // namespace

Registry<DataEntry>& data_table() {
    static auto* const kTable = new Registry<DataEntry>("data", kData);
    return *kTable;
}

DataSplits data_from_json(const nlohmann::json& json, const std::string& where, std::string* about) {
    OptionReader reader(json, where);
    const DataEntry& entry = data_table().chosen(reader, "which data");
    const DataMaker make = entry.from_json(reader);
    reader.finish();
    DataSplits data;
    try {
        data = make();
    } catch (const DataError& error) {
        throw DataError(fmt::format("{}: {}", where, error.what()));
    }
    if (!data.train || !data.eval)
        throw ConfigError(fmt::format("{}: the data '{}' came without {}; its maker has to give both", where, entry.kind,
                                      data.train ? "evaluation samples" : "training samples"));
    if (about) *about = fmt::format("{}: {} training and {} evaluation samples", entry.kind, data.train->size(), data.eval->size());
    return data;
}

}  // namespace torchbus
