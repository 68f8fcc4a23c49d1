#include <torchbus/stream/tensorboard_file.hpp>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <optional>
#include <utility>

#include <boost/crc.hpp>
#include <fmt/format.h>

#include <torchbus/error.hpp>

#include "protobuf.hpp"

namespace torchbus {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "events.out.tfevents.";
constexpr std::size_t kHead = 12, kTail = 4;  // length and its checksum; checksum of the data
constexpr std::size_t kFlushBytes = 256U << 10;

/// CRC-32C, rotated and offset: a checksum of bytes that hold checksums would else be weak.
std::uint32_t masked_checksum(std::string_view bytes) {
    boost::crc_optimal<32, 0x1EDC6F41, 0xFFFFFFFF, 0xFFFFFFFF, true, true> crc;
    crc.process_bytes(bytes.data(), bytes.size());
    const std::uint32_t sum = crc.checksum();
    return ((sum >> 15) | (sum << 17)) + 0xa282ead8U;
}

template <class T>
void append_raw(std::string& out, T value) {
    char bytes[sizeof value];
    std::memcpy(bytes, &value, sizeof value);
    out.append(bytes, sizeof value);
}
template <class T>
T raw_at(std::string_view bytes, std::size_t place) {
    T value;
    std::memcpy(&value, bytes.data() + place, sizeof value);
    return value;
}

ProtobufMessage event_at(double seconds, std::int64_t step) {
    ProtobufMessage event;
    event.fixed64(1, seconds);
    event.varint(2, static_cast<std::uint64_t>(step));
    return event;
}

std::string with_summary(double seconds, std::int64_t step, const ProtobufMessage& value) {
    ProtobufMessage summary, event = event_at(seconds, step);
    summary.bytes(1, value.text());
    event.bytes(5, summary.text());
    return event.text();
}

/// A value that a plug-in of TensorBoard reads: its content is in the metadata.
ProtobufMessage of_plugin(std::string_view tag, std::string_view plugin, std::string_view content) {
    ProtobufMessage data, metadata, value;
    data.bytes(1, plugin);
    if (!content.empty()) data.bytes(2, content);
    metadata.bytes(1, data.text());
    value.bytes(1, tag);
    value.bytes(9, metadata.text());
    return value;
}

ProtobufMessage of_hyper_parameters(std::string_view what, const ProtobufMessage& content) {
    ProtobufMessage value = of_plugin(fmt::format("_hparams_/{}", what), "hparams", content.text()), tensor, shape;
    shape.bytes(2, {});  // one dimension, of size 0
    tensor.varint(1, 1);  // DT_FLOAT
    tensor.bytes(2, shape.text());
    value.bytes(8, tensor.text());
    return value;
}

/// google.protobuf.Value
std::string value_text(const HyperParameter& parameter) {
    ProtobufMessage value;
    if (const auto* number = std::get_if<double>(&parameter)) value.fixed64(2, *number);
    else if (const auto* text = std::get_if<std::string>(&parameter)) value.bytes(3, *text);
    else value.varint(4, std::get<bool>(parameter) ? 1 : 0);
    return value.text();
}

fs::path new_file_in(const fs::path& folder) {
    static std::atomic<int> made{0};
    char host[256] = "localhost";
    ::gethostname(host, sizeof host - 1);
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
    return folder / fmt::format("{}{:010}.{}.{}.{}", kPrefix, seconds, host, ::getpid(), made++);
}

double seconds_now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

}  // namespace

TensorBoardRecords whole_records(std::string_view content) {
    TensorBoardRecords whole;
    for (std::size_t at = 0; content.size() - at >= kHead + kTail;) {
        const auto length = raw_at<std::uint64_t>(content, at);
        if (raw_at<std::uint32_t>(content, at + 8) != masked_checksum(content.substr(at, 8)) || length > content.size() - at - kHead - kTail) break;
        if (raw_at<std::uint32_t>(content, at + kHead + length) != masked_checksum(content.substr(at + kHead, length))) break;
        at += kHead + length + kTail;
        ++whole.count;
        whole.bytes = static_cast<std::int64_t>(at);
    }
    return whole;
}

std::optional<fs::path> TensorBoardFile::newest_in(const fs::path& folder) {
    std::optional<fs::path> newest;
    std::error_code none;
    for (const auto& entry : fs::directory_iterator(folder, none))
        if (entry.path().filename().string().starts_with(kPrefix) && (!newest || newest->filename() < entry.path().filename())) newest = entry.path();
    return newest;
}

TensorBoardFile::TensorBoardFile(const fs::path& folder, std::int64_t step) {
    std::error_code told_when_it_is_opened;
    fs::create_directories(folder, told_when_it_is_opened);
    const auto there = newest_in(folder);
    path_ = there.value_or(new_file_in(folder));
    descriptor_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (descriptor_ < 0) fail("open");
    const std::int64_t found = measure_whole_records();
    if (size_ < found && ::ftruncate(descriptor_, size_) != 0) fail("cut a torn record off");
    ProtobufMessage version = event_at(seconds_now(), 0);
    version.bytes(3, "brain.Event:2");
    if (size_ == 0) add_record(version.text());
    if (there) restart_at(step + 1);
    flush();
}

/// Learns what is whole, and returns how many bytes there are.
std::int64_t TensorBoardFile::measure_whole_records() {
    struct stat found = {};
    if (::fstat(descriptor_, &found) != 0) fail("look at");
    if (found.st_size == 0) return 0;
    void* bytes = ::mmap(nullptr, static_cast<std::size_t>(found.st_size), PROT_READ, MAP_SHARED, descriptor_, 0);
    if (bytes == MAP_FAILED) fail("read");
    size_ = whole_records({static_cast<const char*>(bytes), static_cast<std::size_t>(found.st_size)}).bytes;
    ::munmap(bytes, static_cast<std::size_t>(found.st_size));
    return found.st_size;
}

TensorBoardFile::~TensorBoardFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
}

void TensorBoardFile::restart_at(std::int64_t step) {
    ProtobufMessage session, event = event_at(seconds_now(), step);
    session.varint(1, 1);  // START
    event.bytes(7, session.text());
    add_record(event.text());
}

void TensorBoardFile::fail(const char* doing) const { throw DataError(fmt::format("{}: cannot {} it: {}", path_.string(), doing, std::strerror(errno))); }

void TensorBoardFile::add_record(std::string_view data) {
    const std::size_t begin = waiting_.size();
    append_raw(waiting_, static_cast<std::uint64_t>(data.size()));
    append_raw(waiting_, masked_checksum(std::string_view(waiting_).substr(begin, 8)));
    waiting_ += data;
    append_raw(waiting_, masked_checksum(data));
    if (waiting_.size() >= kFlushBytes) flush();
}

void TensorBoardFile::flush() {
    for (std::size_t written = 0; written < waiting_.size();) {
        const ssize_t count = ::write(descriptor_, waiting_.data() + written, waiting_.size() - written);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) {
            const int why = errno;
            errno = ::ftruncate(descriptor_, size_) == 0 ? why : errno;  // no part of a record stays
            fail("write");
        }
        written += static_cast<std::size_t>(count);
    }
    size_ += static_cast<std::int64_t>(waiting_.size());
    waiting_.clear();
}

void TensorBoardFile::sync() {
    flush();
    if (::fdatasync(descriptor_) != 0) fail("sync");
}

void TensorBoardFile::add_scalar(double seconds, std::int64_t step, std::string_view tag, double value) {
    ProtobufMessage scalar;
    scalar.bytes(1, tag);
    scalar.fixed32(2, static_cast<float>(value));
    add_record(with_summary(seconds, step, scalar));
}

void TensorBoardFile::add_text(double seconds, std::int64_t step, std::string_view tag, std::string_view text) {
    ProtobufMessage value = of_plugin(tag, "text", {}), tensor, shape, dimension;
    dimension.varint(1, 1);
    shape.bytes(2, dimension.text());
    tensor.varint(1, 7);  // DT_STRING
    tensor.bytes(2, shape.text());
    tensor.bytes(8, text);
    value.bytes(8, tensor.text());
    add_record(with_summary(seconds, step, value));
}

void TensorBoardFile::add_histogram(double seconds, std::int64_t step, std::string_view tag, const Histogram& histogram) {
    ProtobufMessage counts, value;
    const std::array figures = {histogram.min, histogram.max, histogram.count, histogram.sum, histogram.sum_squares};
    for (int field = 1; field <= 5; ++field) counts.fixed64(field, figures[static_cast<std::size_t>(field - 1)]);
    counts.packed(6, histogram.limits);
    counts.packed(7, histogram.counts);
    value.bytes(1, tag);
    value.bytes(5, counts.text());
    add_record(with_summary(seconds, step, value));
}

void TensorBoardFile::add_hyper_parameters(double seconds, const std::map<std::string, HyperParameter>& parameters, const std::vector<std::string>& metrics) {
    constexpr std::array<int, 3> kTypes = {3, 1, 2};  // of DataType: DATA_TYPE_FLOAT64, _STRING, _BOOL
    ProtobufMessage experiment, start;
    for (const auto& [name, parameter] : parameters) {
        ProtobufMessage information, entry;
        information.bytes(1, name);
        information.varint(4, static_cast<std::uint64_t>(kTypes[parameter.index()]));
        experiment.bytes(4, information.text());
        entry.bytes(1, name);
        entry.bytes(2, value_text(parameter));
        start.bytes(1, entry.text());
    }
    for (const std::string& metric : metrics) {
        ProtobufMessage name, information;
        name.bytes(2, metric);
        information.bytes(1, name.text());
        experiment.bytes(5, information.text());
    }
    start.fixed64(5, seconds);
    ProtobufMessage of_experiment, of_session;
    of_experiment.bytes(2, experiment.text());
    of_session.bytes(3, start.text());
    add_record(with_summary(seconds, 0, of_hyper_parameters("experiment", of_experiment)));
    add_record(with_summary(seconds, 0, of_hyper_parameters("session_start_info", of_session)));
}

void TensorBoardFile::add_end(double seconds, bool succeeded) {
    ProtobufMessage end, of_session;
    end.varint(1, succeeded ? 1 : 2);
    end.fixed64(2, seconds);
    of_session.bytes(4, end.text());
    add_record(with_summary(seconds, 0, of_hyper_parameters("session_end_info", of_session)));
}

}  // namespace torchbus
