#pragma once
/// Runs other programs, such as gzip or curl, without a shell.

#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "file_descriptor.hpp"

namespace torchbus {

/// A program that does not start, fails or falls silent; in its own words where it has said any.
struct ProgramError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Invocation {
    std::vector<std::string> arguments;  ///< the first is the program, looked up on the PATH; no shell
    int input = -1;                      ///< a file; default: /dev/null
    std::filesystem::path folder = {};   ///< to run in
    int silence_seconds = 300;           ///< after which a program that writes nothing is killed
};

/// Hands the program's output on until it ends; kills it where the sink throws.
/// Throws: ProgramError, and what the sink throws.
void run_program(const Invocation& invocation, const ByteSink& sink);

}  // namespace torchbus
