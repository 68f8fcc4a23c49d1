#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include <torchbus/callback.hpp>

namespace torchbus {

/// 64 bits of what a tensor holds; equal on every machine for equal type, shape and bits.
/// The words w are, in order: the dtype's number in c10::ScalarType, the sizes, and the bytes, contiguous and eight at a
/// time, little-endian, the last ones filled up with zeros. h begins at 0xcbf29ce484222325; for each word
/// h = (h xor w) · 0x9e3779b97f4a7c15 modulo 2^64, then h = h xor (h >> 32). No hash against an adversary.
/// Syncs: copies the tensor to the host.
std::uint64_t fingerprint_of(const at::Tensor& tensor);

/// Where two files of fingerprints differ first, in words that name the step and what it was: samples, loss, gradients,
/// parameters, buffers or generators, in the order in which one leads to the other. Empty where they are equal.
/// Throws: DataError for a file that is missing or no such file.
std::string difference_of_fingerprints(const std::filesystem::path& one, const std::filesystem::path& other);

/// Writes down, at an interval, hashes of the sample indices, the loss, every gradient, parameter and buffer, and the
/// generators, so that a comparison of two runs names the first step and tensor in which they differ.
/// Listens: RunConfigured, TrainingRunStart, TrainStepEnd (stage Persist: after the update, with its gradients),
/// RunClosed. Reads: batch, loss, gradients, parameters.
/// A run that begins anew begins the file anew; one that goes on adds to it. Lines are written one at a time and flushed.
/// Intervals in steps stand still on a skipped update; those in attempts go on, and their lines say so.
/// Rank: every rank writes a file of its own, from rank 1 on with `.rank<n>` at its end.
/// Syncs: copies all that is hashed to the host, at the interval.
struct FingerprintOptions {
    Interval every = Interval(100, Interval::Unit::Step);  ///< > 0
    std::filesystem::path path = "fingerprint.jsonl";      ///< one JSON object a line; not used where there is a `write`
    std::function<void(const nlohmann::json&)> write = {}; ///< gets each record instead of the file
};
std::unique_ptr<Callback> make_fingerprint(FingerprintOptions options = {});

}  // namespace torchbus
