#!/usr/bin/env python3
"""Writes the dashboard's files as C++: embed.py OUTPUT FILE... Without files the build has no dashboard."""
import pathlib
import sys

TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
NAMES = {"index.html": "/", "uPlot.iife.min.js": "/uplot.js", "uPlot.min.css": "/uplot.css"}
PIECE = 12000  # compilers take no longer literals


def literal(text):
    pieces = [text[at:at + PIECE] for at in range(0, len(text), PIECE)]
    return "\n        ".join(f'R"page({piece})page"' for piece in pieces) or '""'


def main(output, *names):
    entries = []
    for name in sorted(names):
        path = pathlib.Path(name)
        text = path.read_text(encoding="utf-8")
        if ')page"' in text:
            sys.exit(f"{path}: it holds )page\", which ends a literal here; write it otherwise")
        entries.append(f'    PageFile{{"{NAMES.get(path.name, "/" + path.name)}", "{TYPES[path.suffix]}",\n        {literal(text)}}},\n')
    with open(output, "w", encoding="utf-8") as out:
        out.write('#include <algorithm>\n#include <array>\n\n#include "page.hpp"\n\nnamespace torchbus {\nnamespace {\n\n')
        out.write(f"constexpr std::array<PageFile, {len(entries)}> kPageFiles = {{\n{''.join(entries)}}};\n\n}}  // namespace\n\n")
        out.write("std::span<const PageFile> page_files() { return kPageFiles; }\n\n")
        out.write("const PageFile* page_file(std::string_view path) {\n    const auto found = std::ranges::find(kPageFiles, path, &PageFile::path);\n")
        out.write("    return found == kPageFiles.end() ? nullptr : &*found;\n}\n\n}  // namespace torchbus\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
