#pragma once
/// The numbers of a run as curves, in bounded memory, and as many points of them as somebody can look at.

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include <torchbus/stream/numbers.hpp>

namespace torchbus {

enum class CurveAxis : std::uint8_t { Step, Samples, Seconds, Epoch };
/// Nothing where there is no such axis.
std::optional<CurveAxis> curve_axis(std::string_view name);

struct CurvePoint {
    double step = 0, samples = 0, y = 0;
    float seconds = 0, epochs = 0;  ///< since the run began
    double x(CurveAxis axis) const;
};

/// What is asked of a curve. Both limits are within.
struct CurveRange {
    CurveAxis axis = CurveAxis::Step;
    std::optional<double> from = {}, to = {};
    std::size_t points = 800;
};

/// A part of a curve. Where it has more points than were asked for, those that are the least and the most of each bucket, and one
/// that is no number, where there is one.
struct CurvePart {
    std::vector<CurvePoint> points;
    std::int64_t count = 0;  ///< of points that were added and lie in the range
};

/// Updates of an epoch, as far as a plan tells.
std::optional<double> steps_of_epoch(const nlohmann::json& plan);

class Curves {
public:
    /// Above so many points the longest curve is folded.
    explicit Curves(std::size_t limit_points) : limit_points_(limit_points) {}
    /// Updates of an epoch, for what lies within one.
    void set_epoch_length(double steps) { steps_per_epoch_ = steps; }
    void add(const StreamNumbers& numbers);
    /// Forgets what was told of steps after this one.
    void go_back_to(double step);
    /// Names that there was no place for: no more than 4096 are kept.
    std::int64_t names_left_out() const { return static_cast<std::int64_t>(left_out_.size()); }
    std::vector<std::string> names() const;
    std::optional<CurvePart> part(std::string_view name, const CurveRange& range) const;
    std::size_t point_count() const { return point_count_; }
    /// Makes the longest curve half as long: of four points that follow each other two stay, the least and the most. Returns whether
    /// that made it shorter.
    bool fold();
    double started() const { return started_; }
    double newest() const { return newest_; }

private:
    struct Curve {
        std::vector<CurvePoint> points;
        double added = 0;  ///< points, ever
    };
    std::map<std::string, Curve, std::less<>> curves_;
    std::set<std::string> left_out_;  ///< up to as many again
    std::size_t limit_points_, point_count_ = 0;
    double steps_per_epoch_ = 0, started_ = 0, newest_ = 0;
};

}  // namespace torchbus
