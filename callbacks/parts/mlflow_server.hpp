#pragma once
/// Takes records from a spool to an MLflow server, over its REST API 2.0.

#include <functional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include <torchbus/error.hpp>
#include <torchbus/stream/courier.hpp>
#include <torchbus/stream/http_poster.hpp>
#include <torchbus/stream/spool.hpp>

namespace torchbus {

/// Each record may be told twice, and is there once: MLflow keeps one of equal points, and a run is looked for by the tag torchbus.run
/// before it is created. Thread: one, but cancel().
class MlflowServer {
public:
    /// `waits_in`: where records are while the server takes none, for warnings.
    MlflowServer(HttpPosterOptions options, std::string waits_in);
    /// Where the spool throws a DataError it is told, and goes on: a place that cannot be put down means that records may be sent once more.
    DeliveryAttempt deliver(Spool& spool);
    void cancel() { poster_.cancel(); }
    /// Warns of how many records were refused, where it was more than the first, which is told at once. Requires: nobody delivers any more.
    void tell_sums() const;

private:
    enum class Fate { Accepted, Refused, Later };
    void warn_of_disk(const DataError& failure, const char* what_then);
    void leave_out(const std::string& kind, std::size_t count);
    Fate begin(const nlohmann::json& record);
    Fate log(const nlohmann::json& record);
    Fate end(const nlohmann::json& record);
    /// The experiment of the run that is noted, and the run in it, which are made where they are missing.
    Fate find_run();
    Fate find_experiment(std::string& experiment);
    Fate create_run(const std::string& experiment);
    Fate update_run(const std::string& run_id, const char* status, std::int64_t end_time);
    Fate ask(const HttpAnswer& answer, nlohmann::json& body);
    HttpAnswer post(std::string_view call, const nlohmann::json& request);
    Fate later(std::string why);
    void read_note(const std::string& note);
    std::string note() const;

    HttpPoster poster_;
    std::string base_, waits_in_;
    std::string trouble_;    ///< why it could not be told the last time; empty: it could
    std::string refusal_;    ///< what it said last against something
    std::chrono::milliseconds not_before_{0};
    std::size_t left_out_ = 0, first_left_out_ = 0;  ///< records that were refused; the first of them are told at once
    bool is_disk_in_trouble_ = false;
    bool has_note_ = false;
    nlohmann::json begun_;   ///< the record that began the run which later records are of; null: none
    std::string run_id_;     ///< of MLflow; empty: it is to be found
    bool has_ended_ = true;
};

}  // namespace torchbus
