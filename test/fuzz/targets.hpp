#pragma once
/// What fuzzing runs on bytes that anybody may have written: each reads them, and what it takes for good must be so.
/// They abort where it is not. No torch header is needed.

#include <string_view>

namespace torchbus::fuzz {

void manifest(std::string_view bytes);
void safetensors_header(std::string_view bytes);
void pickle(std::string_view bytes);

}  // namespace torchbus::fuzz
