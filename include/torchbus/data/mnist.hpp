#pragma once
/// MNIST and data sets in its format: handwritten digits, 60,000 to train and 10,000 to test.

#include <cstdint>
#include <filesystem>
#include <memory>

#include <torchbus/data/dataset.hpp>

namespace torchbus {

enum class MnistPart : std::uint8_t { Train, Test };

struct MnistOptions {
    bool flatten = false;       ///< inputs [N, H·W] instead of [N, 1, H, W]
    double mean = 0.1307;       ///< of all training pixels, which lie in 0 … 1
    double deviation = 0.3081;  ///< standard deviation of the same; > 0
};

/// Reads one part from a folder that holds the original files, named `train-images-idx3-ubyte` or
/// `train-images.idx3-ubyte`; `torchbus data fetch mnist` brings them.
/// Shapes: inputs float [N, 1, H, W] or [N, H·W], (pixel / 255 - mean) / deviation; targets int64 [N], 0 … 9.
/// Throws: ConfigError for a deviation that is not positive; DataError for files that are missing, damaged, or do
/// not belong together.
std::shared_ptr<TensorDataset> load_mnist(const std::filesystem::path& folder, MnistPart part, MnistOptions options = {});

}  // namespace torchbus
