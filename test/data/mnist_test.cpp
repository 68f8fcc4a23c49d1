#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>

#include <torch/torch.h>
#include <unistd.h>

#include <torchbus/data/fetch.hpp>
#include <torchbus/data/mnist.hpp>
#include <torchbus/error.hpp>

#include "support/catch.hpp"

using namespace torchbus;
namespace fs = std::filesystem;

namespace {

/// A folder of small files in MNIST's format, gone with the object.
struct MnistFolder {
    MnistFolder() {
        std::string pattern = (fs::temp_directory_path() / "torchbus-mnist-XXXXXX").string();
        REQUIRE(::mkdtemp(pattern.data()) != nullptr);
        path = pattern;
    }
    ~MnistFolder() { fs::remove_all(path); }
    MnistFolder& write(const std::string& name, std::vector<unsigned char> sizes, const std::vector<unsigned char>& elements, unsigned char type = 8) {
        std::ofstream file(path / name, std::ios::binary);
        for (const unsigned char byte : {0, 0, static_cast<int>(type), static_cast<int>(sizes.size())}) file.put(static_cast<char>(byte));
        for (const unsigned char size : sizes)
            for (const unsigned char byte : {0, 0, 0, static_cast<int>(size)}) file.put(static_cast<char>(byte));
        for (const unsigned char element : elements) file.put(static_cast<char>(element));
        return *this;
    }
    /// Three images of 2 x 2.
    MnistFolder& write_images(const std::string& name = "train-images-idx3-ubyte") {
        return write(name, {3, 2, 2}, {0, 1, 127, 255, 255, 254, 128, 0, 0, 0, 0, 0});
    }
    MnistFolder& write_labels(const std::vector<unsigned char>& labels, const std::string& name = "train-labels-idx1-ubyte") {
        return write(name, {static_cast<unsigned char>(labels.size())}, labels);
    }
    std::string file(const std::string& name) const { return (path / name).string(); }
    fs::path path;
};

const std::string kFetchAgain = "fetch it again with 'torchbus data fetch mnist'";

}  // namespace

TEST_CASE("MNIST images are scaled and normalised, labels are integers", "[data][mnist]") {
    MnistFolder folder;
    folder.write_images().write_labels({9, 0, 3});
    const auto dataset = load_mnist(folder.path, MnistPart::Train);
    CHECK(dataset->size() == 3);
    CHECK(dataset->inputs().sizes() == at::IntArrayRef({3, 1, 2, 2}));
    CHECK(dataset->inputs().scalar_type() == at::kFloat);
    // (0 - 0.1307) / 0.3081 and (1 - 0.1307) / 0.3081
    CHECK(dataset->inputs()[0][0][0][0].item<float>() == Approx(-0.4242129));
    CHECK(dataset->inputs()[0][0][1][1].item<float>() == Approx(2.8214867));
    CHECK(dataset->targets().equal(torch::tensor({9, 0, 3}, torch::kInt64)));
}

TEST_CASE("each pixel value becomes the bits that the tensor operations give", "[data][mnist]") {
    MnistFolder folder;
    std::vector<unsigned char> pixels(256);
    for (std::size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<unsigned char>(i);
    folder.write("t10k-images-idx3-ubyte", {4, 8, 8}, pixels).write_labels({0, 1, 2, 3}, "t10k-labels-idx1-ubyte");
    const auto dataset = load_mnist(folder.path, MnistPart::Test, {.flatten = true});
    CHECK(dataset->inputs().sizes() == at::IntArrayRef({4, 64}));
    const auto expected = torch::arange(256).to(torch::kFloat).div(255).sub(torch::tensor(0.1307F)).div(torch::tensor(0.3081F));
    CHECK(dataset->inputs().flatten().equal(expected));
}

TEST_CASE("mean and deviation are the caller's", "[data][mnist]") {
    MnistFolder folder;
    folder.write_images().write_labels({1, 2, 3});
    const auto dataset = load_mnist(folder.path, MnistPart::Train, {.mean = 0.0, .deviation = 1.0});
    CHECK(dataset->inputs()[0][0][1][0].item<float>() == 127.0F / 255.0F);
    CHECK_THROWS_WITH(load_mnist(folder.path, MnistPart::Train, {.deviation = 0.0}),
                      "mnist: mean 0.1307 and deviation 0, expected finite numbers and a positive deviation; give e.g. 0.1307 and 0.3081");
    CHECK_THROWS_AS(load_mnist(folder.path, MnistPart::Train, {.mean = std::nan("")}), ConfigError);
}

TEST_CASE("both spellings of the MNIST file names are read", "[data][mnist]") {
    MnistFolder folder;
    folder.write_images("train-images.idx3-ubyte").write_labels({1, 2, 3}, "train-labels.idx1-ubyte");
    CHECK(load_mnist(folder.path, MnistPart::Train)->size() == 3);
}

TEST_CASE("missing MNIST files say how to get them", "[data][mnist]") {
    MnistFolder folder;
    CHECK_THROWS_WITH(load_mnist(folder.path, MnistPart::Test),
                      folder.path.string() + ": holds no t10k-images-idx3-ubyte, expected the MNIST files; fetch them with "
                                             "'torchbus data fetch mnist', or name the folder they lie in");
    std::ofstream(folder.path / "t10k-images-idx3-ubyte.gz") << "\x1f\x8b\x08\x08";
    CHECK_THROWS_WITH(load_mnist(folder.path, MnistPart::Test),
                      folder.file("t10k-images-idx3-ubyte.gz") + ": starts with the gzip magic 1f 8b, expected an IDX file; it is still "
                      "compressed; unpack it with 'gunzip " + folder.file("t10k-images-idx3-ubyte.gz") + "'");
}

TEST_CASE("images and labels of different counts name both files and counts", "[data][mnist]") {
    MnistFolder folder;
    folder.write_images().write_labels({1, 2});
    CHECK_THROWS_WITH(load_mnist(folder.path, MnistPart::Train),
                      folder.file("train-images-idx3-ubyte") + ": 3 images, but " + folder.file("train-labels-idx1-ubyte") +
                          " has 2 labels, expected one for each; the files do not belong together; fetch both again with "
                          "'torchbus data fetch mnist'");
}

TEST_CASE("a label above 9 names its index and its value", "[data][mnist]") {
    MnistFolder folder;
    folder.write_images().write_labels({1, 2, 10});
    CHECK_THROWS_WITH(load_mnist(folder.path, MnistPart::Train),
                      folder.file("train-labels-idx1-ubyte") + ": label 2 is 10, expected 0 to 9; the file is damaged; " + kFetchAgain);
}

TEST_CASE("images and labels in each other's place are told apart", "[data][mnist]") {
    MnistFolder folder;
    folder.write_labels({1, 2, 3}, "train-images-idx3-ubyte").write_images("train-labels-idx1-ubyte");
    CHECK_THROWS_WITH(load_mnist(folder.path, MnistPart::Train),
                      folder.file("train-images-idx3-ubyte") +
                          ": unsigned bytes of 1 dimensions, expected unsigned bytes of 3 (images, rows, columns); " + kFetchAgain);
    folder.write_images().write("train-labels-idx1-ubyte", {1}, {0, 0, 0, 1}, 0x0C);
    CHECK_THROWS_WITH(load_mnist(folder.path, MnistPart::Train),
                      folder.file("train-labels-idx1-ubyte") +
                          ": 32-bit integers of 1 dimensions, expected unsigned bytes of 1 (labels); " + kFetchAgain);
}

TEST_CASE("a truncated MNIST file says what to do", "[data][mnist]") {
    MnistFolder folder;
    folder.write("train-images-idx3-ubyte", {3, 2, 2}, {1, 2, 3}).write_labels({1, 2, 3});
    CHECK_THROWS_WITH(load_mnist(folder.path, MnistPart::Train),
                      folder.file("train-images-idx3-ubyte") + ": 19 bytes, expected 28; the file is truncated; " + kFetchAgain);
}

TEST_CASE("the real MNIST files hold the digits that everybody counts", "[data][mnist][real]") {
    fs::path folder = default_mnist_folder();
    const char* const data = std::getenv("TORCHBUS_DATA");
    if (data && fs::exists(fs::path(data) / "train-images-idx3-ubyte")) folder = data;
    if (!fs::exists(folder / "train-images-idx3-ubyte")) {
        std::cout << "SKIPPED: no MNIST files in " << folder.string() << "; fetch them with 'torchbus data fetch mnist'\n";
        return;
    }
    // mean 0 and deviation 1/255 give the pixels back.
    const auto train = load_mnist(folder, MnistPart::Train, {.mean = 0.0, .deviation = 1.0 / 255});
    const auto test = load_mnist(folder, MnistPart::Test);
    CHECK(train->inputs().sizes() == at::IntArrayRef({60000, 1, 28, 28}));
    CHECK(test->inputs().sizes() == at::IntArrayRef({10000, 1, 28, 28}));
    const auto counts = [](const at::Tensor& labels) { return torch::bincount(labels, {}, 10); };
    CHECK(counts(train->targets()).equal(torch::tensor({5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949}, torch::kInt64)));
    CHECK(counts(test->targets()).equal(torch::tensor({980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009}, torch::kInt64)));
    // The sum of the training pixels, by `python3 -c "print(sum(open('train-images-idx3-ubyte','rb').read()[16:]))"`.
    CHECK(train->inputs().round().sum(at::kDouble).item<double>() == 1567298545.0);
    CHECK(train->inputs().mean(at::kDouble).item<double>() / 255 == Approx(0.1307).epsilon(1e-3));
    CHECK(train->targets()[0].item<int>() == 5);
    CHECK(test->targets()[0].item<int>() == 7);
}
