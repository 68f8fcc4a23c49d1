#pragma once
/// Commands that look at runs: recorded ones, and those under way.

#include <filesystem>
#include <string>
#include <vector>

namespace torchbus::cli {

struct DiffOptions {
    std::filesystem::path one, other;
    double relative = 0, absolute = 0;  ///< how far apart numbers may be; 0 and 0: bit for bit
    std::vector<std::string> ignore;    ///< patterns of events, of fields, and of event.field
    bool all = false;                   ///< every difference, not the first alone
};
/// Prints where two runs differ first, and nothing where they are equal. Returns 0, 1 where they differ, 2 where one cannot be read.
/// Throws: ConfigError.
int diff_runs(const DiffOptions& options);

struct ExplainOptions {
    std::filesystem::path run;
    bool as_json = false;
};
/// Prints why a run stopped, skipped and saved.
int explain_run(const ExplainOptions& options);

struct PlotOptions {
    std::vector<std::filesystem::path> runs;
    std::vector<std::string> names;  ///< patterns; none: all
    std::string x = "step";          ///< step, epoch or seconds
    double smooth = 0;               ///< weight of what was before, 0 to 1
    bool is_log = false;
    std::filesystem::path to;        ///< ends in .svg or .html
};
int plot_runs(const PlotOptions& options);

struct WatchOptions {
    std::string run;                   ///< a recording, or an address
    std::filesystem::path token_file;  ///< empty: TORCHBUS_TOKEN, where it is set
    bool once = false;                 ///< prints what is there, and ends
};
int watch_run(const WatchOptions& options);

}  // namespace torchbus::cli
