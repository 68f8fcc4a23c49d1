#include "message_view.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>

namespace torchbus {
namespace {

constexpr std::array<std::string_view, 15> kFrequent = {
    "backward_end", "backward_start", "batch_ready", "eval_step_end", "eval_step_start", "forward_end", "forward_start", "gradients_ready",
    "optimizer_step_end", "optimizer_step_start", "output_ready", "predict_step_end", "predict_step_start", "train_step_end", "train_step_start"};
static_assert(std::ranges::is_sorted(kFrequent));

/// What follows `key` in `text`; nothing where it is not there.
std::string_view behind(std::string_view text, std::string_view key) {
    if (text.empty()) return {};  // it may have no address, which memmem() must not be given
    const void* found = ::memmem(text.data(), text.size(), key.data(), key.size());  // find() compares at every quote, of which there are many
    return found ? text.substr(static_cast<std::size_t>(static_cast<const char*>(found) - text.data()) + key.size()) : std::string_view();
}

std::optional<std::int64_t> whole_number(std::string_view text) {
    std::int64_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    return error == std::errc() ? std::optional(number) : std::nullopt;
}

/// Of `"count":123` in the text of a position.
std::optional<std::int64_t> count_in(std::string_view text, std::string_view count) {
    for (std::size_t at = text.find(count); at != std::string_view::npos; at = text.find(count, at + 1)) {
        const std::size_t end = at + count.size();
        if (at > 0 && text[at - 1] == '"' && text.substr(end, 2) == "\":") return whole_number(text.substr(end + 2));
    }
    return std::nullopt;
}

}  // namespace

bool comes_often(std::string_view event) { return std::ranges::binary_search(kFrequent, event); }

std::string_view MessageView::position_text() const {
    const std::string_view inside = behind(data, "\"position\":{");
    if (inside.empty()) return {};
    const std::size_t end = inside.find("}}");  // of in_epoch, and of the position; a user's own may have other members
    return end == std::string_view::npos || inside.substr(0, end).find("\"in_epoch\":{") == std::string_view::npos ? std::string_view() : std::string_view(inside.data() - 1, end + 3);
}

std::optional<std::int64_t> MessageView::position(std::string_view count) const { return count_in(position_text(), count); }

std::optional<std::int64_t> MessageView::position_in_epoch(std::string_view count) const { return count_in(behind(position_text(), "\"in_epoch\":{"), count); }

std::string_view MessageView::time() const {
    const std::string_view text = behind(line, R"("time":")");
    return text.substr(0, text.find('"'));
}

int MessageView::rank() const { return static_cast<int>(whole_number(behind(line.substr(0, static_cast<std::size_t>(data.data() - line.data())), "\"rank\":")).value_or(0)); }

bool MessageView::is_frequent() const { return comes_often(name) || (name == "numbers" && data.ends_with(R"("after":"train_step_end"})")); }

std::optional<MessageView> view_of(std::string_view line) {
    MessageView view{.line = line, .name = {}, .data = {}};
    const std::string_view name = behind(line, R"("type":"torchbus.)"), sequence = behind(name, R"("sequence":")"), data = behind(sequence, R"("data":)");
    const std::size_t end = data.rfind('}');
    if (data.empty() || end == std::string_view::npos || end == 0) return std::nullopt;
    view.name = name.substr(0, name.find('"'));
    if (view.name.empty()) return std::nullopt;
    view.data = data.substr(0, end);
    const std::size_t digits = std::min(sequence.find_first_not_of('0'), sequence.find('"'));
    view.sequence = whole_number(sequence.substr(digits)).value_or(0);
    return view;
}

}  // namespace torchbus
