#pragma once
/// What a line of a MessageWriter tells without being parsed: its members stand in one order.

#include <cstdint>
#include <optional>
#include <string_view>

#include <torchbus/stream/numbers.hpp>

namespace torchbus {

struct MessageView {
    std::string_view line;  ///< with its line break, where there is one
    std::string_view name;  ///< of the event, without "torchbus."
    std::string_view data;  ///< JSON
    std::int64_t sequence = 0;
    /// A count of `data.position`, of the whole run: "step", "epoch", …
    std::optional<std::int64_t> position(std::string_view count) const;
    /// The same since the epoch began.
    std::optional<std::int64_t> position_in_epoch(std::string_view count) const;
    /// When it was emitted, as the envelope has it.
    std::string_view time() const;
    /// JSON of `data.position`, or nothing.
    std::string_view position_text() const;
    int rank() const;
    /// Whether it comes with every step or batch.
    bool is_frequent() const;
};

/// Nothing where it was written by somebody else.
std::optional<MessageView> view_of(std::string_view line);

/// The same of a message that was looked at already.
std::optional<StreamNumbers> numbers_of(const MessageView& message);

/// Events that come with every step or batch.
bool comes_often(std::string_view event);

}  // namespace torchbus
