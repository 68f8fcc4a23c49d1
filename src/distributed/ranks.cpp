#include <torchbus/distributed/ranks.hpp>

#include <charconv>
#include <cstdlib>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <torchbus/error.hpp>

namespace torchbus {
namespace {

/// Reads one variable after the other, and gathers what stands against them.
class Variables {
public:
    explicit Variables(const ReadVariable& read) : read_(read ? read : ReadVariable([](const char* name) -> const char* { return std::getenv(name); })) {}

    std::optional<std::string> text(const char* name) const {
        const char* value = read_(name);
        return value && *value ? std::optional<std::string>(value) : std::nullopt;
    }
    int number(const char* name, int otherwise, int least, int most) {
        const std::optional<std::string> value = text(name);
        if (!value) return otherwise;
        int number = 0;
        const auto [end, error] = std::from_chars(value->data(), value->data() + value->size(), number);
        const bool is_number = error == std::errc() && end == value->data() + value->size();
        if (is_number && number >= least && number <= most) return number;
        against(fmt::format("{} is '{}', expected a whole number {}", name, *value, most == kAny ? fmt::format("of at least {}", least) : fmt::format("from {} to {}", least, most)));
        return otherwise;
    }
    void against(std::string problem) { problems_.push_back(std::move(problem)); }
    void require_none() const {
        if (problems_.empty()) return;
        throw ConfigError(fmt::format("the environment says this is one of several processes, but {}; start it by `torchbus launch` or torchrun, set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, "
                                      "or none of them for one process", fmt::join(problems_, "; ")));
    }

    static constexpr int kAny = 1 << 30;

private:
    ReadVariable read_;
    std::vector<std::string> problems_;
};

constexpr const char* kEssential[] = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"};

}  // namespace

std::optional<Ranks> ranks_from_environment(const ReadVariable& read) {
    Variables variables(read);
    std::vector<std::string> missing;
    for (const char* name : kEssential)
        if (!variables.text(name)) missing.emplace_back(name);
    if (missing.size() == std::size(kEssential)) return std::nullopt;
    if (!missing.empty()) variables.against(fmt::format("{} {} not set", fmt::join(missing, ", "), missing.size() == 1 ? "is" : "are"));

    constexpr int kAny = Variables::kAny;
    Ranks ranks;
    ranks.world_size = variables.number("WORLD_SIZE", 1, 1, kAny);
    ranks.rank = variables.number("RANK", 0, 0, kAny);
    ranks.local_world_size = variables.number("LOCAL_WORLD_SIZE", ranks.world_size, 1, kAny);
    ranks.local_rank = variables.number("LOCAL_RANK", ranks.rank % ranks.local_world_size, 0, kAny);
    ranks.nodes = variables.number("GROUP_WORLD_SIZE", 1, 1, kAny);
    ranks.node = variables.number("GROUP_RANK", 0, 0, kAny);
    ranks.master_address = variables.text("MASTER_ADDR").value_or(ranks.master_address);
    ranks.master_port = variables.number("MASTER_PORT", ranks.master_port, 1, 65535);
    ranks.launcher_hosts_store = variables.text("TORCHELASTIC_USE_AGENT_STORE").value_or("False") == "True";
    ranks.restart = variables.number("TORCHELASTIC_RESTART_COUNT", 0, 0, kAny);
    ranks.max_restarts = variables.number("TORCHELASTIC_MAX_RESTARTS", 0, 0, kAny);
    ranks.run_id = variables.text("TORCHELASTIC_RUN_ID").value_or(ranks.run_id);

    const auto require_below = [&](const char* name, int value, const char* size_name, int size) {
        if (value >= size) variables.against(fmt::format("{} is {}, and {} is {}; ranks count from 0", name, value, size_name, size));
    };
    require_below("RANK", ranks.rank, "WORLD_SIZE", ranks.world_size);
    require_below("LOCAL_RANK", ranks.local_rank, "LOCAL_WORLD_SIZE", ranks.local_world_size);
    require_below("GROUP_RANK", ranks.node, "GROUP_WORLD_SIZE", ranks.nodes);
    if (ranks.local_world_size > ranks.world_size)
        variables.against(fmt::format("LOCAL_WORLD_SIZE is {}, and WORLD_SIZE is only {}", ranks.local_world_size, ranks.world_size));
    variables.require_none();
    return ranks;
}

}  // namespace torchbus
