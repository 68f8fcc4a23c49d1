// A table of numbers that grows by rows and by columns.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>

#include <torchbus/callbacks/csv_file.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/error.hpp>
#include <torchbus/optim/optimizers.hpp>
#include <torchbus/stream/csv_table.hpp>

#include "support/catch.hpp"
#include "support/temporary_folder.hpp"
#include "support/toy.hpp"

using namespace torchbus;
using namespace torchbus::test;
using Catch::Contains;

namespace {

StreamNumbers row_of(std::int64_t step, StreamNumbers::List fresh) {
    StreamNumbers numbers;
    numbers.seconds = 100 + static_cast<double>(step);
    numbers.step = step;
    numbers.samples = 8 * step;
    numbers.after = "train_step_end";
    numbers.fresh = std::move(fresh);
    return numbers;
}

std::string table_in(const std::filesystem::path& path) {
    std::ifstream stream(path);
    return {std::istreambuf_iterator<char>(stream), {}};
}

}  // namespace

TEST_CASE("a number that is new makes a column, and the rows before have an empty cell there", "[stream][csv]") {
    const TemporaryFolder folder("csv");
    CsvTable table(folder / "metrics.csv", 8, false, 0);
    table.add(row_of(1, {{"loss", 0.5}}));
    table.add(row_of(2, {}));
    table.add(row_of(3, {{"a \"b\", c", INFINITY}, {"loss", NAN}}));
    table.add(row_of(4, {{"a \"b\", c", 1e-7}}));
    table.sync();
    CHECK(table_in(folder / "metrics.csv") ==
          "time,epoch,step,samples,event,loss,\"a \"\"b\"\", c\"\n"
          "101.000000,0,1,8,train_step_end,0.5,\n"
          "103.000000,0,3,24,train_step_end,nan,inf\n"
          "104.000000,0,4,32,train_step_end,,1e-07\n");
}

TEST_CASE("a table that is gone on with loses what was torn and what is of later steps", "[stream][csv]") {
    const TemporaryFolder folder("csv");
    {
        CsvTable table(folder / "metrics.csv", 8, false, 0);
        for (std::int64_t step = 1; step <= 5; ++step) table.add(row_of(step, {{"loss", 1.0 / static_cast<double>(step)}}));
        table.sync();
    }
    std::ofstream(folder / "metrics.csv", std::ios::app) << "106.000000,0,6,4";
    CsvTable table(folder / "metrics.csv", 8, true, 3);
    table.add(row_of(4, {{"accuracy", 0.25}}));
    table.sync();
    CHECK(table_in(folder / "metrics.csv").find("103.000000,0,3,24,train_step_end,0.3333333333333333,\n104.000000,0,4,32,train_step_end,,0.25\n") != std::string::npos);
    table.go_back_to(1);
    CHECK(table_in(folder / "metrics.csv") == "time,epoch,step,samples,event,loss,accuracy\n101.000000,0,1,8,train_step_end,1,\n");
}

TEST_CASE("a table that is there is moved aside, and what is no table is refused", "[stream][csv]") {
    const TemporaryFolder folder("csv");
    CsvTable(folder / "metrics.csv", 8, false, 0).add(row_of(1, {{"loss", 1}}));
    std::ofstream(folder / "other.csv") << "x;y\n1;2\n";
    CHECK_THROWS_WITH(CsvTable(folder / "other.csv", 8, true, 0), Contains("other.csv: its first line is 'x;y'"));
    CsvTable table(folder / "other.csv", 8, false, 0);
    table.add(row_of(1, {{"loss", 1}}));
    table.sync();
    CHECK(table_in(folder / "other.1.csv") == "x;y\n1;2\n");
    CHECK(table_in(folder / "other.csv").starts_with("time,epoch,step,samples,event,loss\n"));
}

TEST_CASE("a run's numbers are in the table, a row a step, an evaluation and an epoch", "[callbacks][csv]") {
    const TemporaryFolder folder("csv");
    auto model = toy_model();
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = make_sgd(model->parameters(), {}),
                     .callbacks = {make_metrics({.accuracy = true}), make_csv_file({.path = folder / "metrics.csv", .every = {1, Interval::Unit::Step}})}});
    trainer.train(toy_data(16), toy_data(8), {.epochs = 2, .batch_size = 4});
    std::ifstream stream(folder / "metrics.csv");
    std::string header, row;
    std::getline(stream, header);
    CHECK(header == "time,epoch,step,samples,event,train.accuracy,train.loss,eval.accuracy,eval.loss");
    std::map<std::string, int> rows;
    while (std::getline(stream, row)) {
        CHECK(std::ranges::count(row, ',') == 8);
        for (const char* event : {"train_step_end", "train_epoch_end", "eval_epoch_end"}) rows[event] += row.find(event) != std::string::npos;
    }
    const std::map<std::string, int> expected = {{"train_step_end", 8}, {"train_epoch_end", 2}, {"eval_epoch_end", 2}};
    CHECK(rows == expected);
}
