#include <cstdlib>

#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/progress_bar.hpp>
#include <torchbus/callbacks/progress_lines.hpp>
#include <torchbus/callbacks/step_evaluation.hpp>
#include <torchbus/optim/optimizers.hpp>

#include "support/catch.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;

namespace {

std::string output_of(std::function<std::unique_ptr<Callback>(std::function<void(std::string_view)>)> make) {
    std::string written;
    auto model = toy_model();
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {.learning_rate = 0.1}),
                     .callbacks = {make_metrics({.accuracy = true}), make([&](std::string_view text) { written += text; })}, .seed = 1, .handle_signals = false});
    trainer.train(toy_data(32), toy_data(8, 3), {.epochs = 2, .batch_size = 4});
    return written;
}

std::size_t display_columns(std::string_view text) {
    std::size_t columns = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] == '\x1b') {
            while (i < text.size() && !std::isalpha(static_cast<unsigned char>(text[i]))) ++i;
        } else if ((static_cast<unsigned char>(text[i]) & 0xC0) != 0x80 && text[i] != '\r') {
            ++columns;
        }
    }
    return columns;
}

}  // namespace

TEST_CASE("the bar fits the terminal, whatever its width", "[callbacks][progress]") {
    for (const int columns : {20, 40, 80, 200}) {
        const std::string written = output_of([=](auto write) {
            return make_progress_bar({.redraw_seconds = 0, .write = write, .terminal = true, .columns = columns});
        });
        std::size_t start = 0, drawn = 0;
        while ((start = written.find("\r\x1b[K", start)) != std::string::npos) {
            start += 4;
            const std::size_t end = std::min(written.find('\r', start), written.find('\n', start));
            const std::string_view one = std::string_view(written).substr(start, end - start);
            if (one.starts_with("epoch 1/2: ")) continue;  // the line of a finished epoch is not a bar
            if (one.starts_with("epoch 2/2: ")) continue;
            ++drawn;
            INFO(columns << ": " << one);
            CHECK(display_columns(one) < static_cast<std::size_t>(columns));
        }
        CHECK(drawn > 10);
    }
}

TEST_CASE("the bar tells batches, metrics, speed and time left", "[callbacks][progress]") {
    const std::string written = output_of([](auto write) {
        return make_progress_bar({.redraw_seconds = 0, .write = write, .terminal = true, .columns = 120, .color = false});
    });
    CHECK_THAT(written, containing("epoch 1/2 ") && containing(" 4/8  loss ") && containing("accuracy ") && containing("samples/s  ETA 0:00"));
    CHECK_THAT(written, !containing("\x1b[36m"));
    CHECK_THAT(written, containing("epoch 2/2: train loss "));
}

TEST_CASE("after an evaluation within an epoch the bar is the epoch's again", "[callbacks][progress]") {
    std::string written;
    auto model = toy_model();
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {.learning_rate = 0.1}),
                     .callbacks = {make_metrics(), make_step_evaluation({.every = "3step"}),
                                   make_progress_bar({.redraw_seconds = 0, .write = [&](std::string_view text) { written += text; }, .terminal = true, .columns = 120, .color = false})},
                     .handle_signals = false});
    trainer.train(toy_data(32), toy_data(8, 3), {.batch_size = 4});
    CHECK_THAT(written, containing(" 2/2  loss "));  // of the evaluation
    const auto fourth = written.find(" 4/8  loss ");
    REQUIRE(fourth != std::string::npos);
    CHECK(written.substr(written.rfind("\r\x1b[K", fourth) + 4, 9) == "epoch 1/1");
}

TEST_CASE("where the output is no terminal there are only lines", "[callbacks][progress]") {
    const std::string written = output_of([](auto write) { return make_progress_bar({.redraw_seconds = 0, .write = write, .terminal = false}); });
    CHECK(written.find('\r') == std::string::npos);
    CHECK(std::ranges::count(written, '\n') == 2);
}

TEST_CASE("NO_COLOR is heeded", "[callbacks][progress]") {
    const auto draw = [] {
        return output_of([](auto write) { return make_progress_bar({.redraw_seconds = 0, .write = write, .terminal = true, .columns = 100}); });
    };
    unsetenv("NO_COLOR");
    CHECK_THAT(draw(), containing("\x1b[36m"));
    setenv("NO_COLOR", "1", 1);
    CHECK_THAT(draw(), !containing("\x1b[36m"));
    unsetenv("NO_COLOR");
}

TEST_CASE("progress lines come at their interval and after every epoch", "[callbacks][progress]") {
    const std::string written = output_of([](auto write) { return make_progress_lines({.every = "3step", .write = write}); });
    std::vector<std::string> starts;
    for (std::size_t at = 0, end; (end = written.find('\n', at)) != std::string::npos; at = end + 1)
        starts.push_back(written.substr(at, written.find(':', at) - at));
    CHECK(starts == std::vector<std::string>{"epoch 1, step 3", "epoch 1, step 6", "epoch 1/2", "epoch 2, step 9", "epoch 2, step 12", "epoch 2, step 15", "epoch 2/2"});
}
