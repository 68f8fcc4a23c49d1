#pragma once
/// The files of the dashboard, which lie in the program. A build without uPlot has none.

#include <span>
#include <string_view>

namespace torchbus {

struct PageFile {
    std::string_view path;  ///< "/", "/dashboard.js"
    std::string_view type;  ///< of its content
    std::string_view content;
};

std::span<const PageFile> page_files();
/// Nothing where there is no such file.
const PageFile* page_file(std::string_view path);

}  // namespace torchbus
