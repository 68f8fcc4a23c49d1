#include "event_record.hpp"

#include <cstring>

#include <torchbus/events_json.hpp>

namespace torchbus {
namespace {

using std::chrono::system_clock;

enum class RecordKind : std::uint8_t { Event, UserEvent, Text, Numbers, Gap };

/// What each record begins with.
struct RecordHead {
    RecordKind kind;
    const std::string* name;
    const CapturedForm* form;
    system_clock::time_point now;
    std::size_t size;  ///< of what follows
};

template <class T>
void put_value(std::string& records, const T& value) {
    records.append(reinterpret_cast<const char*>(&value), sizeof value);
}
template <class T>
T take_value(std::string_view& record) {
    T value;
    std::memcpy(&value, record.data(), sizeof value);
    record.remove_prefix(sizeof value);
    return value;
}

/// A record whose content `append` puts behind its head; none where that throws.
template <class Append>
void record(std::string& records, RecordHead head, Append&& append) {
    const std::size_t begin = records.size();
    put_value(records, head);
    try {
        append();
    } catch (...) {
        records.resize(begin);
        throw;
    }
    head.size = records.size() - begin - sizeof head;
    std::memcpy(records.data() + begin, &head, sizeof head);
}

/// Position, event, and numbers: whether it is new, its value, its name.
std::string numbers_json(std::string_view record) {
    const auto position = take_value<Position>(record);
    const auto* after = take_value<const std::string*>(record);
    std::string fresh, older;
    while (!record.empty()) {
        const bool is_new = take_value<bool>(record);
        const auto number = take_value<double>(record);
        const auto length = take_value<std::size_t>(record);
        std::string& out = is_new ? fresh : older;
        out += out.empty() ? "" : ",";
        append_json_text(out, record.substr(0, length));
        out += ':';
        append_json_number(out, number);
        record.remove_prefix(length);
    }
    std::string json = "{\"position\":";
    append_json(json, position);
    json += ",\"numbers\":{" + fresh + "},\"older\":{" + older + "},\"after\":";
    append_json_text(json, *after);
    return json + "}";
}

}  // namespace

void record_event(std::string& records, const AnyEvent& event, const CapturedForm* form, system_clock::time_point now) {
    record(records, {form ? RecordKind::Event : RecordKind::UserEvent, &event.name(), form, now, 0}, [&] {
        if (form) form->capture(records, event);
        else event.append_json(records);
    });
}

void record_text(std::string& records, const std::string& name, std::string_view json, system_clock::time_point now) {
    record(records, {RecordKind::Text, &name, nullptr, now, 0}, [&] { records += json; });
}

void record_numbers(std::string& records, const Position& position, const Blackboard& blackboard, std::int64_t since, const std::string& after, system_clock::time_point now) {
    record(records, {RecordKind::Numbers, nullptr, nullptr, now, 0}, [&] {
        put_value(records, position);
        put_value(records, &after);
        blackboard.for_each(since, [&](std::string_view name, double number, bool is_new) {
            put_value(records, is_new);
            put_value(records, number);
            put_value(records, name.size());
            records += name;
        });
    });
}

void record_gap(std::string& records, std::int64_t count, system_clock::time_point now) {
    record(records, {RecordKind::Gap, nullptr, nullptr, now, 0}, [&] { put_value(records, count); });
}

std::size_t write_first_record(std::string_view records, MessageWriter& writer, std::string& lines) {
    const auto head = take_value<RecordHead>(records);
    std::string_view content = records.substr(0, head.size);
    std::string json;
    switch (head.kind) {
        case RecordKind::Event:
            head.form->append_json(json, content);
            writer.append(lines, *head.name, json, head.now);
            break;
        case RecordKind::UserEvent: writer.append(lines, *head.name, readable_data(std::string(content)), head.now); break;
        case RecordKind::Text: writer.append(lines, *head.name, content, head.now); break;
        case RecordKind::Numbers: writer.append(lines, "numbers", numbers_json(content), head.now); break;
        case RecordKind::Gap: {
            const std::int64_t first = writer.sequence() + 1;
            writer.skip(take_value<std::int64_t>(content));
            writer.append_gap(lines, first, writer.sequence(), head.now);
        }
    }
    return sizeof head + head.size;
}

}  // namespace torchbus
