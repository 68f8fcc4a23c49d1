#include <torchbus/stream/message.hpp>

#include <algorithm>
#include <ctime>
#include <exception>
#include <iterator>

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <torchbus/events_json.hpp>

#include "../json_text.hpp"

namespace torchbus {
namespace {

using std::chrono::system_clock;

std::int64_t microseconds_of(system_clock::time_point time) { return std::chrono::duration_cast<std::chrono::microseconds>(time.time_since_epoch()).count(); }

void append_padded(std::string& out, std::string_view digits, std::size_t width) {
    out.append(width - std::min(width, digits.size()), '0');
    out += digits;
}

/// Of a user's event whose to_json throws.
std::string error_data(std::string_view what) {
    std::string data = R"({"error":)";
    append_json_text(data, what);
    return data + '}';
}

}  // namespace

MessageWriter::MessageWriter(const StreamSource& source) {
    std::string run;
    append_json_text(run, source.run);
    std::string path;
    append_json_text(path, fmt::format("/torchbus/{}/ranks/{}", source.run, source.rank));
    head_ = fmt::format(R"({{"specversion":"1.0","source":{},"run":{},"rank":{},"dataschema":"torchbus:events:{}","type":"torchbus.)", path, run, source.rank, kStreamVersion);
}

std::string_view MessageWriter::second_text(system_clock::time_point now) {
    const std::int64_t second = std::chrono::duration_cast<std::chrono::seconds>(now.time_since_epoch()).count();
    if (second != second_) {
        second_ = second;
        const auto time = static_cast<std::time_t>(second);
        std::tm parts{};
        char text[32];
        second_text_.assign(text, std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", ::gmtime_r(&time, &parts)));
    }
    return second_text_;
}

void MessageWriter::begin(std::string& out, std::string_view name, std::int64_t sequence, std::string_view id_ending, system_clock::time_point now) {
    out += head_;
    out += name;
    const fmt::format_int number(sequence);
    const std::string_view digits(number.data(), number.size());
    out += R"(","id":")";
    out += digits;
    out += id_ending;
    out += R"(","sequence":")";
    append_padded(out, digits, 16);
    out += R"(","time":")";
    out += second_text(now);
    out += '.';
    const fmt::format_int fraction(microseconds_of(now) % 1'000'000);
    append_padded(out, {fraction.data(), fraction.size()}, 6);
    out += R"(Z","data":)";
}

void MessageWriter::append(std::string& out, const AnyEvent& event, system_clock::time_point now) {
    append(out, event.name(), data_of(event), now);
}

void MessageWriter::append(std::string& out, std::string_view name, std::string_view data, system_clock::time_point now) {
    begin(out, name, ++sequence_, "", now);
    out += data;
    out += "}\n";
}

void MessageWriter::append_beside(std::string& out, std::string_view name, std::int64_t sequence, std::string_view data, system_clock::time_point now) {
    begin(out, name, sequence, fmt::format(".{}.{}", name, ++beside_), now);
    out += data;
    out += "}\n";
}

void MessageWriter::append_gap(std::string& out, std::int64_t first, std::int64_t last, system_clock::time_point now) {
    begin(out, "gap", last, ".gap", now);
    fmt::format_to(std::back_inserter(out), R"({{"first":{},"last":{},"count":{}}}}})" "\n", first, last, last - first + 1);
}

std::string data_of(const AnyEvent& event) {
    std::string data;
    if (event.is_of_library()) {
        event.append_json(data);
        return data;
    }
    try {
        event.append_json(data);
    } catch (const c10::Error& error) {
        return error_data(error.what_without_backtrace());
    } catch (const std::exception& error) {
        return error_data(error.what());
    } catch (...) {
        return error_data("to_json threw what is no std::exception");
    }
    if (!data.starts_with('{')) data = R"({"value":)" + data + '}';
    if (is_shallow(data, kDeepestMessage - 1)) return data;  // the message is a level of its own
    std::string text = R"({"text":)";
    append_json_text(text, data);
    return text + '}';
}

}  // namespace torchbus
