// What the bus tells of itself: who is connected, how often it was called, and what it took.
#include <algorithm>
#include <tuple>

#include <fmt/format.h>

#include "bus_core.hpp"

namespace torchbus::detail {

std::vector<std::shared_ptr<Link>> BusCore::live_links() const {
    std::vector<std::shared_ptr<Link>> live;
    for (const auto& weak : links_)
        if (auto link = weak.lock(); link && link->connected->load()) live.push_back(std::move(link));
    return live;
}

std::vector<ConnectedSlot> BusCore::slots() const {
    const std::lock_guard lock(mutex_);
    std::vector<std::tuple<std::size_t, std::uint64_t, ConnectedSlot>> found;
    for (const auto& link : live_links()) {
        const EventType& type = *link->joints.front().channel->type;
        const std::size_t index = link->every_event ? kMaxEventTypes : type.index;
        found.emplace_back(index, link->key, ConnectedSlot{link->every_event ? "every event" : type.name, link->subscriber->id,
                                                           stage_of(link->key), phase_of(link->key), link->changes});
    }
    std::ranges::sort(found, [](const auto& a, const auto& b) { return std::tie(std::get<0>(a), std::get<1>(a)) < std::tie(std::get<0>(b), std::get<1>(b)); });
    std::vector<ConnectedSlot> slots;
    for (auto& [index, key, slot] : found) slots.push_back(std::move(slot));
    return slots;
}

void BusCore::for_each_filter(const std::function<void(const std::string&, SlotRecord&)>& visit) const {
    const std::lock_guard lock(mutex_);
    std::map<std::string, int> known;
    for (const auto& link : live_links())
        for (const auto& joint : link->joints) {
            const bool counts = !joint.record->type->of_trainer && !joint.record->type->is_span;
            if (!counts && !joint.record->filtered) continue;
            const std::string name = fmt::format("{}/{}", link->subscriber->id, joint.record->type->name);
            visit(fmt::format("{}/{}", name, known[name]++), *joint.record);
        }
}

std::map<std::string, ConnectionProgress> BusCore::connection_progress() const {
    std::map<std::string, ConnectionProgress> progress;
    for_each_filter([&](const std::string& key, const SlotRecord& record) { progress[key] = {record.emissions, record.filter.progress()}; });
    return progress;
}

void BusCore::restore_connection_progress(const std::map<std::string, ConnectionProgress>& progress) {
    for_each_filter([&](const std::string& key, SlotRecord& record) {
        const auto known = progress.find(key);
        if (known == progress.end()) return;
        record.emissions = known->second.emissions;
        record.filter.rebase(moment, record.emissions);
        record.filter.restore(known->second.filter);
    });
}

void BusCore::fold(const SlotRecord& record) {
    Past& past = past_accounting_[{record.subscriber->id, record.type->name}];
    past.calls += record.calls.load(std::memory_order_relaxed);
    past.ticks += record.ticks.load(std::memory_order_relaxed);
}

std::vector<AccountingRow> BusCore::accounting() const {
    const std::lock_guard lock(mutex_);
    auto sums = past_accounting_;
    for (const auto& link : live_links())
        for (const auto& joint : link->joints) {
            Past& sum = sums[{link->subscriber->id, joint.channel->type->name}];
            sum.calls += joint.record->calls.load(std::memory_order_relaxed);
            sum.ticks += joint.record->ticks.load(std::memory_order_relaxed);
        }
    for (const auto& subscriber : subscribers_) {
        if (!subscriber->thread) continue;
        for (const auto& [event, times] : subscriber->thread->times()) {
            ThreadTimes& sum = sums[{subscriber->id, event}].thread;
            sum.seconds += times.seconds;
            sum.dropped += times.dropped;
        }
    }
    std::vector<AccountingRow> rows;
    for (const auto& [who, sum] : sums)
        if (sum.calls > 0) rows.push_back({who.first, who.second, sum.calls, tick_scale_.seconds(sum.ticks), sum.thread.seconds, sum.thread.dropped});
    std::ranges::sort(rows, std::greater<>(), &AccountingRow::seconds);
    return rows;
}

}  // namespace torchbus::detail
