#pragma once
/// From what Beast has parsed to what judge() looks at.

#include <boost/beast/http.hpp>

#include "access.hpp"

namespace torchbus {

using HttpHead = boost::beast::http::header<true, boost::beast::http::fields>;

/// Views into the request.
RequestHead head_of(const HttpHead& request);

}  // namespace torchbus
