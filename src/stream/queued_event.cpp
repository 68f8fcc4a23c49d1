#include "queued_event.hpp"

#include <cstdint>
#include <cstring>

#include <torchbus/events_json.hpp>

namespace torchbus {
namespace {

using std::chrono::system_clock;

enum class QueuedKind : std::uint8_t { Captured, Text, Numbers, Gap };

/// What each begins with.
struct QueuedHead {
    QueuedKind kind;
    const std::string* name;
    const CapturedForm* form;
    system_clock::time_point now;
    std::size_t size;  ///< of what follows
};

/// One event, whose content `append` puts behind its head; none where that throws.
template <class Append>
void queue_up(std::string& queued, QueuedHead head, Append&& append) {
    const std::size_t begin = queued.size();
    append_bytes(queued, head);
    try {
        append();
    } catch (...) {
        queued.resize(begin);
        throw;
    }
    head.size = queued.size() - begin - sizeof head;
    std::memcpy(queued.data() + begin, &head, sizeof head);
}

/// Position, event, and numbers: whether it is new, its value, its name.
std::string numbers_json(std::string_view content) {
    const auto position = take_bytes<Position>(content);
    const auto* after = take_bytes<const std::string*>(content);
    std::string fresh, older;
    while (!content.empty()) {
        const bool is_new = take_bytes<bool>(content);
        const auto number = take_bytes<double>(content);
        const auto length = take_bytes<std::size_t>(content);
        std::string& out = is_new ? fresh : older;
        out += out.empty() ? "" : ",";
        append_json_text(out, content.substr(0, length));
        out += ':';
        append_json_number(out, number);
        content.remove_prefix(length);
    }
    std::string json = "{\"position\":";
    append_json(json, position);
    json += ",\"numbers\":{" + fresh + "},\"older\":{" + older + "},\"after\":";
    append_json_text(json, *after);
    return json + "}";
}

}  // namespace

void queue_event(std::string& queued, const AnyEvent& event, const CapturedForm* form, system_clock::time_point now) {
    if (!form) return queue_text(queued, event.name(), data_of(event), now);
    queue_up(queued, {QueuedKind::Captured, &event.name(), form, now, 0}, [&] { form->capture(queued, event); });
}

void queue_text(std::string& queued, const std::string& name, std::string_view json, system_clock::time_point now) {
    queue_up(queued, {QueuedKind::Text, &name, nullptr, now, 0}, [&] { queued += json; });
}

void queue_numbers(std::string& queued, const Position& position, const Blackboard& blackboard, std::int64_t since, const std::string& after, system_clock::time_point now) {
    queue_up(queued, {QueuedKind::Numbers, nullptr, nullptr, now, 0}, [&] {
        append_bytes(queued, position);
        append_bytes(queued, &after);
        blackboard.for_each(since, [&](std::string_view name, double number, bool is_new) {
            append_bytes(queued, is_new);
            append_bytes(queued, number);
            append_bytes(queued, name.size());
            queued += name;
        });
    });
}

void queue_gap(std::string& queued, std::int64_t count, system_clock::time_point now) {
    queue_up(queued, {QueuedKind::Gap, nullptr, nullptr, now, 0}, [&] { append_bytes(queued, count); });
}

std::size_t write_first_queued(std::string_view queued, MessageWriter& writer, std::string& lines) {
    const auto head = take_bytes<QueuedHead>(queued);
    std::string_view content = queued.substr(0, head.size);
    std::string json;
    switch (head.kind) {
        case QueuedKind::Captured:
            head.form->append_json(json, content);
            writer.append(lines, *head.name, json, head.now);
            break;
        case QueuedKind::Text: writer.append(lines, *head.name, content, head.now); break;
        case QueuedKind::Numbers: writer.append(lines, "numbers", numbers_json(content), head.now); break;
        case QueuedKind::Gap: {
            const std::int64_t first = writer.sequence() + 1;
            writer.skip(take_bytes<std::int64_t>(content));
            writer.append_gap(lines, first, writer.sequence(), head.now);
        }
    }
    return sizeof head + head.size;
}

}  // namespace torchbus
