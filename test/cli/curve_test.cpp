#include <algorithm>
#include <limits>
#include <sstream>

#include "../../src/cli/curve.hpp"
#include "support/catch.hpp"

using namespace torchbus::cli;

namespace {

std::vector<std::string> lines_of(const std::string& text) {
    std::vector<std::string> lines;
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) lines.push_back(line);
    return lines;
}

/// Characters, not bytes.
std::size_t width_of(const std::string& line) {
    return static_cast<std::size_t>(std::ranges::count_if(line, [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

std::vector<double> ramp(std::size_t count) {
    std::vector<double> values;
    for (std::size_t i = 0; i < count; ++i) values.push_back(static_cast<double>(i) / static_cast<double>(count - 1));
    return values;
}

/// Every tag is closed in its order, every & is an entity, and there is one root.
bool is_well_formed(const std::string& xml) {
    std::vector<std::string> open;
    int roots = 0;
    for (std::size_t i = 0; i < xml.size(); ++i) {
        if (xml[i] == '&' && xml.substr(i, 5) != "&amp;" && xml.substr(i, 4) != "&lt;" && xml.substr(i, 4) != "&gt;" && xml.substr(i, 6) != "&quot;") return false;
        if (xml[i] != '<') continue;
        const std::size_t end = xml.find('>', i);
        const std::string tag = xml.substr(i + 1, end - i - 1);
        i = end;
        if (end == std::string::npos || std::ranges::count(tag, '"') % 2 || tag.find('<') != std::string::npos) return false;
        if (tag.starts_with('?') || tag.ends_with('/')) continue;
        if (!tag.starts_with('/')) {
            if (open.empty()) ++roots;
            open.push_back(tag.substr(0, tag.find(' ')));
            continue;
        }
        if (open.empty() || open.back() != tag.substr(1)) return false;
        open.pop_back();
    }
    return open.empty() && roots == 1;
}

}  // namespace

TEST_CASE("a curve fits into 80 columns, with its axes labelled", "[cli][curve]") {
    const auto lines = lines_of(draw_curve({"learning_rate", ramp(1000)}));
    REQUIRE(lines.size() == 12);  // name, nine rows, axis, its labels
    for (const std::string& line : lines) CHECK(width_of(line) <= 80);
    CHECK(lines[0] == "learning_rate: first 0, largest 1, last 1");
    CHECK(lines[1].starts_with("        1 ┤"));
    CHECK(lines[9].starts_with("        0 ┤"));
    CHECK(lines[11].starts_with("           0"));
    CHECK(lines[11].ends_with("999"));
    CHECK(lines[11].find("step (updates made before)") != std::string::npos);
    CHECK(lines[5].starts_with("      0.5 ┤"));
}

TEST_CASE("a curve goes through its values", "[cli][curve]") {
    // Four rows of four dots; low on the left half and high on the right, joined in the middle.
    const auto lines = lines_of(draw_curve({"x", {0, 0, 1, 1}}, 51, 4));
    const std::string left = "⣀", right = "⠉";
    CHECK(lines[1].find(right) != std::string::npos);
    CHECK(lines[4].find(left) != std::string::npos);
    CHECK(lines[4].find(right) == std::string::npos);
    CHECK(lines[2].find_first_of("⡇⢸⣸⡏") != std::string::npos);
}

TEST_CASE("curves without updates, of one update, constant or not finite can be drawn", "[cli][curve]") {
    CHECK(lines_of(draw_curve({"x", {0.9 * 0.3, 0.3, 0.0}}))[9].starts_with("        0 ┤"));  // not 5.55e-17
    CHECK(draw_curve({"x", {}}) == "x: there are no updates\n");
    for (const std::vector<double>& values : {std::vector<double>{0.1}, {0, 0, 0}, {-1, -2}, {1, std::numeric_limits<double>::quiet_NaN(), 2},
                                              {std::numeric_limits<double>::infinity()}}) {
        CHECK(lines_of(draw_curve({"x", values}, 40, 3)).size() == 6);
        CHECK(is_well_formed(curves_svg({{"x", values}})));
    }
    CHECK(is_well_formed(curves_svg({})));
}

TEST_CASE("the SVG has a panel a curve, labelled axes and escaped names", "[cli][curve]") {
    const std::string svg = curves_svg({{"learning_rate", ramp(50)}, {"a < b & \"c\"", ramp(100'000)}});
    CHECK(is_well_formed(svg));
    CHECK(svg.find("a &lt; b &amp; &quot;c&quot;") != std::string::npos);
    CHECK(svg.find("step (updates made before)") != std::string::npos);
    CHECK(svg.find(">49</text>") != std::string::npos);
    CHECK(svg.find(">99999</text>") != std::string::npos);
    CHECK(svg.size() < 100'000);  // a long run has no more points than can be told apart
    CHECK_FALSE(is_well_formed("<a><b></a></b>"));
    CHECK_FALSE(is_well_formed("<a>&</a>"));
}
