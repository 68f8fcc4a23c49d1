#include <torchbus/distributed/launch.hpp>

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <torchbus/error.hpp>

#include "child_process.hpp"
#include "c10d_process.hpp"

namespace torchbus {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kTick{50};
constexpr std::size_t kLinesKept = 20;          ///< of each rank, for when it fails
constexpr std::size_t kLongestLine = 64 << 10;  ///< what is longer is printed in parts
constexpr std::array kPassedOn = {SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

std::array<std::atomic<int>, kPassedOn.size()> arrived{};

extern "C" void note_for_ranks(int number) {
    for (std::size_t i = 0; i < kPassedOn.size(); ++i)
        if (kPassedOn[i] == number) arrived[i].fetch_add(1, std::memory_order_relaxed);
}

/// Catches what is passed on, while it lives.
class PassedOn {
public:
    PassedOn() {
        for (std::size_t i = 0; i < kPassedOn.size(); ++i) {
            arrived[i] = 0;
            struct sigaction action = {};
            action.sa_handler = note_for_ranks;
            ::sigaction(kPassedOn[i], &action, &former_[i]);
        }
    }
    ~PassedOn() {
        for (std::size_t i = 0; i < kPassedOn.size(); ++i) ::sigaction(kPassedOn[i], &former_[i], nullptr);
    }
    PassedOn(const PassedOn&) = delete;
    PassedOn& operator=(const PassedOn&) = delete;

private:
    std::array<struct sigaction, kPassedOn.size()> former_{};
};

std::string how_it_ended(int status) {
    if (WIFSIGNALED(status)) return fmt::format("was ended by signal {} ({})", WTERMSIG(status), ::strsignal(WTERMSIG(status)));
    return fmt::format("ended with exit code {}", WEXITSTATUS(status));
}
int exit_code_of(int status) { return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status); }

/// One stream of a rank: printed line by line, logged as it comes.
class Lines {
public:
    Lines(int from, std::FILE* to, std::string prefix, const fs::path& log, std::deque<std::string>* kept) : from_(from), to_(to), prefix_(std::move(prefix)), kept_(kept) {
        if (log.empty()) return;
        log_.open(log, std::ios::binary);
        if (!log_) throw ConfigError(fmt::format("{}: cannot write the log: {}; give another --log-dir", log.string(), std::strerror(errno)));
    }
    int descriptor() const { return is_open_ ? from_ : -1; }
    bool is_open() const { return is_open_; }
    void read() {
        char bytes[4096];
        const ssize_t count = ::read(from_, bytes, sizeof bytes);
        if (count < 0 && (errno == EINTR || errno == EAGAIN)) return;
        if (count <= 0) return close();
        log_.write(bytes, count).flush();
        pending_.append(bytes, static_cast<std::size_t>(count));
        for (std::size_t end; (end = pending_.find('\n')) != std::string::npos; pending_.erase(0, end + 1)) print(pending_.substr(0, end));
        if (pending_.size() > kLongestLine) print(std::exchange(pending_, {}));
    }
    /// What is there, once its rank has ended; a process that has left the rank's group may still hold it open.
    void read_rest() {
        pollfd stream{from_, POLLIN, 0};
        while (is_open_ && ::poll(&stream, 1, static_cast<int>(kTick.count())) > 0) read();
        close();
    }
    void close() {
        if (!pending_.empty()) print(std::exchange(pending_, {}));
        is_open_ = false;
    }

private:
    void print(const std::string& line) {
        std::fprintf(to_, "%s%s\n", prefix_.c_str(), line.c_str());
        std::fflush(to_);
        if (kept_->size() == kLinesKept) kept_->pop_front();
        kept_->push_back(line);
    }
    int from_;
    std::FILE* to_;
    std::string prefix_, pending_;
    std::ofstream log_;
    std::deque<std::string>* kept_;
    bool is_open_ = true;
};

struct Failure {
    int rank = 0;
    pid_t process = 0;
    int status = 0;
    std::vector<std::string> last_lines;
};

struct RankProcess {
    int rank;
    std::deque<std::string> last_lines;  ///< of its standard error
    std::deque<std::string> ignored;
    std::unique_ptr<ChildProcess> process;
    std::unique_ptr<Lines> out, err;
};

class Launcher {
public:
    explicit Launcher(const LaunchOptions& options) : options_(options), meeting_point_(open()) {}

    int run() {
        const PassedOn passed_on;
        for (int restart = 0;; ++restart) {
            run_once(restart);
            if (signal_ != 0) return 128 + signal_;
            if (!failure_ && !failed_elsewhere_) return 0;
            if (restart == options_.max_restarts) return tell_failure();
            std::fprintf(stderr, "torchbus launch: %s; all ranks are started again, restart %d of %d\n", what_failed().c_str(), restart + 1, options_.max_restarts);
        }
    }

private:
    int world_size() const { return options_.processes * options_.nodes; }

    c10::intrusive_ptr<c10d::TCPStore> open() const {
        const QuietC10d quiet;
        ignore_broken_pipes();
        c10d::TCPStoreOptions store;
        store.port = static_cast<std::uint16_t>(options_.master_port);
        store.isServer = options_.node == 0;
        store.waitWorkers = false;
        store.timeout = options_.join_timeout;
        try {
            return c10::make_intrusive<c10d::TCPStore>(options_.master_address, store);
        } catch (const c10::Error& error) {
            const std::string why = std::string(error.what_without_backtrace()).substr(0, std::string(error.what_without_backtrace()).find('\n'));
            const std::string address = fmt::format("{}:{}", options_.master_address, options_.master_port);
            throw DistributedError(store.isServer ? fmt::format("cannot open the meeting point {}: {}; is the port taken? give another --master-port", address, why)
                                                  : fmt::format("nobody answers at the meeting point {} after {:.3g} s: {}; is the launcher of node 0 running there?", address,
                                                                static_cast<double>(options_.join_timeout.count()) / 1000, why));
        }
    }

    std::map<std::string, std::string> environment_of(int local_rank, int restart) const {
        const int rank = options_.node * options_.processes + local_rank;
        std::map<std::string, std::string> variables = {
            {"MASTER_ADDR", options_.master_address}, {"TORCHELASTIC_RUN_ID", options_.run_id}, {"TORCHELASTIC_USE_AGENT_STORE", "True"}, {"ROLE_NAME", "default"},
            {"TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"}};
        const auto set = [&](const char* name, int value) { variables[name] = fmt::format("{}", value); };
        set("RANK", rank);
        set("LOCAL_RANK", local_rank);
        set("WORLD_SIZE", world_size());
        set("LOCAL_WORLD_SIZE", options_.processes);
        set("GROUP_RANK", options_.node);
        set("GROUP_WORLD_SIZE", options_.nodes);
        set("ROLE_RANK", rank);
        set("ROLE_WORLD_SIZE", world_size());
        set("MASTER_PORT", meeting_point_->getPort());
        set("TORCHELASTIC_RESTART_COUNT", restart);
        set("TORCHELASTIC_MAX_RESTARTS", options_.max_restarts);
        if (!std::getenv("OMP_NUM_THREADS") && options_.processes > 1) variables.emplace("OMP_NUM_THREADS", "1");  // as torchrun does
        return variables;
    }

    void start(int restart) {
        const fs::path logs = options_.log_folder.empty() ? fs::path() : options_.log_folder / fmt::format("{}", restart);
        if (!logs.empty()) {
            std::error_code error;
            fs::create_directories(logs, error);
            if (error) throw ConfigError(fmt::format("{}: cannot make the folder: {}; give another --log-dir", logs.string(), error.message()));
        }
        for (int local = 0; local < options_.processes; ++local) {
            const int rank = options_.node * options_.processes + local;
            auto& one = *ranks_.emplace_back(std::make_unique<RankProcess>(RankProcess{rank, {}, {}, nullptr, nullptr, nullptr}));
            one.process = std::make_unique<ChildProcess>(options_.command, environment_of(local, restart));
            const std::string prefix = fmt::format("[rank {}/{}] ", rank, world_size());
            const auto log = [&](const char* ending) { return logs.empty() ? fs::path() : logs / fmt::format("rank_{}.{}", rank, ending); };
            one.out = std::make_unique<Lines>(one.process->out(), stdout, prefix, log("out"), &one.ignored);
            one.err = std::make_unique<Lines>(one.process->err(), stderr, prefix, log("err"), &one.last_lines);
        }
    }

    /// Until all ranks of all nodes have ended, well or not.
    void run_once(int restart) {
        failure_.reset();
        failed_elsewhere_ = false;
        kill_at_.reset();
        ranks_.clear();
        start(restart);
        const std::string failed = fmt::format("launch/{}/{}/failed", options_.run_id, restart), done = fmt::format("launch/{}/{}/done", options_.run_id, restart);
        bool has_ended = false;
        while (!has_ended) {
            read_streams();
            pass_on_signals();
            has_ended = look_at_ranks();
            if (failure_ && !failed_elsewhere_ && options_.nodes > 1) meeting_point_->set(failed, std::vector<std::uint8_t>{});
            if (!failure_ && options_.nodes > 1 && meeting_point_->check({failed})) failed_elsewhere_ = true, stop_ranks(SIGTERM);
            if (kill_at_ && steady_clock::now() > *kill_at_) signal_ranks(SIGKILL);
        }
        for (const auto& one : ranks_) one->out->read_rest(), one->err->read_rest();
        ranks_.clear();
        if (options_.nodes == 1) return;
        // Who is done stays until all are: another node's rank may fail still, and node 0 has the meeting point.
        meeting_point_->add(done, 1);
        while (meeting_point_->add(done, 0) < options_.nodes) {
            if (!failure_ && meeting_point_->check({failed})) failed_elsewhere_ = true;
            std::this_thread::sleep_for(kTick);
        }
        if (!failure_ && meeting_point_->check({failed})) failed_elsewhere_ = true;
        if (options_.node == 0) std::this_thread::sleep_for(4 * kTick);  // until the others have seen it
    }

    void read_streams() {
        std::vector<pollfd> streams;
        std::vector<Lines*> owners;
        for (const auto& one : ranks_)
            for (Lines* lines : {one->out.get(), one->err.get()}) {
                if (!lines->is_open()) continue;
                streams.push_back({lines->descriptor(), POLLIN, 0});
                owners.push_back(lines);
            }
        if (::poll(streams.data(), streams.size(), static_cast<int>(kTick.count())) <= 0) return;
        for (std::size_t i = 0; i < streams.size(); ++i)
            if (streams[i].revents != 0) owners[i]->read();
    }

    /// A second SIGINT or SIGTERM kills.
    void pass_on_signals() {
        for (std::size_t i = 0; i < kPassedOn.size(); ++i)
            for (int left = arrived[i].exchange(0); left > 0; --left) {
                const int number = kPassedOn[i];
                const bool ends = number == SIGINT || number == SIGTERM;
                if (ends && signal_ != 0) {
                    signal_ranks(SIGKILL);
                    continue;
                }
                if (ends) signal_ = number;
                ends ? stop_ranks(number) : signal_ranks(number);
            }
    }

    /// Returns whether none runs any more.
    bool look_at_ranks() {
        bool all_ended = true;
        for (const auto& one : ranks_) {
            const std::optional<int> status = one->process->status();
            if (!status) all_ended = false;
            if (!status || *status == 0 || failure_ || failed_elsewhere_ || signal_ != 0) continue;
            one->err->read_rest();
            failure_ = Failure{one->rank, one->process->id(), *status, {one->last_lines.begin(), one->last_lines.end()}};
            stop_ranks(SIGTERM);
        }
        return all_ended;
    }

    void signal_ranks(int number) const {
        for (const auto& one : ranks_) one->process->signal(number);
    }
    void stop_ranks(int number) {
        signal_ranks(number);
        kill_at_ = steady_clock::now() + options_.grace;
    }

    std::string what_failed() const {
        if (!failure_) return "a rank of another node failed";
        return fmt::format("rank {} of {} (process {}) {}", failure_->rank, world_size(), failure_->process, how_it_ended(failure_->status));
    }
    int tell_failure() const {
        std::fprintf(stderr, "torchbus launch: %s, and the others were stopped\n", what_failed().c_str());
        if (!failure_) return 1;
        for (const std::string& line : failure_->last_lines) std::fprintf(stderr, "[rank %d/%d] %s\n", failure_->rank, world_size(), line.c_str());
        return exit_code_of(failure_->status);
    }

    const LaunchOptions& options_;
    c10::intrusive_ptr<c10d::TCPStore> meeting_point_;
    std::vector<std::unique_ptr<RankProcess>> ranks_;
    std::optional<Failure> failure_;  ///< the first one on this node
    bool failed_elsewhere_ = false;
    int signal_ = 0;                  ///< that ends the run
    std::optional<steady_clock::time_point> kill_at_;
};

}  // namespace

int launch(const LaunchOptions& options) {
    const auto require = [](bool holds, const std::string& what) {
        if (!holds) throw ConfigError("launch: " + what);
    };
    require(!options.command.empty(), "there is no command; give a program and its arguments, e.g. torchbus launch --nproc-per-node 2 -- torchbus train run.json");
    require(options.processes >= 1, fmt::format("--nproc-per-node: {} is too few; give at least 1", options.processes));
    require(options.nodes >= 1, fmt::format("--nnodes: {} is too few; give at least 1", options.nodes));
    require(options.node >= 0 && options.node < options.nodes, fmt::format("--node-rank: {} is none of {} nodes; they count from 0", options.node, options.nodes));
    require(options.master_port >= 0 && options.master_port <= 65535, fmt::format("--master-port: {} is no port; give one from 1 to 65535, or 0 for a free one", options.master_port));
    require(options.nodes == 1 || options.master_port != 0, "--master-port: several nodes need one that all of them know, e.g. 29500");
    require(options.max_restarts >= 0, fmt::format("--max-restarts: {} is too few; give at least 0", options.max_restarts));
    return Launcher(options).run();
}

}  // namespace torchbus
