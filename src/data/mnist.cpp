#include <torchbus/data/mnist.hpp>

#include <algorithm>
#include <array>
#include <cmath>

#include <fmt/format.h>
#include <ATen/Parallel.h>
#include <torch/types.h>

#include <torchbus/data/idx.hpp>
#include <torchbus/error.hpp>

namespace torchbus {
namespace {

constexpr const char* kRemedy = "fetch it again with 'torchbus data fetch mnist'";
constexpr std::int64_t kClasses = 10;
constexpr std::int64_t kPixelsPerTask = 1 << 18;

/// Opens the file of that name, in either of the two spellings that are about.
IdxFile open_idx(const std::filesystem::path& folder, const std::string& stem, std::size_t dims, const char* meaning) {
    const std::string name = fmt::format("{}-idx{}-ubyte", stem, dims), dotted = fmt::format("{}.idx{}-ubyte", stem, dims);
    const auto there = [&](const std::string& file) { return std::filesystem::exists(folder / file); };
    const std::string& found = there(name) ? name : dotted;
    if (!there(found)) {
        for (const std::string& packed : {name + ".gz", dotted + ".gz"})
            if (there(packed)) return IdxFile(folder / packed, kRemedy);  // says that it is still compressed
        throw DataError(fmt::format("{}: holds no {}, expected the MNIST files; fetch them with 'torchbus data fetch mnist', "
                                    "or name the folder they lie in", folder.string(), name));
    }
    IdxFile file(folder / found, kRemedy);
    if (file.type() != IdxType::UInt8 || file.dims().size() != dims)
        throw DataError(fmt::format("{}: {} of {} dimensions, expected unsigned bytes of {} ({}); {}", file.path().string(),
                                    to_string(file.type()), file.dims().size(), dims, meaning, kRemedy));
    return file;
}

/// What each of the 256 pixels becomes. In float, step by step, as torchvision's ToTensor and Normalize do: same bits.
std::array<float, 256> pixel_table(const MnistOptions& options) {
    std::array<float, 256> table;
    for (std::size_t pixel = 0; pixel < table.size(); ++pixel)
        table[pixel] = (static_cast<float>(pixel) / 255.0F - static_cast<float>(options.mean)) / static_cast<float>(options.deviation);
    return table;
}

/// Shapes: [N, 1, H, W] or [N, H·W].
at::Tensor images_of(const IdxFile& file, const MnistOptions& options) {
    const std::int64_t count = file.dims()[0], height = file.dims()[1], width = file.dims()[2];
    at::Tensor images = options.flatten ? torch::empty({count, height * width}) : torch::empty({count, 1, height, width});
    const auto table = pixel_table(options);
    const std::byte* const from = file.bytes().data();
    float* const to = images.mutable_data_ptr<float>();
    at::parallel_for(0, images.numel(), kPixelsPerTask, [&](std::int64_t begin, std::int64_t end) {
        std::transform(from + begin, from + end, to + begin, [&](std::byte pixel) { return table[std::to_integer<std::size_t>(pixel)]; });
    });
    return images;
}

/// Shapes: [N].
at::Tensor labels_of(const IdxFile& file) {
    const std::span<const std::byte> bytes = file.bytes();
    at::Tensor labels = torch::empty({file.dims()[0]}, torch::kInt64);
    std::int64_t* const to = labels.mutable_data_ptr<std::int64_t>();
    for (std::size_t i = 0; i < bytes.size(); ++i) {
        to[i] = std::to_integer<std::int64_t>(bytes[i]);
        if (to[i] >= kClasses)
            throw DataError(fmt::format("{}: label {} is {}, expected 0 to 9; the file is damaged; {}", file.path().string(), i, to[i], kRemedy));
    }
    return labels;
}

}  // namespace

std::shared_ptr<TensorDataset> load_mnist(const std::filesystem::path& folder, MnistPart part, MnistOptions options) {
    if (!(options.deviation > 0) || !std::isfinite(options.deviation) || !std::isfinite(options.mean))
        throw ConfigError(fmt::format("mnist: mean {} and deviation {}, expected finite numbers and a positive deviation; "
                                      "give e.g. 0.1307 and 0.3081", options.mean, options.deviation));
    const std::string stem = part == MnistPart::Train ? "train" : "t10k";
    const IdxFile images = open_idx(folder, stem + "-images", 3, "images, rows, columns");
    const IdxFile labels = open_idx(folder, stem + "-labels", 1, "labels");
    if (images.dims()[0] != labels.dims()[0])
        throw DataError(fmt::format("{}: {} images, but {} has {} labels, expected one for each; the files do not belong together; "
                                    "fetch both again with 'torchbus data fetch mnist'", images.path().string(), images.dims()[0],
                                    labels.path().string(), labels.dims()[0]));
    at::Tensor targets = labels_of(labels);  // first: cheap to refuse
    return std::make_shared<TensorDataset>(images_of(images, options), std::move(targets));
}

}  // namespace torchbus
