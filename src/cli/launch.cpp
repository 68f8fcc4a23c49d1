#include <torchbus/distributed/launch.hpp>

#include "torch_commands.hpp"

namespace torchbus::cli {

int launch(const nlohmann::json& options) {
    const nlohmann::json& own = options.at("launch");
    LaunchOptions wanted;
    wanted.command = own.at("command").get<std::vector<std::string>>();
    wanted.processes = own.at("processes");
    wanted.nodes = own.at("nodes");
    wanted.node = own.at("node");
    wanted.master_address = own.at("master_address");
    wanted.master_port = own.at("master_port");
    wanted.max_restarts = own.at("max_restarts");
    wanted.log_folder = own.at("log_folder").get<std::string>();
    wanted.grace = std::chrono::milliseconds(static_cast<std::int64_t>(own.at("grace_s").get<double>() * 1000));
    wanted.run_id = own.at("run_id");
    return torchbus::launch(wanted);
}

}  // namespace torchbus::cli
