#include <torchbus/stream/csv_table.hpp>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

constexpr std::string_view kFixed = "time,epoch,step,samples,event";
constexpr std::size_t kFixedCount = 5;
constexpr std::int64_t kAll = std::numeric_limits<std::int64_t>::max();

/// RFC 4180; a cell of ours has no line breaks.
void append_cell(std::string& out, std::string text) {
    std::ranges::replace_if(text, [](char c) { return c == '\n' || c == '\r'; }, ' ');
    if (text.find_first_of(",\"") == std::string::npos) {
        out += text;
        return;
    }
    out += '"';
    for (const char c : text) out += c == '"' ? "\"\"" : std::string(1, c);
    out += '"';
}

std::vector<std::string> cells_of(std::string_view line) {
    std::vector<std::string> cells(1);
    bool is_quoted = false;
    for (std::size_t i = 0; i < line.size(); ++i) {
        if (line[i] == '"' && is_quoted && i + 1 < line.size() && line[i + 1] == '"') cells.back() += line[i++];
        else if (line[i] == '"') is_quoted = !is_quoted;
        else if (line[i] == ',' && !is_quoted) cells.emplace_back();
        else cells.back() += line[i];
    }
    return cells;
}

std::int64_t step_of(std::string_view row) {
    for (int cell = 0; cell < 2; ++cell) row.remove_prefix(std::min(row.find(',') + 1, row.size()));
    std::int64_t step = 0;
    std::from_chars(row.data(), row.data() + row.size(), step);
    return step;
}

/// As Python and pandas read it.
std::string text_of(double value) { return std::isnan(value) ? "nan" : std::isinf(value) ? (value > 0 ? "inf" : "-inf") : fmt::format("{}", value); }

}  // namespace

CsvTable::CsvTable(std::filesystem::path path, std::int64_t keep, bool to_add, std::int64_t step)
    : path_(std::move(path)), file_({.path = path_, .max_bytes = kAll, .keep = keep}) {
    file_.open(to_add);
    read_header();
    if (columns_in_file_ > 0) go_back_to(step);
}

void CsvTable::read_header() {
    std::ifstream stream(path_);
    std::string line;
    if (!std::getline(stream, line)) return;
    if (line.ends_with('\r')) line.pop_back();
    if (!line.starts_with(kFixed)) throw DataError(fmt::format("{}: its first line is '{}', and no table of this kind begins so ('{},…'); give another path, or move it away", path_.string(), line.substr(0, 80), kFixed));
    columns_ = cells_of(line);
    columns_.erase(columns_.begin(), columns_.begin() + kFixedCount);
    for (std::size_t i = 0; i < columns_.size(); ++i) places_.emplace(columns_[i], i);
    columns_in_file_ = kFixedCount + columns_.size();
}

void CsvTable::append_header(std::string& out) const {
    out += kFixed;
    for (const std::string& column : columns_) {
        out += ',';
        append_cell(out, column);
    }
    out += '\n';
}

void CsvTable::add(const StreamNumbers& numbers) {
    if (numbers.fresh.empty()) return;
    std::vector<std::string> cells(columns_.size());
    for (const auto& [name, value] : numbers.fresh) {
        const auto [place, is_new] = places_.emplace(name, columns_.size());
        if (is_new) columns_.push_back(name);
        cells.resize(columns_.size());
        cells[place->second] = text_of(value);
    }
    if (columns_in_file_ != kFixedCount + columns_.size()) {
        flush();
        rewrite(kAll);
    }
    fmt::format_to(std::back_inserter(waiting_), "{:.6f},{},{},{},", numbers.seconds, numbers.epoch, numbers.step, numbers.samples);
    append_cell(waiting_, numbers.after);
    for (const std::string& cell : cells) waiting_ += ',' + cell;
    waiting_ += '\n';
}

void CsvTable::go_back_to(std::int64_t step) {
    flush();
    std::ifstream stream(path_);
    std::string row;
    std::getline(stream, row);
    while (std::getline(stream, row))
        if (step_of(row) > step) return rewrite(step);
}

void CsvTable::rewrite(std::int64_t last) {
    file_.close();
    std::ifstream stream(path_);
    const std::filesystem::path part = path_.string() + ".part";
    LineFile whole({.path = part, .max_bytes = kAll, .keep = 0});
    whole.open(/*to_add=*/false);
    std::string piece;
    append_header(piece);
    const std::string padding(columns_in_file_ == 0 ? 0 : kFixedCount + columns_.size() - columns_in_file_, ',');
    std::string row;
    std::getline(stream, row);  // the header that was
    while (std::getline(stream, row)) {
        if (step_of(row) > last) continue;
        piece += row + padding + '\n';
        if (piece.size() < (1U << 20)) continue;
        whole.write(piece);
        piece.clear();
    }
    whole.write(piece);
    whole.close();
    if (std::rename(part.c_str(), path_.c_str()) != 0) throw DataError(fmt::format("{}: cannot put the table with another column in its place: {}", path_.string(), std::strerror(errno)));
    columns_in_file_ = kFixedCount + columns_.size();
    file_.open(/*to_add=*/true);
}

void CsvTable::flush() {
    if (!waiting_.empty()) file_.write(std::exchange(waiting_, {}));  // where the disk is full, what fits is kept, and comes no second time
}

void CsvTable::sync() {
    flush();
    file_.sync();
}

}  // namespace torchbus
