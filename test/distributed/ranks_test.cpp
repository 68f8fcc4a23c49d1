#include <map>

#include <torchbus/distributed/ranks.hpp>
#include <torchbus/error.hpp>

#include "support/catch.hpp"

using namespace torchbus;

namespace {

std::optional<Ranks> ranks_of(const std::map<std::string, std::string>& variables) {
    return ranks_from_environment([&](const char* name) {
        const auto found = variables.find(name);
        return found == variables.end() ? nullptr : found->second.c_str();
    });
}

/// As torchrun 2.15 sets them for the third of four processes on two machines.
const std::map<std::string, std::string> kTorchrun = {
    {"RANK", "2"}, {"WORLD_SIZE", "4"}, {"LOCAL_RANK", "0"}, {"LOCAL_WORLD_SIZE", "2"}, {"GROUP_RANK", "1"}, {"GROUP_WORLD_SIZE", "2"}, {"ROLE_RANK", "2"},
    {"ROLE_WORLD_SIZE", "4"}, {"ROLE_NAME", "default"}, {"MASTER_ADDR", "10.0.0.1"}, {"MASTER_PORT", "29400"}, {"TORCHELASTIC_USE_AGENT_STORE", "True"},
    {"TORCHELASTIC_RESTART_COUNT", "1"}, {"TORCHELASTIC_MAX_RESTARTS", "3"}, {"TORCHELASTIC_RUN_ID", "night"}};

std::map<std::string, std::string> with(std::map<std::string, std::string> variables, const std::string& name, const std::string& value) {
    variables[name] = value;
    return variables;
}

}  // namespace

TEST_CASE("one process is not one of several", "[distributed][ranks]") {
    CHECK_FALSE(ranks_of({}));
    CHECK_FALSE(ranks_of({{"LOCAL_RANK", "0"}, {"RANK", ""}}));
}

TEST_CASE("ranks are what torchrun says", "[distributed][ranks]") {
    const Ranks ranks = ranks_of(kTorchrun).value();
    CHECK(ranks.rank == 2);
    CHECK(ranks.world_size == 4);
    CHECK(ranks.local_rank == 0);
    CHECK(ranks.local_world_size == 2);
    CHECK(ranks.node == 1);
    CHECK(ranks.nodes == 2);
    CHECK(ranks.master_address == "10.0.0.1");
    CHECK(ranks.master_port == 29400);
    CHECK(ranks.launcher_hosts_store);
    CHECK(ranks.restart == 1);
    CHECK(ranks.max_restarts == 3);
    CHECK(ranks.run_id == "night");
    CHECK_FALSE(ranks.is_main());
    CHECK(ranks.is_local_main());
}

TEST_CASE("four variables set by hand are enough: all processes are on one machine", "[distributed][ranks]") {
    const Ranks ranks = ranks_of({{"RANK", "1"}, {"WORLD_SIZE", "3"}, {"MASTER_ADDR", "localhost"}, {"MASTER_PORT", "4000"}}).value();
    CHECK(ranks.local_rank == 1);
    CHECK(ranks.local_world_size == 3);
    CHECK(ranks.nodes == 1);
    CHECK_FALSE(ranks.launcher_hosts_store);
}

TEST_CASE("variables that do not go together are named, all of them", "[distributed][ranks]") {
    const auto against = [](const std::map<std::string, std::string>& variables) -> std::string {
        try {
            ranks_of(variables);
        } catch (const ConfigError& error) {
            return error.what();
        }
        return "nothing";
    };
    CHECK(against({{"RANK", "0"}, {"MASTER_PORT", "4000"}}) ==
          "the environment says this is one of several processes, but WORLD_SIZE, MASTER_ADDR are not set; start it by `torchbus launch` or torchrun, set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, "
          "or none of them for one process");
    CHECK_THAT(against(with(kTorchrun, "RANK", "4")), containing("RANK is 4, and WORLD_SIZE is 4; ranks count from 0"));
    CHECK_THAT(against(with(kTorchrun, "RANK", "two")), containing("RANK is 'two', expected a whole number of at least 0"));
    CHECK_THAT(against(with(kTorchrun, "WORLD_SIZE", "0")), containing("WORLD_SIZE is '0', expected a whole number of at least 1"));
    CHECK_THAT(against(with(kTorchrun, "WORLD_SIZE", "99999999999")), containing("WORLD_SIZE is '99999999999', expected"));
    CHECK_THAT(against(with(kTorchrun, "MASTER_PORT", "70000")), containing("MASTER_PORT is '70000', expected a whole number from 1 to 65535"));
    CHECK_THAT(against(with(kTorchrun, "LOCAL_RANK", "2")), containing("LOCAL_RANK is 2, and LOCAL_WORLD_SIZE is 2"));
    CHECK_THAT(against(with(kTorchrun, "LOCAL_WORLD_SIZE", "8")), containing("LOCAL_WORLD_SIZE is 8, and WORLD_SIZE is only 4"));
    CHECK_THAT(against(with(with(kTorchrun, "GROUP_RANK", "-1"), "RANK", "1.5")), containing("RANK is '1.5'") && containing("GROUP_RANK is '-1'"));
}
