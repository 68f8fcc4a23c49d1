#include <torchbus/distributed/launch.hpp>

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <torchbus/error.hpp>

#include "c10d_process.hpp"
#include "child_process.hpp"
#include "meeting_point.hpp"
#include "passed_on_signals.hpp"
#include "process_guard.hpp"
#include "rank_output.hpp"

namespace torchbus {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kTick{50};
constexpr milliseconds kSilence{1000};  ///< how long other nodes are waited for without a word
constexpr milliseconds kSpare{10000};   ///< beyond the grace, for a node to say that its ranks have ended

std::string how_it_ended(int status) {
    if (WIFSIGNALED(status)) return fmt::format("was ended by signal {} ({})", WTERMSIG(status), ::strsignal(WTERMSIG(status)));
    return fmt::format("ended with exit code {}", WEXITSTATUS(status));
}
int exit_code_of(int status) { return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status); }

struct Failure {
    int rank = 0;
    pid_t process = 0;
    int status = 0;
    std::deque<std::string> last_lines;  ///< of its standard error
};

struct RankProcess {
    int rank;
    std::unique_ptr<ChildProcess> process;
    std::unique_ptr<RankOutput> out, err;
};

/// A folder of this launcher's own, which goes with it.
class ErrorFiles {
public:
    ErrorFiles() {
        std::error_code ignored;
        std::string name = (fs::temp_directory_path(ignored) / "torchbus-launch-XXXXXX").string();
        if (::mkdtemp(name.data())) path_ = name;
    }
    ~ErrorFiles() {
        std::error_code ignored;
        if (!path_.empty()) fs::remove_all(path_, ignored);
    }
    ErrorFiles(const ErrorFiles&) = delete;
    ErrorFiles& operator=(const ErrorFiles&) = delete;
    const fs::path& path() const { return path_; }

private:
    fs::path path_;
};

class Launcher {
public:
    explicit Launcher(const LaunchOptions& options) : options_(options), guard_(static_cast<std::size_t>(options.processes)), meeting_point_(options) {}

    int run() {
        const PassedOnSignals passed_on;
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

    std::map<std::string, std::string> environment_of(int local_rank, int restart) const {
        const int rank = options_.node * options_.processes + local_rank;
        std::map<std::string, std::string> variables = {
            {"MASTER_ADDR", options_.master_address}, {"TORCHELASTIC_RUN_ID", options_.run_id}, {"TORCHELASTIC_USE_AGENT_STORE", "True"}, {"ROLE_NAME", "default"},
            {"TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"}, {"TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGHUP,SIGQUIT"}, {"TORCHELASTIC_ERROR_FILE", error_file(rank, restart)}};
        const auto set = [&](const char* name, int value) { variables[name] = fmt::format("{}", value); };
        set("RANK", rank);
        set("LOCAL_RANK", local_rank);
        set("WORLD_SIZE", world_size());
        set("LOCAL_WORLD_SIZE", options_.processes);
        set("GROUP_RANK", options_.node);
        set("GROUP_WORLD_SIZE", options_.nodes);
        set("ROLE_RANK", rank);
        set("ROLE_WORLD_SIZE", world_size());
        set("MASTER_PORT", meeting_point_.port());
        set("TORCHELASTIC_RESTART_COUNT", restart);
        set("TORCHELASTIC_MAX_RESTARTS", options_.max_restarts);
        if (!options_.visible_devices.empty()) variables.emplace("CUDA_VISIBLE_DEVICES", options_.visible_devices);
        if (!std::getenv("OMP_NUM_THREADS") && options_.processes > 1) variables.emplace("OMP_NUM_THREADS", "1");  // as torchrun does
        return variables;
    }

    /// Where a program of Python's that records its exceptions (torch.distributed.elastic) puts one.
    std::string error_file(int rank, int restart) const { return (errors_.path() / fmt::format("{}/{}/error.json", restart, rank)).string(); }

    void start(int restart) {
        const fs::path logs = options_.log_folder.empty() ? fs::path() : options_.log_folder / fmt::format("{}", restart);
        if (!logs.empty()) {
            std::error_code error;
            fs::create_directories(logs, error);
            if (error) throw ConfigError(fmt::format("{}: cannot make the folder: {}; give another --log-dir", logs.string(), error.message()));
        }
        for (int local = 0; local < options_.processes; ++local) {
            const int rank = options_.node * options_.processes + local;
            std::error_code ignored;
            fs::create_directories(fs::path(error_file(rank, restart)).parent_path(), ignored);
            auto& one = *ranks_.emplace_back(std::make_unique<RankProcess>(RankProcess{rank, std::make_unique<ChildProcess>(options_.command, environment_of(local, restart), guard_), nullptr, nullptr}));
            const std::string prefix = fmt::format("[rank {}/{}] ", rank, world_size());
            const auto log = [&](const char* ending) { return logs.empty() ? fs::path() : logs / fmt::format("rank_{}.{}", rank, ending); };
            one.out = std::make_unique<RankOutput>(one.process->out(), stdout, prefix, log("out"));
            one.err = std::make_unique<RankOutput>(one.process->err(), stderr, prefix, log("err"));
        }
    }

    /// Until all ranks of all nodes have ended, well or not.
    void run_once(int restart) {
        failure_.reset();
        failed_elsewhere_ = false;
        kill_at_.reset();
        ranks_.clear();
        start(restart);
        failed_key_ = fmt::format("launch/{}/{}/failed", options_.run_id, restart);
        bool has_ended = false;
        while (!has_ended) {
            read_streams();
            pass_on_signals();
            has_ended = look_at_ranks();
            look_at_nodes();
            if (kill_at_ && steady_clock::now() > *kill_at_) signal_ranks(SIGKILL);
        }
        for (const auto& one : ranks_) one->out->read_rest(), one->err->read_rest();
        ranks_.clear();
        if (options_.nodes > 1) wait_for_nodes(restart);
    }

    /// Who is done stays until all are: another node's rank may fail still, and node 0 has the meeting point. Once a rank has
    /// failed the others are given no more than their grace, and a little.
    void wait_for_nodes(int restart) {
        std::vector<std::string> done;
        for (int node = 0; node < options_.nodes; ++node) done.push_back(fmt::format("launch/{}/{}/done/{}", options_.run_id, restart, node));
        const auto began = steady_clock::now();
        std::optional<steady_clock::time_point> failed;
        bool has_told = false, has_told_silence = false;
        meeting_point_.say(done[static_cast<std::size_t>(options_.node)]);
        while (signal_ == 0 && !meeting_point_.is_said(done) && !meeting_point_.lost()) {
            pass_on_signals();  // whoever waits for a node that is gone can be stopped
            look_at_nodes();
            const auto now = steady_clock::now();
            if (!failed && (failure_ || failed_elsewhere_)) failed = now;
            if (failed && now - *failed > options_.grace + kSpare) fail_without(missing_nodes(done));
            if (!has_told && now - began > kSilence) has_told = tell_wait_for(missing_nodes(done));
            if (!has_told_silence && meeting_point_.is_silent()) has_told_silence = tell_wait_for(silent_node());
            std::this_thread::sleep_for(kTick);
        }
        look_at_nodes();
        if (const auto lost = meeting_point_.lost(); signal_ == 0 && lost)
            throw DistributedError(fmt::format("{}the meeting point {} is gone, and with it the launcher of node 0: {}", failure_ ? what_failed() + "; " : "", meeting_point_.address(), *lost));
        if (options_.node == 0) std::this_thread::sleep_for(4 * kTick);  // until the others have seen it
    }

    /// Empty where all have come meanwhile, or nobody can be asked any more.
    std::string missing_nodes(const std::vector<std::string>& done) {
        std::vector<std::size_t> missing;
        for (std::size_t node = 0; node < done.size() && !meeting_point_.is_silent(); ++node)
            if (!meeting_point_.is_said({done[node]})) missing.push_back(node);
        if (meeting_point_.lost()) return "";
        if (meeting_point_.is_silent()) return silent_node();
        return missing.empty() ? "" : fmt::format("{} {}", missing.size() == 1 ? "node" : "nodes", fmt::join(missing, ", "));
    }
    std::string silent_node() const { return fmt::format("node 0 (the meeting point {}, which its launcher hosts, does not answer)", meeting_point_.address()); }
    bool tell_wait_for(const std::string& missing) const {
        if (!missing.empty()) std::fprintf(stderr, "torchbus launch: the ranks of node %d have ended; waiting for %s\n", options_.node, missing.c_str());
        return true;
    }
    void fail_without(const std::string& missing) const {
        if (missing.empty()) return;
        throw DistributedError(fmt::format("{}, and {} after that {} did not say that the ranks there had ended: the launcher has died or cannot be reached; see whether ranks are left there, and launch all nodes again",
                                           what_failed(), seconds_text(options_.grace + kSpare), missing));
    }

    /// Whether another node's rank was the first to fail. The ranks here are stopped for it, or when there is no meeting point any more.
    void look_at_nodes() {
        if (options_.nodes == 1) return;
        const bool is_failing = failure_ || failed_elsewhere_;
        if (!is_failing && meeting_point_.is_said({failed_key_})) {
            failed_elsewhere_ = true;
            stop_ranks(SIGTERM);
        }
        if (meeting_point_.lost() && !kill_at_) stop_ranks(SIGTERM);
    }

    void read_streams() {
        std::vector<pollfd> streams;
        std::vector<RankOutput*> owners;
        for (const auto& one : ranks_)
            for (RankOutput* output : {one->out.get(), one->err.get()}) {
                if (!output->is_open()) continue;
                streams.push_back({output->descriptor(), POLLIN, 0});
                owners.push_back(output);
            }
        if (::poll(streams.data(), streams.size(), static_cast<int>(kTick.count())) <= 0) return;
        for (std::size_t i = 0; i < streams.size(); ++i)
            if (streams[i].revents != 0) owners[i]->read();
    }

    /// A second one that ends kills, but for SIGHUP: who closes a terminal may send several.
    void pass_on_signals() {
        PassedOnSignals::take([this](const PassedOnSignal& signal) {
            if (!signal.ends) {
                signal_ranks(signal.for_ranks);
            } else if (signal_ == 0) {
                signal_ = signal.number;
                stop_ranks(signal.for_ranks);
            } else if (signal.number != SIGHUP) {
                signal_ranks(SIGKILL);
            }
        });
    }

    /// Returns whether none runs any more.
    bool look_at_ranks() {
        bool all_ended = true;
        for (const auto& one : ranks_) {
            const std::optional<int> status = one->process->status();
            if (!status) all_ended = false;
            if (!status || *status == 0 || failure_ || failed_elsewhere_ || meeting_point_.lost() || signal_ != 0) continue;
            one->err->read_rest();
            failure_ = Failure{one->rank, one->process->id(), *status, one->err->last_lines()};
            stop_ranks(SIGTERM);
            if (options_.nodes > 1) meeting_point_.say(failed_key_);
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
    ErrorFiles errors_;
    ProcessGuard guard_;  ///< of the ranks
    MeetingPoint meeting_point_;
    std::vector<std::unique_ptr<RankProcess>> ranks_;
    std::optional<Failure> failure_;  ///< the first one on this node
    bool failed_elsewhere_ = false;
    std::string failed_key_;          ///< by which nodes tell each other
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
