// What leaving the process costs a training: each sink alone, all of them together, and a thousand clients that never read.
// Run: build/release/test/bench/stream_bench [sinks|everything|clients] [rounds] [sink]
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <thread>

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/write.hpp>
#include <nlohmann/json.hpp>
#include <torch/torch.h>
#include <torchbus/process_memory.hpp>
#include <torchbus/torchbus.hpp>

#include "hand_written.hpp"

using namespace torchbus;
using namespace torchbus::bench;

namespace {

namespace fs = std::filesystem;
namespace asio = boost::asio;
using Callbacks = std::vector<ComposedCallback>;

constexpr Interval kEveryStep(1, Interval::Unit::Step), kEveryTen(10, Interval::Unit::Step), kEveryHundred(100, Interval::Unit::Step);
const fs::path kFolder = fs::temp_directory_path() / "torchbus-stream-bench";

/// Answers every request as MLflow would, and a webhook's receiver: with the ids that are looked for.
class Answering {
public:
    Answering() : acceptor_(io_, {asio::ip::make_address("127.0.0.1"), 0}), port_(acceptor_.local_endpoint().port()), thread_([this] { run(); }) {}
    ~Answering() {
        is_over_ = true;
        asio::ip::tcp::socket last(io_);
        boost::system::error_code none;
        last.connect({asio::ip::make_address("127.0.0.1"), port_}, none);
        thread_.join();
    }
    std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }

private:
    void run() {
        while (!is_over_) {
            asio::ip::tcp::socket socket(io_);
            boost::system::error_code error;
            acceptor_.accept(socket, error);
            if (!error && !is_over_) std::thread([socket = std::move(socket)]() mutable { serve(socket); }).detach();
        }
    }
    static void serve(asio::ip::tcp::socket& socket) {
        boost::system::error_code error;
        for (std::string request; !error;) {
            const std::size_t head = request.find("\r\n\r\n");
            const std::size_t length_at = request.find("Content-Length: ");
            const std::size_t body = length_at != std::string::npos && length_at < head ? std::strtoull(request.c_str() + length_at + 16, nullptr, 10) : 0;
            if (head == std::string::npos || request.size() < head + 4 + body) {
                char bytes[65536];
                const std::size_t count = socket.read_some(asio::buffer(bytes), error);
                request.append(bytes, count);
                continue;
            }
            request.erase(0, head + 4 + body);
            const std::string answer = R"({"experiment":{"experiment_id":"1"},"experiment_id":"1","run":{"info":{"run_id":"r1","run_uuid":"r1"}},"metrics":[]})";
            asio::write(socket, asio::buffer("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: " + std::to_string(answer.size()) + "\r\n\r\n" + answer), error);
        }
    }

    asio::io_context io_;
    asio::ip::tcp::acceptor acceptor_;
    std::uint16_t port_;
    std::atomic<bool> is_over_{false};
    std::thread thread_;
};

struct Case {
    const char* name;
    nn::Sequential (*model)();
    std::int64_t inputs, batch, steps;
};

nn::Sequential small_model() {
    torch::manual_seed(1);
    return nn::Sequential(nn::Linear(784, 128), nn::ReLU(), nn::Linear(128, 10));
}
nn::Sequential larger_model() {
    torch::manual_seed(1);
    return nn::Sequential(nn::Linear(784, 256), nn::ReLU(), nn::Linear(256, 10));
}
const Case kSmall = {"the small MLP", small_model, 784, 32, 4000};
/// Short, so that what disturbs a machine that is shared disturbs both of a pair.
const Case kShort[] = {{"steps of at least 1 ms", larger_model, 784, 64, 300}, {"the small MLP", small_model, 784, 32, 800}};
constexpr std::int64_t kUntimed = 50;  ///< the first steps, while files are opened and connections made; what that costs is in the table of sinks

std::shared_ptr<TensorDataset> data_for(const Case& of) {
    torch::manual_seed(2);
    return std::make_shared<TensorDataset>(torch::rand({of.steps * of.batch, of.inputs}), torch::randint(10, {of.steps * of.batch}));
}

/// The time between the end of a run's first steps and its end event.
struct RunClock {
    std::chrono::steady_clock::time_point began, ended;
    double seconds = 0;
    double seconds_since_end() const { return seconds_since(ended); }
    ComposedCallback callback() {
        FunctionCallback clock("clock");
        clock.on<TrainStepEnd>(Stage::Persist, [this](const TrainStepEnd& event) {
            if (event.position.in_epoch.step == kUntimed) began = std::chrono::steady_clock::now();
        });
        clock.on<TrainingRunEnd>(Stage::Observe, [this](const TrainingRunEnd&) {
            ended = std::chrono::steady_clock::now();
            seconds = std::chrono::duration<double>(ended - began).count();
        });
        return ComposedCallback(clock);
    }
};

struct Trained {
    double seconds = 0;      ///< as RunClock has it
    double end_seconds = 0;  ///< from there on: sinks are given time to tell all
    std::vector<AccountingRow> accounting;
};

/// An epoch, with metrics, clipping and the learning rate on the blackboard; and the sinks.
Trained train(const Case& of, const std::shared_ptr<TensorDataset>& data, Callbacks sinks) {
    auto model = of.model();
    Callbacks callbacks = {make_metrics({.accuracy = true}), make_learning_rate_monitor(), make_gradient_clipping({.max_norm = 1.0})};
    for (ComposedCallback& sink : sinks) callbacks.push_back(std::move(sink));
    RunClock clock;
    callbacks.push_back(clock.callback());
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = fused_sgd(model->parameters()), .callbacks = std::move(callbacks), .handle_signals = false});
    trainer.train(data, {.epochs = 1, .batch_size = of.batch});
    return {clock.seconds, clock.seconds_since_end(), trainer.accounting()};
}

double median_of(std::vector<double> values) {
    std::ranges::sort(values);
    return values[values.size() / 2];
}

/// The median of ratios, and where it lies in 95 of 100 samples of them drawn anew.
std::string with_interval(const std::vector<double>& ratios) {
    std::mt19937 random(1);
    std::vector<double> medians;
    for (int i = 0; i < 2000; ++i) {
        std::vector<double> drawn(ratios.size());
        for (double& ratio : drawn) ratio = ratios[random() % ratios.size()];
        medians.push_back(median_of(drawn));
    }
    std::ranges::sort(medians);
    char text[80];
    std::snprintf(text, sizeof text, "%.4f (95 %%: %.4f to %.4f)", median_of(ratios), medians[50], medians[1949]);
    return text;
}

/// Pairs of rounds with and without, each first in turn.
std::vector<double> ratios_of(int rounds, const std::function<double()>& with, const std::function<double()>& without) {
    std::vector<double> ratios;
    for (int round = -1; round < rounds; ++round) {  // the first one warms up
        double a = 0, b = 0;
        if (round % 2 == 0) a = with(), b = without();
        else b = without(), a = with();
        if (round >= 0) ratios.push_back(a / b);
    }
    return ratios;
}

// ── each sink alone ──────────────────────────────────────────────────────────────────────────────────────────────
struct Sink {
    const char* name;
    bool takes_events, takes_numbers;
    Interval by_default;  ///< its option `every`, where none is given
    std::function<ComposedCallback(Interval every)> make;
};

/// What an event costs any subscriber: being called, and accounted for.
struct Idle final : Callback {
    std::string kind() const override { return "idle"; }
    Declaration declare() const override { return {.listens = {"*"}}; }
    void attach(Attachment& run) override { connections += run.bus.observe_all(Stage::Persist, [](const AnyEvent&) {}); }
    void detach() override { connections.clear(); }
    Connections connections;
};

std::vector<Sink> sinks(const Answering& receiver) {
    return {
        {"event_file", true, true, kEveryStep, [](Interval every) { return ComposedCallback(make_event_file({.path = kFolder / "events.jsonl", .every = every, .keep = 0})); }},
        {"event_server", true, true, kEveryStep, [](Interval every) { return ComposedCallback(make_event_server({.every = every})); }},
        {"tensorboard", false, true, kEveryTen, [](Interval every) { return ComposedCallback(make_tensorboard({.folder = kFolder / "tensorboard", .every = every})); }},
        {"csv_file", false, true, kEveryTen, [](Interval every) { return ComposedCallback(make_csv_file({.path = kFolder / "metrics.csv", .every = every, .keep = 0})); }},
        {"mlflow", false, true, kEveryTen, [&receiver](Interval every) { return ComposedCallback(make_mlflow({.url = receiver.url(), .every = every, .spool = kFolder / "mlflow"})); }},
        {"webhook", true, true, kEveryHundred, [&receiver](Interval every) { return ComposedCallback(make_webhook({.url = receiver.url() + "/hook", .events = {"*"}, .every = every})); }},
    };
}

/// What its accounting says of a sink: of the events of steps; and of those of a run's start and end, where files are opened and it is waited for.
struct SinkCost {
    double events = 0, messages = 0, seconds = 0, around_seconds = 0;
};
SinkCost cost_of(const Sink& sink, const std::vector<AccountingRow>& accounting) {
    SinkCost cost;
    for (const AccountingRow& row : accounting) {
        const auto calls = static_cast<double>(row.calls);
        const bool is_of_steps = calls >= static_cast<double>(kSmall.steps);
        if (row.subscriber == "idle" && is_of_steps) cost.events += calls;
        if (row.subscriber != sink.name) continue;
        if (!is_of_steps) {
            cost.around_seconds += row.seconds;
            continue;
        }
        cost.seconds += row.seconds;
        cost.messages += (sink.takes_events ? calls : 0) + (sink.takes_numbers && row.event == "train_step_end" ? calls : 0);
    }
    return cost;
}

struct Flood {
    std::int64_t number;
    double loss;
};
void to_json(nlohmann::json& out, const Flood& flood) { out = {{"number", flood.number}, {"loss", flood.loss}, {"text", "what an event of a user's own may say"}}; }

/// Events of a user's own, as fast as they can be emitted, in a run of one step; a second, up to where the sink has all of them.
double flood_rate(const Sink& sink) {
    constexpr std::int64_t kFlood = 100000;
    class Flooding final : public Callback {
    public:
        std::string kind() const override { return "flooding"; }
        Declaration declare() const override { return {.listens = {"train_step_end"}}; }
        void attach(Attachment& run) override {
            connections_ += run.bus.observe<TrainStepEnd>(Stage::Observe, [&run](const TrainStepEnd&) {
                for (std::int64_t number = 0; number < kFlood; ++number) run.bus.emit(Flood{number, 1.0 / static_cast<double>(number + 1)});
            });
        }
        void detach() override { connections_.clear(); }

    private:
        Connections connections_;
    };
    auto model = small_model();
    Callbacks callbacks = {ComposedCallback(std::make_shared<Flooding>()), sink.make(kEveryStep)};
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = fused_sgd(model->parameters()), .callbacks = std::move(callbacks), .handle_signals = false});
    const auto data = std::make_shared<TensorDataset>(torch::rand({32, 784}), torch::randint(10, {32}));
    const auto begin = std::chrono::steady_clock::now();
    trainer.train(data, {.epochs = 1, .batch_size = 32});
    return static_cast<double>(kFlood) / seconds_since(begin);
}

/// Numbers of the smallest steps there are: messages a second, up to where the sink has all of them.
double number_rate(const Sink& sink) {
    constexpr std::int64_t kSteps = 20000;
    torch::manual_seed(1);
    nn::Sequential model(nn::Linear(2, 2));
    Callbacks callbacks = {make_metrics({.accuracy = true}), make_learning_rate_monitor(), sink.make(kEveryStep)};
    Trainer trainer({.model = model, .loss = cross_entropy, .optimizer = fused_sgd(model->parameters()), .callbacks = std::move(callbacks), .handle_signals = false});
    const auto data = std::make_shared<TensorDataset>(torch::rand({kSteps, 2}), torch::randint(2, {kSteps}));
    const auto begin = std::chrono::steady_clock::now();
    trainer.train(data, {.epochs = 1, .batch_size = 1});
    return static_cast<double>(kSteps) / seconds_since(begin);
}

void each_sink(int rounds, const std::string& only) {
    const Answering receiver;
    const auto data = data_for(kSmall);
    torch::set_num_threads(1);
    auto all = sinks(receiver);
    all.insert(all.begin(), {"idle", true, false, kEveryStep, [](Interval) { return ComposedCallback(std::make_shared<Idle>()); }});
    std::erase_if(all, [&](const Sink& sink) { return !only.empty() && only != sink.name; });
    std::vector<std::vector<double>> per_event(all.size()), per_message(all.size()), ends(all.size()), rates(all.size());
    for (int round = -1; round < rounds; ++round) {  // the first one warms up
        for (std::size_t i = 0; i < all.size(); ++i) {
            Callbacks callbacks = {all[i].make(kEveryStep)};
            if (all[i].name != std::string("idle")) callbacks.emplace_back(std::make_shared<Idle>());  // it counts the events
            const SinkCost cost = cost_of(all[i], train(kSmall, data, std::move(callbacks)).accounting);
            const double rate = all[i].takes_events ? flood_rate(all[i]) : number_rate(all[i]);
            if (round < 0) continue;
            per_event[i].push_back(cost.seconds * 1e9 / cost.events);
            per_message[i].push_back(cost.seconds * 1e9 / cost.messages);
            ends[i].push_back(cost.around_seconds * 1e3);
            rates[i].push_back(rate);
        }
    }
    std::printf("| sink | ns an event of the bus | (smallest to largest) | ns a message | ms at a run's start and end | messages a second |\n");
    for (std::size_t i = 0; i < all.size(); ++i)
        std::printf("| `%s` | %.0f | %.0f to %.0f | %.0f | %.1f | %.0f |\n", all[i].name, median_of(per_event[i]), *std::ranges::min_element(per_event[i]), *std::ranges::max_element(per_event[i]),
                    median_of(per_message[i]), median_of(ends[i]), median_of(rates[i]));
    std::fflush(stdout);
}

/// What accounting says that all sinks have taken of a step, in µs.
double sinks_us(const std::vector<Sink>& all, const std::vector<AccountingRow>& accounting, std::int64_t steps) {
    double us = 0;
    for (const Sink& sink : all)
        for (const AccountingRow& row : accounting)
            if (row.subscriber == sink.name && static_cast<std::int64_t>(row.calls) >= steps) us += row.seconds * 1e6 / static_cast<double>(steps);
    return us;
}

// ── all together ─────────────────────────────────────────────────────────────────────────────────────────────────
void everything(int rounds) {
    const Answering receiver;
    torch::set_num_threads(1);
    for (const Case& of : kShort) {
        const auto data = data_for(of);
        for (const auto every : std::initializer_list<std::optional<Interval>>{kEveryTen, std::nullopt, kEveryStep}) {
            double step_us = 0, end_s = 0;
            std::vector<double> on_training_thread;
            const auto with = [&] {
                Callbacks all;
                const auto made = sinks(receiver);
                for (const Sink& sink : made) all.push_back(sink.make(every.value_or(sink.by_default)));
                const Trained trained = train(of, data, std::move(all));
                on_training_thread.push_back(sinks_us(made, trained.accounting, of.steps));
                end_s = trained.end_seconds;
                return trained.seconds;
            };
            const auto without = [&] {
                const double seconds = train(of, data, {}).seconds;
                step_us = seconds * 1e6 / static_cast<double>(of.steps - kUntimed);
                return seconds;
            };
            const auto ratios = ratios_of(rounds, with, without);
            std::printf("%s (%.0f us), all six sinks, %s: %s; of a step accounting says %.1f us; at the end of a run they take %.2f s\n", of.name, step_us, every ? ("every " + to_string(*every)).c_str() : "as often as by default", with_interval(ratios).c_str(), median_of(on_training_thread), end_s);
            std::fflush(stdout);
        }
    }
}

// ── clients that never read ──────────────────────────────────────────────────────────────────────────────────────
class SilentClients {
public:
    SilentClients(std::uint16_t port, const fs::path& unix_socket, int count) {
        for (int i = 0; i < count; ++i) {
            const bool over_unix = i % 4 == 1;
            const int descriptor = over_unix ? connect_unix(unix_socket) : connect_tcp(port);
            const char* said[] = {"{\"every\": \"10step\"}\n", "{\"every\": \"10step\"}\n", "GET /events?every=10step HTTP/1.1\r\nHost: localhost\r\n\r\n",
                                  "GET /events?every=10step HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"};
            const std::string text = said[i % 4];
            if (::send(descriptor, text.data(), text.size(), MSG_NOSIGNAL) < 0) std::abort();
            descriptors_.push_back(descriptor);
        }
    }
    ~SilentClients() {
        for (const int descriptor : descriptors_) ::close(descriptor);
    }
    /// How many the server has not closed.
    std::int64_t connected() const {
        return std::ranges::count_if(descriptors_, [](int descriptor) {
            pollfd asked = {descriptor, POLLRDHUP, 0};
            return ::poll(&asked, 1, 0) == 0;
        });
    }
    SilentClients(const SilentClients&) = delete;
    SilentClients& operator=(const SilentClients&) = delete;

private:
    static int connect_tcp(std::uint16_t port) {
        const int descriptor = ::socket(AF_INET, SOCK_STREAM, 0);
        sockaddr_in address = {};
        address.sin_family = AF_INET;
        address.sin_port = htons(port);
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        if (::connect(descriptor, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) std::abort();
        return descriptor;
    }
    static int connect_unix(const fs::path& path) {
        const int descriptor = ::socket(AF_UNIX, SOCK_STREAM, 0);
        sockaddr_un address = {};
        address.sun_family = AF_UNIX;
        path.string().copy(address.sun_path, sizeof address.sun_path - 1);
        if (::connect(descriptor, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) std::abort();
        return descriptor;
    }
    std::vector<int> descriptors_;
};

std::uint16_t free_port() {
    asio::io_context io;
    const asio::ip::tcp::acceptor acceptor(io, {asio::ip::make_address("127.0.0.1"), 0});
    return acceptor.local_endpoint().port();
}

/// One trainer whose server has clients, and one whose server has none, in turn.
void clients(int rounds) {
    constexpr int kClients = 1000;
    struct rlimit limit = {};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &limit);
    torch::set_num_threads(1);
    for (const Case& of : kShort) {
        const auto data = data_for(of);
        struct Side {
            nn::Sequential model;
            std::uint16_t port = free_port();
            std::unique_ptr<RunClock> clock = std::make_unique<RunClock>();
            std::unique_ptr<Trainer> trainer = nullptr;
        };
        const auto side = [&](const char* name) {
            Side made{.model = of.model()};
            Callbacks callbacks = {make_metrics({.accuracy = true}), make_learning_rate_monitor(), make_gradient_clipping({.max_norm = 1.0}),
                                   make_event_server({.port = made.port, .unix_socket = kFolder / name, .every = kEveryTen, .stall = {3600, Interval::Unit::Second}}), made.clock->callback()};
            made.trainer = std::make_unique<Trainer>(TrainerOptions{.model = made.model, .loss = cross_entropy, .optimizer = fused_sgd(made.model->parameters()), .callbacks = std::move(callbacks), .handle_signals = false});
            return made;
        };
        const Side with = side("with.sock"), without = side("without.sock");
        double end_s = 0, step_us = 0;
        const auto epoch = [&](const Side& one) {
            one.trainer->train(data, {.epochs = 1, .batch_size = of.batch});
            end_s = one.clock->seconds_since_end();
            return one.clock->seconds;
        };
        const double before = memory_of_process().resident_bytes;
        const SilentClients silent(with.port, kFolder / "with.sock", kClients);
        double silent_end_s = 0;
        const auto ratios = ratios_of(rounds, [&] { const double seconds = epoch(with); silent_end_s = end_s; return seconds; }, [&] { const double seconds = epoch(without); step_us = seconds * 1e6 / static_cast<double>(of.steps - kUntimed); return seconds; });
        const double grown = memory_of_process().resident_bytes - before;
        std::printf("%s (%.0f us), %d clients that never read, of which %ld are connected at the end, against none: %s; the end of a run takes %.2f s; memory grew by %.1f MiB, of which the two histories are at most 64\n", of.name, step_us, kClients, static_cast<long>(silent.connected()), with_interval(ratios).c_str(), silent_end_s, grown / (1 << 20));
        std::fflush(stdout);
    }
}

}  // namespace

int main(int argc, char** argv) {
    const std::string what = argc > 1 ? argv[1] : "all";
    const int rounds = argc > 2 ? std::max(1, std::atoi(argv[2])) : 11;
    fs::remove_all(kFolder);
    fs::create_directories(kFolder);
    if (what == "sinks" || what == "all") each_sink(rounds, argc > 3 ? argv[3] : "");
    if (what == "everything" || what == "all") everything(rounds);
    if (what == "clients" || what == "all") clients(rounds);
    fs::remove_all(kFolder);
}
