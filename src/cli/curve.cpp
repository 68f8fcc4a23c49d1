#include "curve.hpp"

#include <algorithm>
#include <cmath>
#include <string_view>

#include <fmt/format.h>

#include "shown_text.hpp"

namespace torchbus::cli {
namespace {

constexpr std::string_view kAxisName = "step (updates made before)";

struct Span {
    double low, high;
    /// 0 at the bottom, 1 at the top.
    double height(double value) const { return std::clamp((value - low) / (high - low), 0.0, 1.0); }
    /// The value that lies so far below the top; the bottom itself without rounding.
    double below_top(double share) const { return share >= 1 ? low : high - (high - low) * share; }
};

/// From zero where nothing is below it. A constant gets room around it, and what is not finite is left out.
Span span_of(const std::vector<double>& values) {
    double low = 0, high = 0;
    for (const double value : values)
        if (std::isfinite(value)) low = std::min(low, value), high = std::max(high, value);
    return high > low ? Span{low, high} : Span{low, low + 1};
}

/// A canvas of 2 × 4 dots a character. U+2800 and one bit a dot.
class Dots {
public:
    Dots(int columns, int rows) : columns_(columns), rows_(rows), cells_(static_cast<std::size_t>(columns * rows)) {}
    int width() const { return columns_ * 2; }
    int height() const { return rows_ * 4; }
    void set(int x, int y) {
        constexpr unsigned char kBits[4][2] = {{0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}};
        cells_[static_cast<std::size_t>((y / 4) * columns_ + x / 2)] |= kBits[y % 4][x % 2];
    }
    std::string row(int row) const {
        std::string text;
        for (int column = 0; column < columns_; ++column) {
            const unsigned char cell = cells_[static_cast<std::size_t>(row * columns_ + column)];
            text += "\xE2";
            text += static_cast<char>(0xA0 + (cell >> 6));
            text += static_cast<char>(0x80 + (cell & 0x3F));
        }
        return text;
    }

private:
    int columns_, rows_;
    std::vector<unsigned char> cells_;
};

/// Draws each column's values, joined with those of the column before.
void plot(Dots& dots, const std::vector<double>& values, Span span) {
    const auto count = static_cast<double>(values.size());
    const auto y_of = [&](double value) { return static_cast<int>(std::lround((1 - span.height(value)) * (dots.height() - 1))); };
    int before = -1;
    for (int x = 0; x < dots.width(); ++x) {
        const auto first = static_cast<std::size_t>(count * x / dots.width());
        const auto last = std::max(first + 1, static_cast<std::size_t>(count * (x + 1) / dots.width()));
        int top = dots.height(), bottom = -1, y = before;
        for (std::size_t i = first; i < std::min(last, values.size()); ++i) {
            if (!std::isfinite(values[i])) continue;
            y = y_of(values[i]);
            top = std::min({top, y, before < 0 ? y : before});
            bottom = std::max({bottom, y, before < 0 ? y : before});
            before = y;
        }
        for (int each = top; each <= bottom; ++each) dots.set(x, each);
    }
}

/// ": first 0.1, largest 0.1, last 0.001"
std::string summary_of(const std::vector<double>& values) {
    if (values.empty()) return "";
    return fmt::format(": first {:.4g}, largest {:.4g}, last {:.4g}", values.front(), std::ranges::max(values), values.back());
}

}  // namespace

std::string draw_curve(const Curve& curve, int columns, int rows) {
    constexpr int kLabel = 10;
    if (curve.values.empty()) return curve.name + ": there are no updates\n";
    const Span span = span_of(curve.values);
    Dots dots(columns - kLabel - 1, rows);
    plot(dots, curve.values, span);
    std::string text = curve.name + summary_of(curve.values) + "\n";
    for (int row = 0; row < rows; ++row) {
        const bool labelled = row == 0 || row == rows - 1 || row == (rows - 1) / 2;
        const double at = span.below_top(static_cast<double>(row) / (rows - 1));
        text += labelled ? fmt::format("{:>{}.3g} ┤{}\n", at, kLabel - 1, dots.row(row)) : fmt::format("{:>{}} │{}\n", "", kLabel - 1, dots.row(row));
    }
    const int width = columns - kLabel - 1;
    std::string axis;
    for (int i = 0; i < width; ++i) axis += "─";
    const std::string last = fmt::format("{}", curve.values.size() - 1);
    std::string below = fmt::format("0{:>{}}", last, width - 1);
    const int place = (width - static_cast<int>(kAxisName.size())) / 2;
    if (place > 1 && place > static_cast<int>(last.size())) below.replace(static_cast<std::size_t>(place), kAxisName.size(), kAxisName);
    return text + fmt::format("{:>{}} └{}\n{:>{}}{}\n", "", kLabel - 1, axis, "", kLabel + 1, below);
}

std::string curves_svg(const std::vector<Curve>& curves) {
    constexpr double kWidth = 720, kPanel = 300, kLeft = 80, kRight = 20, kTop = 40, kBottom = 50;
    constexpr double kInnerWidth = kWidth - kLeft - kRight, kInnerHeight = kPanel - kTop - kBottom;
    std::string svg = fmt::format("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" "
                                  "viewBox=\"0 0 {0} {1}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
                                  kWidth, kPanel * static_cast<double>(std::max<std::size_t>(curves.size(), 1)));
    for (std::size_t panel = 0; panel < curves.size(); ++panel) {
        const auto& [name, values] = curves[panel];
        const Span span = span_of(values);
        const double last = std::max(static_cast<double>(values.size()) - 1, 1.0);
        svg += fmt::format("<g transform=\"translate({}, {})\">\n", kLeft, kPanel * static_cast<double>(panel) + kTop);
        svg += fmt::format("<text x=\"0\" y=\"-14\" font-weight=\"bold\">{}</text>\n", xml_text(name));
        for (int tick = 0; tick <= 4; ++tick) {
            const double y = kInnerHeight * tick / 4, x = kInnerWidth * tick / 4;
            svg += fmt::format("<line x1=\"0\" y1=\"{0}\" x2=\"{1}\" y2=\"{0}\" stroke=\"#ddd\"/>\n", y, kInnerWidth);
            svg += fmt::format("<text x=\"-8\" y=\"{}\" text-anchor=\"end\">{:.3g}</text>\n", y + 4, span.below_top(tick / 4.0));
            svg += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{:.0f}</text>\n", x, kInnerHeight + 18, last * tick / 4);
        }
        svg += fmt::format("<path d=\"M0 0V{0}H{1}\" fill=\"none\" stroke=\"black\"/>\n", kInnerHeight, kInnerWidth);
        svg += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n", kInnerWidth / 2, kInnerHeight + 38, kAxisName);
        svg += "<polyline fill=\"none\" stroke=\"#1f5fa8\" stroke-width=\"1.5\" points=\"";
        const std::size_t stride = std::max<std::size_t>(values.size() / 2000, 1);  // as many points as can be told apart
        for (std::size_t i = 0; i < values.size(); i += stride)
            if (std::isfinite(values[i]))
                svg += fmt::format("{:.2f},{:.2f} ", kInnerWidth * static_cast<double>(i) / last, kInnerHeight * (1 - span.height(values[i])));
        svg += "\"/>\n</g>\n";
    }
    return svg + "</svg>\n";
}

}  // namespace torchbus::cli
