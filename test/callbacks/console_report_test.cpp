#include <regex>
#include <thread>
#include <sstream>

#include <nlohmann/json.hpp>

#include <torchbus/callbacks/console_report.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/error.hpp>

#include "support/callback_of.hpp"
#include "support/catch.hpp"
#include "support/fake_world.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;
using Catch::Matchers::Contains;

namespace {

struct ConsoleReportSetup {
    std::string report;
    torch::nn::Sequential model = toy_model();
    Trainer trainer;
    explicit ConsoleReportSetup(ConsoleReportOptions options = {}, std::vector<ComposedCallback> more = {}, Loss loss = cross_entropy)
        : trainer(composed(std::move(options), std::move(more), std::move(loss))) {}
    TrainerOptions composed(ConsoleReportOptions options, std::vector<ComposedCallback> more, Loss loss) {
        options.write = [this](std::string_view text) { report += text; };
        std::vector<ComposedCallback> callbacks = {make_metrics({.accuracy = true}), make_console_report(std::move(options))};
        for (auto& callback : more) callbacks.push_back(std::move(callback));
        return {.model = model, .loss = std::move(loss), .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.1),
                .callbacks = std::move(callbacks), .handle_signals = false};
    }
};

std::vector<std::string> lines_of(const std::string& text) {
    std::vector<std::string> lines;
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) lines.push_back(line);
    return lines;
}

std::ptrdiff_t columns_of(const std::string& line) {
    return std::ranges::count_if(line, [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

/// Publishes these values of eval.score at the ends of epochs.
ComposedCallback scores(std::vector<double> values, std::string name = "eval.score") {
    return callback_of("scores", [values, name](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainEpochEnd>(Stage::Observe, [&run, values, name](const TrainEpochEnd& event) {
            run.blackboard.publish(name, values.at(static_cast<std::size_t>(event.position.epoch - 1)));
        });
    });
}

ComposedCallback asks_at(std::int64_t step, Decision decision, std::string reason) {
    return callback_of("asker", [=](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainStepEnd>(Stage::Report, [=, &run](const TrainStepEnd& event) {
            if (event.position.step == step) run.asker.ask(decision, reason);
        });
    });
}

}  // namespace

TEST_CASE("the report tells the outcome, metrics with their best epoch, and the cost of every subscriber", "[callbacks][console_report]") {
    ConsoleReportSetup setup({}, {scores({0.5, 0.25, 0.75})});
    setup.trainer.train(toy_data(8), {.epochs = 3, .batch_size = 4});
    const auto lines = lines_of(setup.report);
    CHECK(lines[0] == "training finished");
    CHECK(lines[1] == "  0:00 in 6 steps, 3 epochs, 24 samples");
    CHECK_THAT(setup.report, Contains("metric                                            last          best    in epoch\n"
                                      "eval.score                                        0.75          0.25           2\n"));
    CHECK(std::regex_search(setup.report, std::regex("\ntrain\\.accuracy +[0-9.]+ +[0-9.]+ +[123]\n")));
    // Three TrainEpochEnd of `scores`, and nothing else.
    CHECK(std::regex_search(setup.report, std::regex("\nscores +3 +[0-9.]+ +[0-9.]+ +[0-9.]+ %\n")));
    CHECK(std::regex_search(setup.report, std::regex("\nall +[0-9]+ +[0-9.]+ +[0-9.]+ +[0-9.]+ %\n$")));
    CHECK_THAT(setup.report, !Contains("decisions"));
    for (const std::string& line : lines) CHECK(columns_of(line) <= 80);
}

TEST_CASE("the best of an accuracy is the largest one, and a NaN is never the best", "[callbacks][console_report]") {
    ConsoleReportSetup setup({}, {scores({0.5, 0.75, std::numeric_limits<double>::quiet_NaN()}, "eval.noisy.accuracy")});
    setup.trainer.train(toy_data(4), {.epochs = 3, .batch_size = 4});
    CHECK_THAT(setup.report, Contains("eval.noisy.accuracy                                nan          0.75           2\n"));
    ConsoleReportSetup first({}, {scores({std::numeric_limits<double>::quiet_NaN(), 0.75, 0.8})});
    first.trainer.train(toy_data(4), {.epochs = 3, .batch_size = 4});
    CHECK_THAT(first.report, Contains("eval.score                                         0.8          0.75           2\n"));
}

TEST_CASE("a stopped run says who stopped it and why, folded to 80 columns", "[callbacks][console_report]") {
    const std::string reason = "this reason is a long one, longer than a line of a terminal, so that it has to be folded: naïve, but whole to its very end";
    ConsoleReportSetup setup({.accounting = false}, {asks_at(2, Decision::StopRun, reason)});
    setup.trainer.train(toy_data(40), {.batch_size = 4});
    const auto lines = lines_of(setup.report);
    CHECK(lines[0] == "training stopped: asker: this reason is a long one, longer than a line of a");
    CHECK(lines[1] == "  terminal, so that it has to be folded: naïve, but whole to its very end");
    CHECK(lines[2] == "  0:00 in 2 steps, 0 epochs, 8 samples");
    CHECK_THAT(setup.report, Contains("\ndecisions\n  stop_run at step 2: asker: this reason is"));
    CHECK_THAT(setup.report, Contains("train.loss"));  // ended within its first epoch: the running means
    CHECK_THAT(setup.report, !Contains("subscriber"));
}

TEST_CASE("decisions of one kind and requester are counted", "[callbacks][console_report]") {
    ConsoleReportSetup setup({.metrics = false, .accounting = false}, {callback_of("saver", [](Attachment& run, Connections& connections) {
        connections += run.bus.observe<TrainStepEnd>(Stage::Report, [&run](const TrainStepEnd& event) {
            if (event.position.step <= 3) run.asker.ask(Decision::SaveNow, "every step");
        });
    })});
    setup.trainer.train(toy_data(20), {.batch_size = 4});
    CHECK(setup.report == "training finished\n  0:00 in 5 steps, 1 epochs, 20 samples\n\ndecisions\n  save_now, 3 times, the last one at step 3: saver: every step\n");
}

TEST_CASE("a failed run is reported with its error", "[callbacks][console_report]") {
    ConsoleReportSetup setup({.metrics = false, .accounting = false}, {}, [](const at::Tensor&, const at::Tensor&) -> at::Tensor { throw std::runtime_error("no loss today"); });
    CHECK_THROWS(setup.trainer.train(toy_data(8)));
    CHECK(setup.report == "training failed: no loss today\n  0:00 in 0 steps, 0 epochs, 0 samples\n");
}

TEST_CASE("skipped updates are told", "[callbacks][console_report]") {
    ConsoleReportSetup setup({.metrics = false, .accounting = false}, {callback_of("skipper", [](Attachment& run, Connections& connections) {
        connections += run.bus.intercept(Phase::Decide, [](GradientsReady& event) { if (event.position.attempts == 1) event.skip("skipper", "test"); });
    })});
    setup.trainer.train(toy_data(12), {.batch_size = 4});
    CHECK(setup.report == "training finished\n  0:00 in 2 steps (1 skipped), 1 epochs, 12 samples\n");
}

TEST_CASE("each run is accounted by itself", "[callbacks][console_report]") {
    ConsoleReportSetup setup({}, {scores({1, 2, 3})});
    setup.trainer.train(toy_data(4), {.epochs = 3, .batch_size = 4});
    setup.report.clear();
    setup.trainer.train(toy_data(4), {.epochs = 1, .batch_size = 4});
    CHECK(std::regex_search(setup.report, std::regex("\nscores +1 ")));
    CHECK_THAT(setup.report, Contains("eval.score                                           1             1           1\n"));
    setup.report.clear();
    setup.trainer.evaluate(toy_data(4));
    CHECK(setup.report.starts_with("evaluation finished\n"));
    CHECK_THAT(setup.report, Contains("eval.accuracy") && !Contains("train.loss") && !Contains("scores"));
}

TEST_CASE("many subscribers are summed up, and long names cut", "[callbacks][console_report]") {
    std::vector<ComposedCallback> many;
    for (int i = 0; i < 30; ++i) {
        const auto connect = [i](Attachment& run, Connections& connections) {
            connections += run.bus.observe<TrainStepEnd>(Stage::Report, [i](const TrainStepEnd&) { if (i == 7) std::this_thread::sleep_for(std::chrono::milliseconds(20)); });
        };
        many.push_back(callback_of("subscriber_with_a_name_of_many_columns_" + std::to_string(i), connect));
    }
    ConsoleReportSetup setup({.max_subscribers = 3}, std::move(many));
    setup.trainer.train(toy_data(8), {.batch_size = 4});
    const auto lines = lines_of(setup.report);
    for (const std::string& line : lines) CHECK(columns_of(line) <= 80);
    const auto header = std::ranges::find_if(lines, [](const std::string& line) { return line.starts_with("subscriber "); });
    REQUIRE(lines.end() - header == 6);  // three, the others, all
    CHECK(header[1].starts_with("subscriber_with_a_name_of_many_colum…         2"));  // the slow one comes first
    CHECK(header[4].find(" others ") != std::string::npos);
}

TEST_CASE("only rank 0 reports", "[callbacks][console_report]") {
    FakeWorld world(2);
    std::string reports[2];
    std::vector<std::thread> ranks;
    for (int rank = 0; rank < 2; ++rank)
        ranks.emplace_back([&, rank] {
            auto model = torch::nn::Sequential(torch::nn::Linear(6, 3));
            Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.1),
                             .callbacks = {world.reducer(rank), make_console_report({.write = [&, rank](std::string_view text) { reports[rank] += text; }})},
                             .consensus = world.consensus(rank), .handle_signals = false});
            trainer.train(toy_data(8), {.batch_size = 4});
        });
    for (std::thread& rank : ranks) rank.join();
    CHECK(reports[0].starts_with("training finished\n"));
    CHECK(reports[1].empty());
}

TEST_CASE("a resumed run knows the best value of before", "[callbacks][console_report]") {
    std::string text;
    const std::shared_ptr<Callback> report = make_console_report({.accounting = false, .write = [&](std::string_view written) { text += written; }});
    auto model = toy_model();
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = std::make_shared<torch::optim::SGD>(model->parameters(), 0.1),
                     .callbacks = {report, scores({0.5, 0.6})}, .handle_signals = false});
    report->load_state({nlohmann::json::parse(R"({"eval.score": {"last": 0.4, "best": 0.1, "best_epoch": 7}, "eval.lost": {"last": null, "best": null, "best_epoch": 1}})"), {}});
    trainer.train(toy_data(4), {.epochs = 2, .batch_size = 4});
    CHECK_THAT(text, Contains("eval.score                                         0.6           0.1           7\n"));
    CHECK(report->state().empty());  // the next run is another one
}

TEST_CASE("a report of no subscribers is refused", "[callbacks][console_report]") {
    CHECK_THROWS_WITH(make_console_report({.max_subscribers = 0}), "console_report: max_subscribers: 0 is too few; give at least 1, or turn accounting off");
}
