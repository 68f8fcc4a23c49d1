#include <torchbus/composition/accelerate_config.hpp>
#include <torchbus/distributed/launch.hpp>

#include "torch_commands.hpp"

namespace torchbus::cli {

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
    if (own.contains("grace_s")) wanted.grace = std::chrono::milliseconds(static_cast<std::int64_t>(own.at("grace_s").get<double>() * 1000));
    wanted.run_id = own.value("run_id", wanted.run_id);
    return torchbus::launch(wanted);
}

}  // namespace torchbus::cli
