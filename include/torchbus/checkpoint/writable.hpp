#pragma once
/// Whether something can be written, found out before a run that would lose it.

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include <torchbus/declaration.hpp>

namespace torchbus {

enum class Probe : std::uint8_t {
    Create,        ///< the folder is there afterwards
    LeaveNoTrace,  ///< what was made to find out is removed again
};

/// What the system says against writing a file in a folder, which need not be there yet; empty where nothing does.
std::string against_writing_in(const std::filesystem::path& folder, Probe probe = Probe::LeaveNoTrace);
/// The same of one file, which stays as it is, in a folder that is there.
std::string against_writing(const std::filesystem::path& file);

/// For Callback::check: an error where `owner` could not write to the folder, or the file, that its option names.
std::vector<Finding> check_folder(std::string_view owner, std::string_view option, const std::filesystem::path& folder);
std::vector<Finding> check_file(std::string_view owner, std::string_view option, const std::filesystem::path& file);

}  // namespace torchbus
