#pragma once
/// The runs that a dashboard shows side by side: the one under way, those before it in this process, other ranks', and recorded ones.

#include <cstddef>
#include <list>
#include <string>
#include <string_view>
#include <vector>

#include "curves.hpp"
#include "run_picture.hpp"

namespace torchbus {

/// One rank of one run.
struct ShownRun {
    ShownRun(std::string its_label, std::size_t limit_points) : label(std::move(its_label)), curves(limit_points) {}
    std::string label;  ///< where it was read from; empty: from this process
    bool is_live = false;
    RunPicture picture;
    Curves curves;
};

/// What a page asks for. Shapes: `runs` as "ID:RANK"; none: all.
struct CurvesQuery {
    std::vector<std::string> names, runs;
    std::string axis = "step";
    CurveRange range;
};
/// names=train.loss,eval.loss&x=step&points=800&from=0&to=100&runs=ID:0
/// Throws: ConfigError.
CurvesQuery curves_query(std::string_view query);

/// Thread: one.
class ShownRuns {
public:
    /// `limit_points` are kept of the numbers of all runs together.
    explicit ShownRuns(std::size_t limit_points);
    /// A run of this process begins. Those before it are kept, up to a number of them.
    void begin(const std::string& run, int rank);
    /// Messages of the run that began last.
    void add(std::string_view lines);
    /// Messages of a run that lies elsewhere, as they come.
    void add_recorded(const std::string& label, const std::string& run, int rank, std::string_view lines);

    /// The run that began last; idle, where none has.
    const RunPicture& live() const { return live_->picture; }
    const ShownRun* find(std::string_view run, int rank) const;
    /// JSON: {"runs":[…]}, the live one first; `more` stands beside it.
    std::string list(std::string_view more) const;
    /// JSON: {"x":"step","curves":[…],"left_out":0}: curves that an answer had no place for are counted.
    std::string curves(const CurvesQuery& query) const;

private:
    void take(ShownRun& shown, std::string_view lines);
    /// Gives up an earlier run of this process; false where there is none.
    bool make_place();

    std::size_t limit_points_;
    std::list<ShownRun> runs_;
    ShownRun* live_;
    bool has_warned_ = false;
};

}  // namespace torchbus
