#include "groups.hpp"

#include <unistd.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <thread>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>
#include <torch/types.h>

#include <torchbus/error.hpp>

#include "c10d_process.hpp"

namespace torchbus {
namespace {

using std::chrono::duration_cast;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

std::string address_of(const Ranks& ranks) { return fmt::format("{}:{}", ranks.master_address, ranks.master_port); }
bool is_loopback(const std::string& address) { return address == "localhost" || address == "::1" || address.starts_with("127."); }

[[noreturn]] void fail(const Ranks& ranks, const std::string& what) {
    throw DistributedError(fmt::format("rank {} of {}: {}", ranks.rank, ranks.world_size, what));
}

std::string text_of(const std::vector<std::uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }
std::vector<std::uint8_t> bytes_of(const std::string& text) { return {text.begin(), text.end()}; }

c10::intrusive_ptr<c10d::Store> connect(const Ranks& ranks, const WorldOptions& options) {
    const bool is_server = ranks.rank == 0 && !ranks.launcher_hosts_store;
    const auto began = steady_clock::now();
    try {
        return open_store(ranks.master_address, ranks.master_port, is_server, options.join_timeout);
    } catch (const std::exception& error) {
        const std::string waited = seconds_text(duration_cast<milliseconds>(steady_clock::now() - began));
        if (is_server)
            fail(ranks, fmt::format("cannot open the meeting point {} (MASTER_ADDR and MASTER_PORT) here: {}; is the port taken by another program or an earlier run? give another MASTER_PORT",
                                    address_of(ranks), first_line(error)));
        fail(ranks, fmt::format("nobody answers at the meeting point {} (MASTER_ADDR and MASTER_PORT) after {}: {}; {} opens it, is it running, and is the address right?", address_of(ranks), waited,
                                first_line(error), ranks.launcher_hosts_store ? "the launcher" : "rank 0"));
    }
}

/// Every rank puts down who it is; rank 0 says to all when everybody is there, or what is wrong.
class RollCall {
public:
    RollCall(const Ranks& ranks, const WorldOptions& options, c10d::Store& store) : ranks_(ranks), options_(options), store_(store) {}
    void run() {
        const bool is_second = store_.add(fmt::format("came/{}", ranks_.rank), 1) > 1;
        const nlohmann::json self = {{"host", host()}, {"process", ::getpid()}, {"world_size", ranks_.world_size}};
        if (is_second) {
            const std::string problem = fmt::format("rank {} came twice: as process {} on {} and as {}", ranks_.rank, ::getpid(), host(), described(ranks_.rank));
            store_.set("verdict", bytes_of(problem));  // for all: nobody can tell which of the two is meant
            fail(ranks_, problem + "; give every process another RANK");
        }
        store_.set(fmt::format("rank/{}", ranks_.rank), bytes_of(self.dump()));
        if (ranks_.rank == 0) judge();
        hear();
    }

private:
    static std::string host() {
        char name[256] = {};
        return ::gethostname(name, sizeof name - 1) == 0 ? name : "an unknown host";
    }
    std::string described(int rank) {
        const std::string key = fmt::format("rank/{}", rank);
        try {
            store_.wait({key}, std::chrono::seconds(2));  // it may be about to say so
        } catch (const std::exception&) {
            return "another one";
        }
        const auto other = nlohmann::json::parse(text_of(store_.get(key)));
        return fmt::format("process {} on {}", other.at("process").get<int>(), other.at("host").get<std::string>());
    }
    std::vector<int> missing() {
        std::vector<int> ranks;
        for (int rank = 0; rank < ranks_.world_size; ++rank)
            if (!store_.check({fmt::format("rank/{}", rank)})) ranks.push_back(rank);
        return ranks;
    }
    void judge() {
        std::vector<std::string> everybody;
        for (int rank = 0; rank < ranks_.world_size; ++rank) everybody.push_back(fmt::format("rank/{}", rank));
        const auto deadline = steady_clock::now() + options_.join_timeout;
        while (!store_.check(everybody) && steady_clock::now() < deadline && !store_.check({"verdict"})) std::this_thread::sleep_for(milliseconds(10));
        const std::vector<int> absent = missing();
        present_ -= static_cast<std::int64_t>(absent.size());
        if (store_.check({"verdict"})) return;
        std::vector<std::string> problems;
        if (!absent.empty()) problems.push_back(fmt::format("after {} rank{} {} {} not there", seconds_text(options_.join_timeout), absent.size() == 1 ? "" : "s", fmt::join(absent, ", "), absent.size() == 1 ? "is" : "are"));
        for (int rank = 1; rank < ranks_.world_size; ++rank) {
            if (std::ranges::find(absent, rank) != absent.end()) continue;
            const auto other = nlohmann::json::parse(text_of(store_.get(fmt::format("rank/{}", rank))));
            if (const int size = other.at("world_size"); size != ranks_.world_size)
                problems.push_back(fmt::format("rank {} (process {} on {}) expects {} ranks, rank 0 expects {}; give all of them the same WORLD_SIZE", rank, other.at("process").get<int>(),
                                               other.at("host").get<std::string>(), size, ranks_.world_size));
        }
        store_.set("verdict", bytes_of(fmt::format("{}", fmt::join(problems, "; "))));
    }
    void hear() {
        std::string verdict;
        try {
            // A little more than rank 0 waits, so that its words are heard.
            store_.wait({"verdict"}, options_.join_timeout + std::chrono::seconds(5));
            verdict = text_of(store_.get("verdict"));
        } catch (const std::exception& error) {
            fail(ranks_, fmt::format("rank 0 did not say that all are there, at {}, within {}: {}", address_of(ranks_), seconds_text(options_.join_timeout), first_line(error)));
        }
        // The store may go with rank 0: it waits until all who are there have heard.
        store_.add("heard", 1);
        const auto deadline = steady_clock::now() + std::chrono::seconds(5);
        while (ranks_.rank == 0 && store_.add("heard", 0) < present_ && steady_clock::now() < deadline) std::this_thread::sleep_for(milliseconds(1));
        if (!verdict.empty()) fail(ranks_, verdict);
    }

    const Ranks& ranks_;
    const WorldOptions& options_;
    c10d::Store& store_;
    std::int64_t present_ = ranks_.world_size;  ///< as rank 0 has found them
};

c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo_group(const World::Groups& world, const char* name) {
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

/// Bytes of each rank, the rest of the row zero. Shapes: [bytes].
at::Tensor row_of(std::string_view text, std::int64_t bytes) {
    at::Tensor row = torch::zeros({bytes}, torch::kByte);
    std::copy(text.begin(), text.end(), reinterpret_cast<char*>(row.mutable_data_ptr<std::uint8_t>()));
    return row;
}

std::vector<at::Tensor> gather_equal(const World::Groups& world, c10d::Backend& group, at::Tensor own) {
    std::vector<std::vector<at::Tensor>> all(1);
    for (int rank = 0; rank < world.ranks.world_size; ++rank) all[0].push_back(torch::empty_like(own));
    std::vector<at::Tensor> inputs = {std::move(own)};
    collective(world, "gathering", [&] { group.allgather(all, inputs)->wait(); });
    return all[0];
}

std::vector<std::string> texts_of(const std::vector<at::Tensor>& rows, const std::vector<std::int64_t>& lengths) {
    std::vector<std::string> texts;
    for (std::size_t rank = 0; rank < rows.size(); ++rank) texts.emplace_back(reinterpret_cast<const char*>(rows[rank].const_data_ptr<std::uint8_t>()), static_cast<std::size_t>(lengths[rank]));
    return texts;
}

std::vector<std::int64_t> gather_numbers(const World::Groups& world, c10d::Backend& group, std::int64_t own) {
    std::vector<std::int64_t> numbers;
    for (const at::Tensor& of_rank : gather_equal(world, group, torch::tensor({own}, torch::kLong))) numbers.push_back(of_rank.item<std::int64_t>());
    return numbers;
}

}  // namespace

void fail_collective(const World::Groups& world, std::string_view what, const std::exception& error) {
    const std::string blame = world.watch ? world.watch->diagnosis() : "";
    fail(world.ranks, fmt::format("{} with the other ranks did not come to its end: {}{}", what, blame.empty() ? "" : blame + "; ", first_line(error)));
}

void sum_over(const World::Groups& world, c10d::Backend& group, at::Tensor values) {
    std::vector<at::Tensor> tensors = {std::move(values)};
    collective(world, fmt::format("a sum of {} number{}", tensors[0].numel(), tensors[0].numel() == 1 ? "" : "s"), [&] { group.allreduce(tensors)->wait(); });
}

void sum_over(const World::Groups& world, c10d::Backend& group, std::span<double> values) {
    sum_over(world, group, torch::from_blob(values.data(), {static_cast<std::int64_t>(values.size())}, torch::kDouble));
}

std::vector<std::string> gather_over(const World::Groups& world, c10d::Backend& group, std::string_view text) {
    const auto lengths = gather_numbers(world, group, static_cast<std::int64_t>(text.size()));
    const std::vector<at::Tensor> rows = gather_equal(world, group, row_of(text, std::max<std::int64_t>(1, std::ranges::max(lengths))));
    return texts_of(rows, lengths);
}

std::vector<std::string> gather_on_first(const World::Groups& world, c10d::Backend& group, std::string text) {
    const auto lengths = gather_numbers(world, group, static_cast<std::int64_t>(text.size()));
    std::vector<at::Tensor> own = {row_of(text, std::max<std::int64_t>(1, std::ranges::max(lengths)))};
    std::vector<std::vector<at::Tensor>> rows;
    if (world.ranks.rank == 0)
        for (auto& row : rows.emplace_back(lengths.size())) row = torch::empty_like(own[0]);
    collective(world, "gathering", [&] { group.gather(rows, own)->wait(); });
    if (rows.empty()) return {std::move(text)};
    return texts_of(rows[0], lengths);
}

std::string broadcast_over(const World::Groups& world, c10d::Backend& group, std::string text) {
    at::Tensor length = torch::tensor({static_cast<std::int64_t>(text.size())}, torch::kLong);
    broadcast_over(world, group, {length}, 0);
    const auto bytes = length.item<std::int64_t>();
    if (bytes == 0) return "";
    at::Tensor row = world.ranks.rank == 0 ? row_of(text, bytes) : torch::empty({bytes}, torch::kByte);
    broadcast_over(world, group, {row}, 0);
    return {reinterpret_cast<const char*>(row.const_data_ptr<std::uint8_t>()), static_cast<std::size_t>(bytes)};
}

std::string scatter_over(const World::Groups& world, c10d::Backend& group, std::vector<std::string> texts) {
    at::Tensor lengths = torch::zeros({world.ranks.world_size}, torch::kLong);
    for (std::size_t rank = 0; rank < texts.size(); ++rank) lengths[static_cast<std::int64_t>(rank)] = static_cast<std::int64_t>(texts[rank].size());
    broadcast_over(world, group, {lengths}, 0);
    const auto longest = lengths.max().item<std::int64_t>();
    std::vector<at::Tensor> own = {torch::empty({longest}, torch::kByte)};
    std::vector<std::vector<at::Tensor>> rows;
    for (const std::string& text : texts) (rows.empty() ? rows.emplace_back() : rows.front()).push_back(row_of(text, longest));
    collective(world, "sending batches", [&] { group.scatter(own, rows)->wait(); });
    return {reinterpret_cast<const char*>(own[0].const_data_ptr<std::uint8_t>()), static_cast<std::size_t>(lengths[world.ranks.rank].item<std::int64_t>())};
}

void broadcast_over(const World::Groups& world, c10d::Backend& group, std::vector<at::Tensor> tensors, int from) {
    const at::NoGradGuard no_grad;
    std::map<at::ScalarType, std::vector<at::Tensor>> by_type;
    for (at::Tensor& tensor : tensors) by_type[tensor.scalar_type()].push_back(std::move(tensor));
    c10d::BroadcastOptions options;
    options.rootRank = from;
    for (auto& [type, of_type] : by_type) {
        std::vector<at::Tensor> flat;
        for (const at::Tensor& tensor : of_type) flat.push_back(tensor.reshape({-1}));
        std::vector<at::Tensor> sent = {of_type.size() == 1 ? flat[0].contiguous() : torch::cat(flat)};
        collective(world, "a broadcast", [&] { group.broadcast(sent, options)->wait(); });
        if (world.ranks.rank == from || sent[0].is_alias_of(of_type[0])) continue;
        std::int64_t begin = 0;
        for (at::Tensor& tensor : of_type) {
            tensor.copy_(sent[0].narrow(0, begin, tensor.numel()).view(tensor.sizes()));
            begin += tensor.numel();
        }
    }
}

std::shared_ptr<World> World::join(const Ranks& ranks, const WorldOptions& options) {
    const QuietC10d quiet;
    auto groups = std::make_unique<Groups>();
    groups->ranks = ranks;
    groups->options = options;
    // A launcher's store outlives a start of the group that failed.
    groups->store = c10::make_intrusive<c10d::PrefixStore>(fmt::format("torchbus/{}/{}", ranks.run_id, ranks.restart), connect(ranks, options));
    RollCall(groups->ranks, groups->options, *groups->store).run();
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
    static std::mutex one_at_a_time;
    static std::weak_ptr<World> shared;
    static int joined = 0;
    const std::lock_guard lock(one_at_a_time);
    if (auto world = shared.lock()) return world;
    auto ranks = ranks_from_environment();
    if (!ranks) return nullptr;
    if (const int before = joined++; before > 0) ranks->run_id += fmt::format("/{}", before);  // the store may still hold what was said then
    auto world = join(*ranks, options);
    shared = world;
    return world;
}

World::World(std::unique_ptr<Groups> groups) : groups_(std::move(groups)) {}
World::~World() = default;
const Ranks& World::ranks() const { return groups_->ranks; }

void World::sum(std::span<double> values) { sum_over(*groups_, *groups_->data_backend, values); }

void World::sum(at::Tensor& tensor) { sum_over(*groups_, *groups_->data_backend, tensor); }

void World::broadcast(std::vector<at::Tensor> tensors, int from) { broadcast_over(*groups_, *groups_->data_backend, std::move(tensors), from); }

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
    std::vector<at::Tensor> all = gather_equal(*groups_, *groups_->data_backend, padded);
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
    for (const auto& group : {groups_->control, groups_->data_backend}) close(*group, ranks());
    if (rank() == 0 && !ranks().launcher_hosts_store) std::this_thread::sleep_for(kLastWords);  // the store goes with this process
}

std::shared_ptr<Consensus> World::consensus() { return make_consensus(shared_from_this()); }

}  // namespace torchbus
