#include <cmath>

#include <fmt/format.h>

#include <torchbus/composition/accelerate_config.hpp>
#include <torchbus/distributed/launch.hpp>
#include <torchbus/error.hpp>

#include "torch_commands.hpp"

namespace torchbus::cli {
namespace {

constexpr double kLongest = 1e9;  ///< s

std::chrono::milliseconds time_of(const nlohmann::json& seconds, const char* flag, double least) {
    const double value = seconds.is_number() ? seconds.get<double>() : std::nan("");  // which JSON does not have
    if (!(value >= least && value <= kLongest)) throw ConfigError(fmt::format("launch: {}: {} is no time to wait; give seconds, at least {} and at most {}", flag, value, least, kLongest));
    return std::chrono::milliseconds(static_cast<std::int64_t>(value * 1000));
}

}  // namespace

int launch(const nlohmann::json& options) {
    const nlohmann::json& own = options.at("launch");
    LaunchOptions wanted;
    if (own.contains("config")) {
        const AccelerateConfig config = read_accelerate_config(own.at("config").get<std::string>());
        wanted.processes = config.processes_per_machine();
        wanted.nodes = config.machines;
        wanted.node = config.machine_rank;
        if (!config.main_address.empty()) wanted.master_address = config.main_address;
        wanted.master_port = config.main_port;
        wanted.visible_devices = config.gpu_ids;
    }
    wanted.command = own.at("command").get<std::vector<std::string>>();
    wanted.processes = own.value("processes", wanted.processes);
    wanted.nodes = own.value("nodes", wanted.nodes);
    wanted.node = own.value("node", wanted.node);
    wanted.master_address = own.value("master_address", wanted.master_address);
    wanted.master_port = own.value("master_port", wanted.master_port);
    wanted.max_restarts = own.value("max_restarts", wanted.max_restarts);
    wanted.log_folder = own.value("log_folder", wanted.log_folder.string());
    if (own.contains("grace_s")) wanted.grace = time_of(own.at("grace_s"), "--grace", 0);
    if (own.contains("join_timeout_s")) wanted.join_timeout = time_of(own.at("join_timeout_s"), "--join-timeout", 1);
    wanted.run_id = own.value("run_id", wanted.run_id);
    return torchbus::launch(wanted);
}

}  // namespace torchbus::cli
