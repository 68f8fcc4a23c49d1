#include "mlflow_server.hpp"

#include <fmt/format.h>

#include <torchbus/error.hpp>

#include "sink.hpp"
#include "mlflow_records.hpp"

namespace torchbus {
namespace {

using nlohmann::json;

constexpr int kTooLarge = 413;
constexpr std::size_t kRecordsAtOnce = 256, kBytesAtOnce = 512U << 10;  // MLflow takes no request of more than 1 MB
constexpr std::size_t kLongestRefusal = 300;

std::string mlflow_error_code(const json& body) { return body.is_object() && body.contains("error_code") && body["error_code"].is_string() ? body["error_code"].get<std::string>() : std::string(); }

std::string text_at(const json& body, const json::json_pointer& place) { return body.contains(place) && body[place].is_string() ? body[place].get<std::string>() : std::string(); }

/// Metrics of several records go in one request; all else goes alone.
json joined(const std::vector<std::string>& records, std::size_t& count) {
    json first = json::parse(records.front(), nullptr, /*allow_exceptions=*/false);
    count = 1;
    if (!first.is_object() || !first.contains("metrics")) return first;
    for (; count < records.size(); ++count) {
        json next = json::parse(records[count], nullptr, /*allow_exceptions=*/false);
        if (!next.is_object() || !next.contains("metrics") || first["metrics"].size() + next["metrics"].size() > kMlflowMetrics) break;
        for (json& metric : next["metrics"]) first["metrics"].push_back(std::move(metric));
    }
    return first;
}

/// What a server says, as it may be shown: no control characters, which a terminal would obey, and not too long.
std::string told_text(std::string text) {
    for (std::size_t i = 0; i < text.size(); ++i) {
        const auto byte = static_cast<unsigned char>(text[i]), next = static_cast<unsigned char>(i + 1 < text.size() ? text[i + 1] : 0);
        if (byte < 0x20 || byte == 0x7f) text[i] = ' ';
        else if (byte == 0xc2 && next >= 0x80 && next < 0xa0) text.replace(i, 2, " ");
    }
    return shortened(std::move(text), kLongestRefusal);
}

std::string with_slash(std::string text) { return text.ends_with('/') ? text : text + '/'; }

}  // namespace

MlflowServer::MlflowServer(HttpPosterOptions options, std::string waits_in)
    : poster_(std::move(options)), base_(with_slash(poster_.url().target) + "api/2.0/mlflow/"), waits_in_(std::move(waits_in)) {}

DeliveryAttempt MlflowServer::deliver(Spool& spool) {
    if (!std::exchange(has_note_, true)) read_note(spool.note());
    std::vector<std::string> records;
    try {
        records = spool.oldest(kRecordsAtOnce, kBytesAtOnce);
    } catch (const DataError& failure) {
        warn_of_disk(failure, "it is tried again");
        return {DeliveryAttempt::Outcome::Failed, {}};
    }
    if (records.empty()) return {};
    std::size_t count = 0;
    const json record = joined(records, count);
    const std::string kind = record.is_object() ? record.value("kind", "") : "";
    not_before_ = {};
    const Fate fate = kind == "begin" ? begin(record) : kind == "log" ? log(record) : kind == "end" ? end(record) : Fate::Refused;
    if (fate == Fate::Later) return {DeliveryAttempt::Outcome::Failed, not_before_};
    if (fate == Fate::Refused) leave_out(kind, count);
    if (!std::exchange(trouble_, {}).empty()) warn(fmt::format("mlflow: {} answers again", poster_.url().place));
    try {
        spool.remove(count, note());
        is_disk_in_trouble_ = false;
    } catch (const DataError& failure) {  // a disk that is full may have place again; the server need not wait for that
        warn_of_disk(failure, "it goes on, and what was sent may be sent once more");
    }
    return {DeliveryAttempt::Outcome::Delivered, {}};
}

void MlflowServer::warn_of_disk(const DataError& failure, const char* what_then) {
    if (!std::exchange(is_disk_in_trouble_, true)) warn(fmt::format("mlflow: {}; {}", failure.what(), what_then));
}

void MlflowServer::leave_out(const std::string& kind, std::size_t count) {
    const std::string why = std::exchange(refusal_, {});
    if (std::exchange(left_out_, left_out_ + count) > 0) return;
    first_left_out_ = count;
    warn(fmt::format("mlflow: {} did not take a record of the kind '{}', and it is left out: {}", poster_.url().place, kind, why.empty() ? "nothing is known of its run" : why));
}

void MlflowServer::tell_sums() const {
    if (left_out_ > first_left_out_) warn(fmt::format("mlflow: {} did not take {} records in all, and they are left out", poster_.url().place, left_out_));
}

void MlflowServer::read_note(const std::string& note) {
    const json noted = json::parse(note, nullptr, /*allow_exceptions=*/false);
    if (!noted.is_object()) return;
    begun_ = noted.value("begun", json());
    run_id_ = noted.value("run_id", "");
    has_ended_ = noted.value("has_ended", true);
}

std::string MlflowServer::note() const { return json{{"begun", begun_}, {"run_id", run_id_}, {"has_ended", has_ended_}}.dump(); }

MlflowServer::Fate MlflowServer::begin(const json& record) {
    const bool is_another = begun_.is_null() || begun_["run"] != record["run"] || begun_["experiment"] != record["experiment"];
    // A process that died has not told of its end.
    if (is_another && !has_ended_ && !run_id_.empty() && update_run(run_id_, "KILLED", record["start_time"]) == Fate::Later) return Fate::Later;
    begun_ = record;
    if (is_another) run_id_.clear();
    has_ended_ = false;
    const Fate fate = find_run();
    return fate == Fate::Accepted ? update_run(run_id_, "RUNNING", 0) : fate;
}

MlflowServer::Fate MlflowServer::log(const json& record) {
    if (begun_.is_null()) return Fate::Refused;  // the spool of somebody else, or one that lost its beginning
    if (const Fate fate = find_run(); fate != Fate::Accepted) return fate;
    json request = record;
    request.erase("kind");
    request["run_id"] = run_id_;
    json body;
    const Fate fate = ask(post("runs/log-batch", request), body);
    if (fate != Fate::Refused || mlflow_error_code(body) != "RESOURCE_DOES_NOT_EXIST") return fate;
    run_id_.clear();  // a server that has lost it, or another one
    return later("it does not know the run any more; it is created again");
}

MlflowServer::Fate MlflowServer::end(const json& record) {
    if (begun_.is_null()) return Fate::Refused;
    if (const Fate fate = find_run(); fate != Fate::Accepted) return fate;
    const Fate fate = update_run(run_id_, record["status"].get<std::string>().c_str(), record["end_time"]);
    has_ended_ = has_ended_ || fate != Fate::Later;
    return fate;
}

MlflowServer::Fate MlflowServer::find_run() {
    if (!run_id_.empty()) return Fate::Accepted;
    std::string experiment;
    if (const Fate fate = find_experiment(experiment); fate != Fate::Accepted) return fate;
    const std::string run = begun_["run"];
    const char quote = run.find('\'') == std::string::npos ? '\'' : '"';
    json body;
    const Fate fate = ask(post("runs/search", {{"experiment_ids", json::array({experiment})}, {"filter", fmt::format("tags.`{}` = {}{}{}", kMlflowRunTag, quote, run, quote)}, {"max_results", 1}, {"run_view_type", "ACTIVE_ONLY"}}), body);
    if (fate == Fate::Later) return fate;
    if (fate == Fate::Refused) return later(fmt::format("it does not search its runs: {}", refusal_));  // one more would be created, although it may be there
    run_id_ = text_at(body, "/runs/0/info/run_id"_json_pointer);
    return run_id_.empty() ? create_run(experiment) : Fate::Accepted;
}

MlflowServer::Fate MlflowServer::find_experiment(std::string& experiment) {
    const std::string name = begun_["experiment"];
    const HttpAnswer found = poster_.get(fmt::format("{}experiments/get-by-name?experiment_name={}", base_, percent_encoded(name)));
    json body = json::parse(found.body, nullptr, /*allow_exceptions=*/false);
    if (found.status == 404 && mlflow_error_code(body) == "RESOURCE_DOES_NOT_EXIST") {
        const Fate fate = ask(post("experiments/create", {{"name", name}}), body);
        if (fate == Fate::Later) return fate;
        if (fate == Fate::Refused) return later(fmt::format("it does not create the experiment '{}': {}", name, refusal_));
        experiment = text_at(body, "/experiment_id"_json_pointer);
    } else {
        const Fate fate = ask(found, body);
        if (fate == Fate::Later) return fate;
        if (fate == Fate::Refused) return later(fmt::format("it does not tell of the experiment '{}': {}", name, refusal_));
        if (text_at(body, "/experiment/lifecycle_stage"_json_pointer) == "deleted") return later(fmt::format("its experiment '{}' was deleted; restore it, or give another one and another spool", name));
        experiment = text_at(body, "/experiment/experiment_id"_json_pointer);
    }
    return experiment.empty() ? later("it answers what no MLflow server does when asked for an experiment") : Fate::Accepted;
}

MlflowServer::Fate MlflowServer::create_run(const std::string& experiment) {
    json body;
    const Fate fate = ask(post("runs/create", {{"experiment_id", experiment}, {"run_name", begun_["run_name"]}, {"start_time", begun_["start_time"]}, {"tags", begun_["tags"]}}), body);
    if (fate == Fate::Accepted) run_id_ = text_at(body, "/run/info/run_id"_json_pointer);
    return run_id_.empty() && fate != Fate::Later ? later(fmt::format("it does not create a run: {}", refusal_)) : fate;
}

MlflowServer::Fate MlflowServer::update_run(const std::string& run_id, const char* status, std::int64_t end_time) {
    json request = {{"run_id", run_id}, {"status", status}}, body;
    if (end_time > 0) request["end_time"] = end_time;
    return ask(post("runs/update", request), body);
}

HttpAnswer MlflowServer::post(std::string_view call, const json& request) {
    return poster_.post(base_ + std::string(call), "application/json", request.dump(-1, ' ', false, json::error_handler_t::replace));
}

/// What MLflow refuses is left out; a wrong token, or a proxy in between that refuses, can be put right, so that waits.
MlflowServer::Fate MlflowServer::ask(const HttpAnswer& answer, json& body) {
    body = json::parse(answer.body, nullptr, /*allow_exceptions=*/false);
    if (answer.is_given_up) return Fate::Later;  // by us, at the end: what waits is told then
    if (answer.is_success()) return body.is_object() ? Fate::Accepted : later("its answer is cut off, too long or no JSON");
    if (answer.retry_after) not_before_ = std::min<std::chrono::milliseconds>(*answer.retry_after, kLongestRetryAfter);
    if (answer.status == 0) return later(answer.error);
    if (answer.is_temporary()) return later(fmt::format("it answers {}", answer.status));
    if (answer.status == 401 || answer.status == 403) return later(fmt::format("it answers {}; is the token right?", answer.status));
    if (mlflow_error_code(body).empty() && answer.status != kTooLarge) return later(fmt::format("it answers {}, and not as MLflow does; is there a proxy in between?", answer.status));
    refusal_ = fmt::format("{} {}", answer.status, told_text(text_at(body, "/message"_json_pointer)));
    return Fate::Refused;
}

MlflowServer::Fate MlflowServer::later(std::string why) {
    if (std::exchange(trouble_, why).empty()) warn(fmt::format("mlflow: {}: {}; it is tried again, and what it was to be told waits in {}", poster_.url().place, why, waits_in_));
    return Fate::Later;
}

}  // namespace torchbus
