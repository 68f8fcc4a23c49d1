#pragma once
/// Event files that TensorBoard reads while they are written: records with checksums, each a protobuf of a summary.

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace torchbus {

/// Counts of values between limits, as TensorBoard draws them. Shapes: as many limits as counts; a count is of what is
/// at most its limit and above the one before.
struct Histogram {
    double min = 0, max = 0, count = 0, sum = 0, sum_squares = 0;
    std::vector<double> limits, counts;
};

using HyperParameter = std::variant<double, std::string, bool>;

/// Thread: one at a time. Throws: DataError that names the file and what the system says.
/// Source: tensorflow/core/util/event.proto, summary.proto, lib/io/record_writer.h; tensorboard/plugins/{text,hparams}.
class TensorBoardFile {
public:
    /// A new file in `folder`, or the newest one that is there, once a record that was torn is cut off. What that has of steps after
    /// `step` counts no more.
    TensorBoardFile(const std::filesystem::path& folder, std::int64_t step);
    ~TensorBoardFile();
    TensorBoardFile(const TensorBoardFile&) = delete;
    TensorBoardFile& operator=(const TensorBoardFile&) = delete;

    /// The newest file in a folder, by its name.
    static std::optional<std::filesystem::path> newest_in(const std::filesystem::path& folder);
    /// What was told of `step` and later counts no more.
    void restart_at(std::int64_t step);
    /// Units: `seconds` since 1970.
    void add_scalar(double seconds, std::int64_t step, std::string_view tag, double value);
    void add_text(double seconds, std::int64_t step, std::string_view tag, std::string_view text);
    void add_histogram(double seconds, std::int64_t step, std::string_view tag, const Histogram& histogram);
    /// What the hparams dashboard shows of this run, and by which metrics it compares runs.
    void add_hyper_parameters(double seconds, const std::map<std::string, HyperParameter>& parameters, const std::vector<std::string>& metrics);
    /// `succeeded`: how the run ended, for the same.
    void add_end(double seconds, bool succeeded);
    /// Gives what was added to the system; from then on a dying process loses nothing of it.
    void flush();
    void sync();
    const std::filesystem::path& path() const { return path_; }

private:
    std::int64_t measure_whole_records();
    void add_record(std::string_view data);
    [[noreturn]] void fail(const char* doing) const;

    std::filesystem::path path_;
    int descriptor_ = -1;
    std::int64_t size_ = 0;  ///< of whole records in the file
    std::string waiting_;    ///< whole records
};

/// Records of a file that are whole, and how many bytes they take: for who reads it, and for who adds to it.
struct TensorBoardRecords {
    std::int64_t count = 0, bytes = 0;
};
TensorBoardRecords whole_records(std::string_view content);

}  // namespace torchbus
