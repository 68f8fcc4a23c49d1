#pragma once
/// What fuzzing runs on bytes that anybody may have written: each reads them, and what it takes for good must be so.
/// They abort where it is not. No torch header is needed.

#include <string_view>

namespace torchbus::fuzz {

void manifest(std::string_view bytes);
void safetensors_header(std::string_view bytes);
void pickle(std::string_view bytes);
/// A client's HTTP request up to its body: who may ask for what, and what the query asks for.
void request(std::string_view bytes);
/// The first line of a client of lines.
void subscription(std::string_view bytes);
/// What a WebSocket's client sends behind its hand-shake.
void websocket_message(std::string_view bytes);
void command(std::string_view bytes);
/// A file of event_file.
void recording(std::string_view bytes);

}  // namespace torchbus::fuzz
