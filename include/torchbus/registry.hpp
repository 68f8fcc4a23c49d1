#pragma once
/// A table of the kinds that run files know by name: those of the library, then those that plug-ins added.

#include <algorithm>
#include <atomic>
#include <deque>
#include <functional>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <torchbus/option_reader.hpp>

namespace torchbus {

/// Held while kinds are added, so that several tables change together.
std::unique_lock<std::recursive_mutex> lock_registries();

/// The options that `read` asks for, found by giving it none.
std::vector<OptionDescription> describe_options(std::string_view kind, const std::function<void(OptionReader&)>& read);

/// Throws: ConfigError: "callback 'metrics' is taken by …".
[[noreturn]] void refuse_taken(std::string_view noun, std::string_view kind, std::string_view owner);

/// An Entry has a `kind` and a `summary` (string views) and a function `from_json(OptionReader&)`.
/// Entries stay where they are, for good: spans and references into a table do not go stale.
/// Thread: any.
template <class Entry>
class Registry {
public:
    /// `noun`: what the entries are, for messages. The first entry is the default kind.
    Registry(std::string_view noun, std::span<const Entry> own) : noun_(noun) {
        versions_.emplace_back(own.begin(), own.end());
        current_ = &versions_.back();
    }
    std::string_view noun() const { return noun_; }
    std::span<const Entry> entries() const { return *current_.load(std::memory_order_acquire); }
    const Entry* find(std::string_view kind) const {
        const auto all = entries();
        const auto found = std::ranges::find(all, kind, &Entry::kind);
        return found == all.end() ? nullptr : &*found;
    }
    std::vector<std::string> kinds() const {
        std::vector<std::string> kinds;
        for (const Entry& entry : entries()) kinds.emplace_back(entry.kind);
        return kinds;
    }
    /// The entry that the reader's option `kind` names.
    const Entry& chosen(OptionReader& reader, std::string_view about) const {
        std::string kind(entries().front().kind);
        reader.choice("kind", kind, kinds(), about);
        return *find(kind);
    }
    std::vector<OptionDescription> describe(const Entry& entry) const {
        return describe_options(entry.kind, [&](OptionReader& reader) { entry.from_json(reader); });
    }

    /// Makes a version of the table with further entries, whose texts are copied; call what is returned to have it
    /// take effect. Requires: lock_registries(), until then. Throws: ConfigError for a kind that is taken.
    std::function<void()> prepare(std::span<const Entry> added, const std::string& owner) {
        for (const Entry& entry : added)
            if (find(entry.kind)) refuse_taken(noun_, entry.kind, owner_of(entry.kind));
        auto& next = versions_.emplace_back(*current_.load());
        for (Entry entry : added) {
            entry.kind = texts_.emplace_back(entry.kind);
            entry.summary = texts_.emplace_back(entry.summary);
            owners_.push_back({entry.kind, owner});
            next.push_back(entry);
        }
        return [this, &next]() noexcept { current_.store(&next, std::memory_order_release); };
    }

    /// Leaves the library's own entries only. Requires: lock_registries().
    void reset() {
        owners_.clear();
        current_.store(&versions_.front(), std::memory_order_release);
    }

private:
    struct Owner {
        std::string_view kind;
        std::string name;
    };
    std::string owner_of(std::string_view kind) const {
        // The last one: earlier ones may be of additions that did not take effect.
        const auto found = std::find_if(owners_.rbegin(), owners_.rend(), [&](const Owner& owner) { return owner.kind == kind; });
        return found == owners_.rend() ? std::string() : found->name;
    }

    std::string_view noun_;
    std::deque<std::vector<Entry>> versions_;  ///< former ones, too: someone may hold a span
    std::atomic<const std::vector<Entry>*> current_;
    std::deque<std::string> texts_;
    std::vector<Owner> owners_;  ///< of what plug-ins added
};

}  // namespace torchbus
