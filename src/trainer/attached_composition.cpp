#include "attached_composition.hpp"

#include <algorithm>
#include <initializer_list>

#include <fmt/format.h>
#include <torch/optim/optimizer.h>

#include <torchbus/error.hpp>
#include <torchbus/optim/group_options.hpp>

namespace torchbus {
namespace {

Member member_of(const ComposedCallback& composed) {
    return {composed.id, composed.callback->kind(), composed.callback->declare(), composed.before, composed.after};
}

/// May join at any time: it only looks, and no rank waits for it.
bool only_observes(const Declaration& declared) { return declared.writes.empty() && declared.views.empty() && !declared.collectives; }

void require_no(const std::vector<Finding>& findings) {
    if (const std::string errors = errors_of(findings); !errors.empty()) throw ConfigError(errors);
}

/// An option's value: a number or an interval.
std::string text_of(const nlohmann::json& value) {
    return value.is_string() ? value.get<std::string>() : value.is_number() ? fmt::format("{}", value.get<double>()) : value.dump();
}

/// Whether `provider` is the only one of `members` that publishes what `reader` needs; which number it is.
const Value* sole_provision(const std::vector<Member>& members, const Member& provider, const Member& reader) {
    for (const Value& needed : reader.declared.needs) {
        const auto publishes = [&](const Member& member) {
            return std::ranges::any_of(member.declared.publishes, [&](const Value& value) { return value.name == needed.name; });
        };
        const bool others = std::ranges::any_of(members, [&](const Member& member) { return member.id != provider.id && publishes(member); });
        if (publishes(provider) && !others) return &needed;
    }
    return nullptr;
}

}  // namespace

/// A callback's interest in the run, from attach to detach.
struct AttachedComposition::Attached {
    CallbackClaim claim;
    ComposedCallback composed;
    Declaration declared;
    Subscriber bus;
    std::unique_ptr<Attachment> attachment;
    Attached(ComposedCallback which, Bus& on, std::string_view before, std::string requester)
        : claim(which.callback, which.id), composed(std::move(which)), declared(composed.callback->declare()),
          bus(on.subscribe(composed.id, declared.subscriber, before, std::move(requester))) {}
    ~Attached() {
        try {
            composed.callback->detach();
        } catch (const std::exception& error) {
            warn(fmt::format("'{}' failed to detach: {}; its slots are cut off", composed.id, error.what()));
        } catch (...) {
            warn(fmt::format("'{}' failed to detach; its slots are cut off", composed.id));
        }
    }
};

AttachedComposition::AttachedComposition(Surroundings surroundings) : surroundings_(surroundings) {}
AttachedComposition::~AttachedComposition() = default;

void AttachedComposition::attach_all(std::vector<ComposedCallback> callbacks) {
    std::vector<Member> members;
    for (const ComposedCallback& composed : callbacks) {
        if (!composed.callback) throw ConfigError(fmt::format("the callback '{}' is empty; give one that was made", composed.id));
        members.push_back(member_of(composed));
    }
    Arrangement arrangement = arrange(members);
    require_no(arrangement.findings);
    for (const Member& member : members) composed_ids_.push_back(member.id);
    precedences_ = std::move(arrangement.precedences);
    for (const std::size_t index : arrangement.order) attach_one(std::move(callbacks[index]), {}, {});
    keeper_ = surroundings_.bus.subscribe("composition");
    connections_ += keeper_.observe<SubscriberDetached>(Stage::Persist, [this](const SubscriberDetached& event) { settle_dependents(event.id); });
}

void AttachedComposition::attach_one(ComposedCallback composed, std::string_view before, std::string requester) {
    auto& [bus, blackboard, consensus, requests, run_state, updates, introduce, forget_views] = surroundings_;
    auto entry = std::make_unique<Attached>(std::move(composed), bus, before, std::move(requester));
    entry->attachment = std::make_unique<Attachment>(
        Attachment{entry->bus, blackboard, consensus, bus.moment(), Asker(requests, entry->composed.id), run_state,
                   [this](const std::string& id, const std::string& option, const nlohmann::json& value) { return find(id).composed.callback->change_option(option, value); }});
    entry->composed.callback->attach(*entry->attachment);
    const auto place = std::ranges::find_if(attached_, [&](const auto& other) { return other->composed.id == before; });
    attached_.insert(place, std::move(entry));
}

std::vector<Member> AttachedComposition::members() const {
    std::vector<Member> members;
    for (const auto& entry : attached_) members.push_back(member_of(entry->composed));
    return members;
}

/// Where the whole composition, sorted anew, has it. Throws: ConfigError as before a run.
void AttachedComposition::attach_between(ComposedCallback composed, const std::string& requester) {
    std::vector<Member> all = members();
    all.push_back(member_of(composed));
    Arrangement arrangement = arrange(all);
    require_no(arrangement.findings);
    const auto place = std::ranges::find(arrangement.order, all.size() - 1);
    const bool last = std::next(place) == arrangement.order.end();
    const std::string before = last ? std::string() : all[*std::next(place)].id;
    const std::string id = composed.id;
    attach_one(std::move(composed), before, requester);  // where it throws, nothing has changed
    try {
        surroundings_.introduce(id);
    } catch (...) {
        std::erase_if(attached_, [&](const auto& entry) { return entry->composed.id == id; });
        throw;
    }
    composed_ids_.clear();
    for (const Member& member : all) composed_ids_.push_back(member.id);
    precedences_ = std::move(arrangement.precedences);
}

AttachedComposition::Attached& AttachedComposition::find(const std::string& id) {
    const auto found = std::ranges::find_if(attached_, [&](const auto& entry) { return entry->composed.id == id; });
    if (found != attached_.end()) return **found;
    std::vector<std::string> known;
    for (const auto& entry : attached_) known.push_back(entry->composed.id);
    throw ConfigError(fmt::format("no callback '{}' is attached{}", id, did_you_mean(id, known)));
}

/// Throws: ConfigError where another needs what this one publishes.
void AttachedComposition::detach_one(const std::string& id, const std::string& requester) {
    Attached& leaving = find(id);
    const std::vector<Member> all = members();
    for (const Member& reader : all) {
        const Value* needed = reader.id == id ? nullptr : sole_provision(all, member_of(leaving.composed), reader);
        if (needed && reader.declared.subscriber.fault == Fault::Critical)
            throw ConfigError(fmt::format("'{}' cannot be detached: '{}' needs {}, which only it publishes; detach '{}' first", id, reader.id, needed->name, reader.id));
    }
    leaving.bus.detach(requester);
}

/// A provider has gone, by a request or by its failures: optional dependents go with it, a critical one fails the run.
void AttachedComposition::settle_dependents(const std::string& id) {
    const auto gone = std::ranges::find_if(attached_, [&](const auto& entry) { return entry->composed.id == id && !entry->bus.attached(); });
    if (gone == attached_.end()) return;
    const std::vector<Member> all = members();
    const Member provider = member_of((*gone)->composed);
    for (const auto& entry : attached_) {
        const Member reader = member_of(entry->composed);
        const Value* needed = reader.id == id ? nullptr : sole_provision(all, provider, reader);
        if (!needed || !entry->bus.attached()) continue;
        const std::string why = fmt::format("it needs {}, which '{}' published, and '{}' is detached", needed->name, id, id);
        if (entry->declared.subscriber.fault == Fault::Optional) {
            warn(fmt::format("'{}' is detached: {}", entry->composed.id, why));
            entry->bus.detach(id);
        } else {
            surroundings_.requests.ask(Decision::FailRun, {entry->composed.id, why});
        }
    }
    const std::vector<std::string> views = provider.declared.views;
    attached_.erase(std::ranges::find_if(attached_, [&](const auto& entry) { return entry->composed.id == id; }));
    changed_options_.forget(id);
    if (!views.empty()) surroundings_.forget_views(views);
}

std::future<void> AttachedComposition::request(Change wanted, bool at_poll_point) {
    auto change = std::make_shared<Change>(std::move(wanted));
    auto done = change->done.get_future();
    {
        const std::lock_guard lock(mutex_);
        if (run_under_way_) {
            at_poll_point ? surroundings_.bus.post([change] { carry_out(*change); }) : waiting_.push_back(std::move(change));
            return done;
        }
    }
    carry_out(*change);
    return done;
}

/// A refusal is told to who asked, and never fails the run.
void AttachedComposition::carry_out(Change& change) {
    try {
        change.make();
        change.done.set_value();
    } catch (const std::exception& refusal) {
        warn(fmt::format("{} was refused: {}", change.what, refusal.what()));
        change.done.set_exception(std::current_exception());
    }
}

void AttachedComposition::make_changes(bool in_evaluation) {
    std::vector<std::shared_ptr<Change>> now;
    {
        const std::lock_guard lock(mutex_);
        const auto waits = [&](const auto& change) { return in_evaluation && change->concerns_view(); };
        const auto first = std::ranges::stable_partition(waiting_, waits).begin();
        now.assign(first, waiting_.end());
        waiting_.erase(first, waiting_.end());
    }
    for (const auto& change : now) carry_out(*change);
}

void AttachedComposition::begin_run() {
    const std::lock_guard lock(mutex_);
    run_under_way_ = true;
}

void AttachedComposition::end_run() {
    {
        const std::lock_guard lock(mutex_);
        run_under_way_ = false;
    }
    surroundings_.bus.flush();
    make_changes(false);
}

std::future<void> AttachedComposition::attach(ComposedCallback callback, std::string requester) {
    if (!callback.callback) throw ConfigError(fmt::format("the callback '{}' is empty; give one that was made", callback.id));
    const Declaration declared = callback.callback->declare();
    std::string what = fmt::format("attaching '{}', asked for by {}", callback.id, requester);
    return request({.make = [this, callback = std::move(callback), requester = std::move(requester)] { attach_between(callback, requester); },
                    .concerns_view = [holds = !declared.views.empty()] { return holds; }, .what = std::move(what)},
                   only_observes(declared));
}

std::future<void> AttachedComposition::detach(std::string id, std::string requester) {
    std::string what = fmt::format("detaching '{}', asked for by {}", id, requester);
    const auto holds_view = [this, id] {
        return std::ranges::any_of(attached_, [&](const auto& entry) { return entry->composed.id == id && !entry->declared.views.empty(); });
    };
    return request({.make = [this, id, requester = std::move(requester)] { detach_one(id, requester); }, .concerns_view = holds_view, .what = std::move(what)}, false);
}

namespace {

/// Who declares to write one of these; null where nobody does.
template <class Entries>
const std::string* writer_of(const Entries& attached, std::initializer_list<std::string> names) {
    for (const auto& entry : attached)
        if (std::ranges::find_first_of(entry->declared.writes, names) != entry->declared.writes.end()) return &entry->composed.id;
    return nullptr;
}

}  // namespace

std::future<void> AttachedComposition::change_option(std::string id, std::string option, nlohmann::json value, std::string requester) {
    std::string what = fmt::format("changing {} of '{}', asked for by {}", option, id, requester);
    const auto make = [this, id = std::move(id), option = std::move(option), value = std::move(value), requester = std::move(requester)] { change_now(id, option, value, requester); };
    return request({.make = make, .concerns_view = [] { return false; }, .what = std::move(what)}, false);
}

void AttachedComposition::change_now(const std::string& id, const std::string& option, const nlohmann::json& value, const std::string& requester) {
    Update* const update = update_called(id);
    if (const std::string* writer = writer_of(attached_, {"callback_options:" + id + "." + option}))
        throw ConfigError(fmt::format("'{}' sets {} of '{}' as the run goes on; detach it first", *writer, option, id));
    const nlohmann::json before = update ? change_optimizer(*update, option, value) : find(id).composed.callback->change_option(option, value);
    if (!update) changed_options_.note(id, option, before, value);  // an optimizer's are in its own state
    surroundings_.bus.emit(OptionChanged{surroundings_.bus.moment().position, id, option, text_of(before), text_of(value), requester, {}});
}

void AttachedComposition::change_now(const OptionChange& change) {
    try {
        change_now(change.subscriber, change.option, nlohmann::json::parse(change.value), change.requester);
    } catch (const Error& refusal) {
        warn(fmt::format("changing {} of '{}', asked for by {}, was refused: {}", change.option, change.subscriber, change.requester, refusal.what()));
        surroundings_.bus.emit(OptionChanged{surroundings_.bus.moment().position, change.subscriber, change.option, {}, change.value, change.requester, refusal.what()});
    }
}

/// "optimizer" is that of the only or unnamed update, "optimizer.generator" that of the update of that name.
Update* AttachedComposition::update_called(const std::string& id) const {
    for (Update& update : surroundings_.updates)
        if (id == (update.name.empty() ? "optimizer" : "optimizer." + update.name)) return &update;
    return nullptr;
}

/// Of the first parameter group; the others keep their ratio to it. Refused where a callback sets the option.
nlohmann::json AttachedComposition::change_optimizer(Update& update, const std::string& option, const nlohmann::json& value) const {
    if (const std::string* writer = writer_of(attached_, {option, option + ":" + update.name, "optimizer_options:" + option}))
        throw ConfigError(fmt::format("'{}' sets {} of the optimizer as the run goes on; change an option of '{}', or detach it first", *writer, option, *writer));
    if (!value.is_number() || !(value.get<double>() >= 0))
        throw ConfigError(fmt::format("optimizer: {}: {} is not a number of at least 0", option, value.dump()));
    const double wanted = value.get<double>();
    auto& groups = update.optimizer->param_groups();
    const bool is_beta = option == "beta1" || option == "beta2" || (option == "momentum" && group_options(groups.front()).contains("beta1"));
    const double before = group_option(groups.front(), option);
    std::vector<double> changed;
    for (auto& group : groups) changed.push_back(before > 0 ? group_option(group, option) / before * wanted : wanted);
    changed.front() = wanted;  // to the last bit
    for (std::size_t i = 0; i < groups.size(); ++i)
        if (is_beta && changed[i] >= 1)
            throw ConfigError(fmt::format("optimizer: {}: {} is out of range{}; give a number in [0, 1), e.g. 0.9", option, value.dump(), i == 0 ? "" : fmt::format(", as it makes {} of that of group {}", changed[i], i)));
    for (std::size_t i = 0; i < groups.size(); ++i) group_option(groups[i], option) = changed[i];
    return before;
}

std::vector<Finding> AttachedComposition::findings(const Outlook& run) const {
    std::vector<Finding> all = check_values(members(), run.plan);
    for (const auto& entry : attached_)
        for (Finding& finding : entry->composed.callback->check(run)) all.push_back(std::move(finding));
    return all;
}

bool AttachedComposition::changes_data() const {
    return std::ranges::any_of(surroundings_.bus.slots(), [&](const ConnectedSlot& slot) {
        if (!slot.changes || (slot.event != "batch_ready" && slot.event != "output_ready")) return false;
        const auto entry = std::ranges::find_if(attached_, [&](const auto& one) { return one->composed.id == slot.subscriber; });
        const bool only_moves = entry != attached_.end() && std::ranges::count((*entry)->declared.writes, "batch.device") > 0;
        return !only_moves;
    });
}

std::vector<std::pair<std::string, double>> AttachedComposition::budgets() const {
    std::vector<std::pair<std::string, double>> all;
    for (const auto& entry : attached_)
        if (entry->declared.subscriber.budget_us > 0) all.emplace_back(entry->composed.id, entry->declared.subscriber.budget_us);
    return all;
}

nlohmann::json AttachedComposition::configuration() const {
    nlohmann::json callbacks = nlohmann::json::object();
    for (const auto& entry : attached_) callbacks[entry->composed.id] = {{"kind", entry->composed.callback->kind()}, {"options", entry->composed.options}};
    return callbacks;
}

void AttachedComposition::restore_options(const nlohmann::json& saved) {
    changed_options_.restore(saved, [this](const std::string& id, const std::string& option, const nlohmann::json& value) {
        const auto entry = std::ranges::find_if(attached_, [&](const auto& one) { return one->composed.id == id; });
        if (entry != attached_.end()) (*entry)->composed.callback->change_option(option, value);  // that it is gone was allowed
    });
}

std::vector<std::pair<std::string, Callback*>> AttachedComposition::callbacks() const {
    std::vector<std::pair<std::string, Callback*>> all;
    for (const auto& entry : attached_) all.emplace_back(entry->composed.id, entry->composed.callback.get());
    return all;
}

}  // namespace torchbus
