// What becomes of a subscriber that throws.
#include <fmt/format.h>

#include <torchbus/error.hpp>

#include "bus_core.hpp"

namespace torchbus::detail {

std::string message_of(std::exception_ptr error) {
    try {
        std::rethrow_exception(error);
    } catch (const std::exception& failure) {
        return failure.what();
    } catch (...) {
        return "an exception that is no std::exception";
    }
}

std::exception_ptr as_subscriber_error(const std::string& subscriber, const std::string& event, const std::string& where, const Moment* moment) {
    try {
        throw;
    } catch (const SubscriberError&) {
        return std::current_exception();
    } catch (...) {
        const std::string cause = message_of(std::current_exception());
        const std::string at = moment ? fmt::format(" (epoch {}, step {})", moment->position.epoch, moment->position.step) : "";
        try {
            std::throw_with_nested(SubscriberError(fmt::format("subscriber '{}' failed {} {}{}: {}", subscriber, where, event, at, cause), subscriber, event));
        } catch (...) {
            return std::current_exception();
        }
    }
}

/// Called while the exception is being handled.
void BusCore::note_failure(SlotRecord& record, Emission& emission) noexcept {
    SubscriberRecord& subscriber = *record.subscriber;
    const std::string cause = message_of(std::current_exception());
    if (emission.closing) {
        warn(fmt::format("subscriber '{}' failed at {}: {}", subscriber.id, record.type->name, cause));
        return;
    }
    if (!record.changes && subscriber.options.fault == Fault::Optional) {
        ++record.failures_in_a_row;
        emission.optional_failures.emplace_back(&record, cause);
        return;
    }
    if (record.changes) emission.aborted = true;
    if (emission.error) return;  // the first failure is the cause
    emission.error = as_subscriber_error(subscriber.id, record.type->name, "at", &moment);
}

/// Tells of the optional subscribers that failed, and detaches those that fail too often.
void BusCore::settle(Emission& emission) {
    for (auto& [slot, cause] : emission.optional_failures) {
        const std::shared_ptr<SubscriberRecord> subscriber = slot->subscriber;
        const bool too_often = slot->failures_in_a_row >= subscriber->options.max_failures;
        tell_failure(subscriber, *emission.type, "at", cause, too_often);
    }
}

/// Says that an optional subscriber failed, and detaches it where that was too often.
void BusCore::tell_failure(const std::shared_ptr<SubscriberRecord>& subscriber, const EventType& type, const char* where, const std::string& cause,
                           bool too_often) {
    warn(fmt::format("optional subscriber '{}' failed {} {}: {}{}", subscriber->id, where, type.name, cause, too_often ? "; it is detached" : ""));
    if (too_often) detach(subscriber, "its failures");
    if (&type == &event_type<SubscriberFailed>()) return;  // a failure to hear of a failure ends here
    SubscriberFailed event{moment.position, subscriber->id, type.name, cause, too_often};
    emit(event_type<SubscriberFailed>(), &event);
}

/// At the poll point after work on a thread threw.
void BusCore::settle_thread_failure(const std::shared_ptr<SubscriberRecord>& subscriber, const EventType& event, const std::string& cause, int in_a_row) {
    if (subscriber->options.fault == Fault::Critical)
        throw SubscriberError(fmt::format("subscriber '{}' failed on its thread at {}: {}", subscriber->id, event.name, cause), subscriber->id, event.name);
    tell_failure(subscriber, event, "on its thread at", cause, in_a_row >= subscriber->options.max_failures && subscriber->attached);
}

}  // namespace torchbus::detail
