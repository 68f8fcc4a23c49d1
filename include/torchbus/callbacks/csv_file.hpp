#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>

#include <torchbus/callback.hpp>
#include <torchbus/interval.hpp>

namespace torchbus {

/// Writes the numbers of the blackboard to a table, a row for every step, evaluation and epoch that has new ones, on a thread of its own.
/// Listens: every event (stage Persist). Reads: blackboard.
/// Columns: time, epoch, step, samples, event, and one for every number; where one is new the file is written anew, with a column
/// more. A number that is not new has an empty cell.
/// A run that begins anew moves the table that is there aside, to <name>.1<extension>; one that goes on, or is rolled back, cuts off the rows
/// of later steps. A file that cannot be written is told, and the run goes on without it.
/// Rank: rank 0 writes.
struct CsvFileOptions {
    std::filesystem::path path = "metrics.csv";
    Interval every = Interval(10, Interval::Unit::Step);  ///< of steps; all else is written always
    std::int64_t keep = 8;                                ///< tables moved aside; ≥ 0
};
std::unique_ptr<Callback> make_csv_file(CsvFileOptions options = {});

}  // namespace torchbus
