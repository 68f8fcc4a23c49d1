#pragma once
/// The data that run files know by name.

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include <torchbus/data/dataset.hpp>
#include <torchbus/registry.hpp>

namespace torchbus {

struct DataSplits {
    std::shared_ptr<const Dataset> train;
    std::shared_ptr<const Dataset> eval;
};

/// Loads the data, once all options are read. Throws: DataError.
using DataMaker = std::function<DataSplits()>;

struct DataEntry {
    std::string_view kind;
    std::string_view summary;
    DataMaker (*from_json)(OptionReader& options);
};

/// The library's data and those of plug-ins. Thread: any.
Registry<DataEntry>& data_table();

/// Reads `{"kind": "mnist", …}`, loads it, and says in `about` what it is: "mnist: 60000 training and …".
/// Throws: ConfigError with the JSON path; DataError.
DataSplits data_from_json(const nlohmann::json& json, const std::string& where, std::string* about = nullptr);

}  // namespace torchbus
