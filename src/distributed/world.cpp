#include "groups.hpp"

#include <algorithm>
#include <mutex>
#include <thread>

#include <fmt/format.h>
#include <torch/csrc/distributed/c10d/FakeProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/FakeStore.hpp>
#include <torch/types.h>

#include <torchbus/error.hpp>

#include "c10d_process.hpp"
#include "roll_call.hpp"

namespace torchbus {
namespace {

using std::chrono::duration_cast;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

bool is_loopback(const std::string& address) { return address == "localhost" || address == "::1" || address.starts_with("127."); }

c10::intrusive_ptr<c10d::Store> connect(const Ranks& ranks, const WorldOptions& options) {
    const bool is_server = ranks.rank == 0 && !ranks.launcher_hosts_store;
    const auto began = steady_clock::now();
    try {
        return open_store(ranks.master_address, ranks.master_port, is_server, options.join_timeout);
    } catch (const std::exception& error) {
        const std::string waited = seconds_text(duration_cast<milliseconds>(steady_clock::now() - began));
        if (const std::string unknown = why_unknown(ranks.master_address); !unknown.empty())
            fail(ranks, fmt::format("the meeting point {} was not found in {}: '{}' has no address here ({}); give that of rank 0 to MASTER_ADDR", address_of(ranks), waited, ranks.master_address, unknown));
        if (is_server)
            fail(ranks, fmt::format("cannot open the meeting point {} (MASTER_ADDR and MASTER_PORT) here: {}; is the port taken by another program or an earlier run? give another MASTER_PORT",
                                    address_of(ranks), first_line(error)));
        fail(ranks, fmt::format("nobody answers at the meeting point {} (MASTER_ADDR and MASTER_PORT) after {}: {}; {} opens it, is it running, and is the address right?", address_of(ranks), waited,
                                first_line(error), ranks.launcher_hosts_store ? "the launcher" : "rank 0"));
    }
}

c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo_group(World::Groups& world, const char* name) {
    auto options = c10d::ProcessGroupGloo::Options::create(world.options.timeout);
    // On one machine the name of the host may lead nowhere.
    options->devices.push_back(is_loopback(world.ranks.master_address) ? c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1") : c10d::ProcessGroupGloo::createDefaultDevice());
    return c10::make_intrusive<c10d::ProcessGroupGloo>(c10::make_intrusive<c10d::PrefixStore>(name, world.store), world.ranks.rank, world.ranks.world_size, options);
}

/// c10d cannot give up what is under way; Gloo closes all connections of a group where a message has waited for too long.
void close(c10d::Backend& group, const Ranks& ranks) {
    constexpr int kUnusedTag = 1 << 20;
    try {
        std::vector<at::Tensor> nothing = {torch::zeros({1})};
        group.recv(nothing, ranks.rank == 0 ? 1 : 0, kUnusedTag)->wait(milliseconds(1));
    } catch (const std::exception&) {
        // As it is to be.
    }
}

/// Worlds of this process that are shared by who asks for that of the environment.
struct SharedWorld {
    std::mutex mutex;
    std::weak_ptr<World> world;
    int joined = 0;
};
SharedWorld& shared_world() {
    static SharedWorld shared;
    return shared;
}

}  // namespace

std::string against_nccl() {
    try {
        load_nccl();
        return "";
    } catch (const ConfigError& error) {
        return error.what();
    }
}

std::shared_ptr<World> World::join(const Ranks& ranks, const WorldOptions& options) {
    const QuietC10d quiet;
    auto groups = std::make_unique<Groups>();
    groups->ranks = ranks;
    groups->options = options;
    // A launcher's store outlives a start of the group that failed.
    groups->store = c10::make_intrusive<c10d::PrefixStore>(fmt::format("torchbus/{}/{}", ranks.run_id, ranks.restart), connect(ranks, options));
    call_roll(groups->ranks, groups->options, *groups->store);
    collective(*groups, "connecting", [&] {
        groups->control = gloo_group(*groups, "control");
        groups->data_backend = gloo_group(*groups, "data");
    });
    groups->data = c10::make_intrusive<c10d::ProcessGroup>(groups->store, ranks.rank, ranks.world_size);
    groups->data->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO, std::optional<c10::intrusive_ptr<c10d::Backend>>(groups->data_backend));
    if (ranks.world_size > 1) groups->watch = std::make_unique<RankWatch>(ranks, options, *groups->store);
    return std::shared_ptr<World>(new World(std::move(groups)));
}

std::shared_ptr<World> World::of_environment(const WorldOptions& options) {
    SharedWorld& shared = shared_world();
    const std::lock_guard lock(shared.mutex);
    if (auto world = shared.world.lock()) return world;
    auto ranks = ranks_from_environment();
    if (!ranks) return nullptr;
    if (const int before = shared.joined++; before > 0) ranks->run_id += fmt::format("/{}", before);  // the store may still hold what was said then
    auto world = join(*ranks, options);
    shared.world = world;
    return world;
}

std::shared_ptr<World> World::imagined(int world_size) {
    if (world_size < 1) throw ConfigError(fmt::format("a world of {} ranks cannot be imagined; give at least 1", world_size));
    auto groups = std::make_unique<Groups>();
    groups->ranks.world_size = world_size;
    groups->store = c10::make_intrusive<c10d::FakeStore>();
    const auto options = c10::make_intrusive<c10d::FakeProcessGroup::Options>();
    options->simulate_uniform_ranks = true;  // the others have what this one has
    groups->control = c10d::FakeProcessGroup::_create_internal(0, world_size, options);
    groups->data_backend = c10d::FakeProcessGroup::_create_internal(0, world_size, options);
    groups->data = c10::make_intrusive<c10d::ProcessGroup>(groups->store, 0, world_size);
    groups->data->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::CUSTOM, std::optional<c10::intrusive_ptr<c10d::Backend>>(groups->data_backend));
    groups->data->setDefaultBackend(c10d::ProcessGroup::BackendType::CUSTOM);
    std::shared_ptr<World> world(new World(std::move(groups)));
    const std::lock_guard lock(shared_world().mutex);
    shared_world().world = world;
    return world;
}

Traffic World::traffic() const { return {groups_->messages, groups_->bytes}; }

World::World(std::unique_ptr<Groups> groups) : groups_(std::move(groups)) {}
World::~World() {
    if (groups_->device_backend) groups_->device_backend->shutdown();  // it waits for what is under way; who has left has given it up
}
const Ranks& World::ranks() const { return groups_->ranks; }

void World::sum(std::span<double> values) { sum_over(*groups_, *groups_->data_backend, values); }

void World::sum(at::Tensor& tensor) { sum_over(*groups_, tensor); }

void World::broadcast(std::vector<at::Tensor> tensors, int from) { broadcast_over(*groups_, std::move(tensors), from); }

void World::use_device(c10::Device device) {
    Groups& world = *groups_;
    const auto kind = [](const std::string& name) { return std::string_view(name).substr(0, name.find(':')); };
    const std::vector<std::string> devices = gather(device.str());
    for (std::size_t rank = 1; rank < devices.size(); ++rank)
        if (kind(devices[rank]) != kind(devices[0]))
            throw DistributedError(fmt::format("rank {} is on {}, and rank 0 on {}; give device_placement the same device on all ranks", rank, devices[rank], devices[0]));
    if (device.is_cpu() || world.device_backend) {
        if (!device.is_cpu() && device != world.device) throw ConfigError(fmt::format("rank {} has exchanged tensors on {}, and now is to on {}; keep to one device", this->rank(), world.device.str(), device.str()));
        return;
    }
    if (!device.is_cuda()) throw ConfigError(fmt::format("ranks exchange tensors on the CPU and on CUDA devices, and these are on {}; give cpu or cuda to device_placement", device.str()));
    world.nccl = &load_nccl();
    collective(world, "connecting over NCCL", [&] {
        world.device_backend = world.nccl->make_group({c10::make_intrusive<c10d::PrefixStore>("nccl", world.store), this->rank(), size(), device, world.options.timeout});
    });
    world.device = device;
    world.data->setBackend(c10::DeviceType::CUDA, c10d::ProcessGroup::BackendType::NCCL, std::optional<c10::intrusive_ptr<c10d::Backend>>(world.device_backend));
    if (world.watch) world.watch->end_on_loss([backend = world.device_backend] { backend->abort(); }, world.nccl->flight_record);
}

void World::on_first(const std::function<void()>& section) const {
    if (rank() == 0) section();
}

void World::on_first_of_node(const std::function<void()>& section) const {
    if (ranks().local_rank == 0) section();
}

void World::first_then_others(const std::function<void()>& section) {
    std::string failure;
    std::exception_ptr thrown;
    if (rank() == 0) {
        try {
            section();
        } catch (const std::exception& error) {
            thrown = std::current_exception();
            failure = std::string("rank 0, whose turn it was first, failed: ") + error.what();
        }
    }
    failure = broadcast_over(*groups_, *groups_->data_backend, std::move(failure));
    if (thrown) std::rethrow_exception(thrown);
    if (!failure.empty()) fail(ranks(), failure);
    if (rank() != 0) section();
}

std::vector<at::Tensor> World::gather(const at::Tensor& tensor) {
    const auto counts = gather_numbers(*groups_, *groups_->data_backend, tensor.size(0));
    std::vector<std::int64_t> shape = tensor.sizes().vec();
    shape[0] = std::ranges::max(counts);
    at::Tensor padded = torch::zeros(shape, tensor.options());
    padded.narrow(0, 0, tensor.size(0)).copy_(tensor);
    std::vector<at::Tensor> all = gather_equal(*groups_, backend_of(*groups_, padded), padded);
    for (std::size_t rank = 0; rank < all.size(); ++rank) all[rank] = all[rank].narrow(0, 0, counts[rank]);
    return all;
}

std::vector<std::string> World::gather(std::string_view text) { return gather_over(*groups_, *groups_->data_backend, text); }

void World::barrier() {
    collective(*groups_, "a barrier", [&] { groups_->data_backend->barrier()->wait(); });
}

void World::note(std::string_view event, std::int64_t epoch, std::int64_t step) {
    if (groups_->watch) groups_->watch->at(event, epoch, step);
}

void World::leave(std::string_view why) {
    if (!groups_->watch) return;
    groups_->watch->write_record(why);
    groups_->watch->leave(why);
    if (const auto over_nccl = std::exchange(groups_->device_backend, nullptr)) over_nccl->abort();
    for (const auto& group : {groups_->control, groups_->data_backend}) close(*group, ranks());
    if (rank() == 0 && !ranks().launcher_hosts_store) std::this_thread::sleep_for(kLastWords);  // the store goes with this process
}

std::shared_ptr<Consensus> World::consensus() { return make_consensus(shared_from_this()); }

}  // namespace torchbus
