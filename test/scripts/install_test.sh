#!/usr/bin/env bash
# Installs the build into an empty folder, then builds and runs two projects that know torchbus by pkg-config alone:
# one with meson, one with make; then a plug-in, and the callback of the README, as their users build them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
build=${TORCHBUS_BUILD:-build/release}
export PATH="$PWD/build/venv/bin:$PATH"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
    printf 'install_test: %s\n' "$*" >&2
    exit 1
}

meson install -C "$build" --no-rebuild --quiet --destdir "$work/root"
pc=$(find "$work/root" -name torchbus.pc)
[[ -f $pc ]] || fail "no torchbus.pc was installed"
grep -q "^prefix=\${pcfiledir}" "$pc" ||
    fail "torchbus.pc names a fixed prefix; run: meson configure $build -Dpkgconfig.relocatable=true"
PKG_CONFIG_PATH=$(dirname "$pc")${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}
export PKG_CONFIG_PATH

check() {  # check PROGRAM: it prints what test/install/main.cpp says
    local printed
    printed=$("$1") || fail "$1 exited with $?"
    grep -qx 'outside heard 42' <<<"$printed" || fail "$1 printed: $printed"
    grep -q '^outside caught: .*model' <<<"$printed" || fail "$1 printed: $printed"
}

cp -r test/install/meson_project test/install/make_project "$work"
cp test/install/main.cpp "$work/meson_project"
cp test/install/main.cpp "$work/make_project"

meson setup "$work/meson_project/build" "$work/meson_project"
ninja -C "$work/meson_project/build"
check "$work/meson_project/build/outside"

make -C "$work/make_project"
check "$work/make_project/outside"

program=$(find "$work/root" -type f -name torchbus -perm -u+x)
[[ -n $program ]] || fail "the torchbus program was not installed"
"$program" callbacks | grep gradient_clipping >/dev/null ||
    fail "the installed 'torchbus callbacks' does not list gradient_clipping"

# The template of a plug-in, built as a user builds it.
cp -r examples/13_plugin "$work"
meson setup "$work/13_plugin/build" "$work/13_plugin"
ninja -C "$work/13_plugin/build"
"$program" callbacks stop_at_loss --plugin "$work/13_plugin/build/my_plugin.so" | grep -q '^listens *training_run_epoch_end$' ||
    fail "'torchbus callbacks' does not tell of the plug-in's callback"
said=$("$program" train "$work/13_plugin/run.json" 2>&1) || fail "training with the plug-in exited with $?: $said"
grep -q '^stopped after .* by stop_at_loss: the training loss is below 0.1' <<<"$said" || fail "the plug-in's callback did not stop the run: $said"

library=$(dirname "$(find "$work/root" -name 'libtorchbus.so.0' | head -n 1)")

# The README's first program, pasted as it stands and built by the command beside it.
mkdir "$work/program"
python3 - README.md "$work/program" <<'EOF'
import re, sys
from pathlib import Path
text, folder = Path(sys.argv[1]).read_text(), Path(sys.argv[2])
text = text[text.index("## A program"):text.index("## The loop")]
(folder / "program.cpp").write_text(re.search(r"```cpp\n(.*?)```", text, re.S)[1])
(folder / "build.sh").write_text("set -e\n" + re.search(r"^c\+\+ .*", text, re.M)[0] + "\n")
EOF
(cd "$work/program" && bash build.sh) || fail "the README's program does not build as it is pasted"
said=$(LD_LIBRARY_PATH=$library TORCHBUS_DATA=$work/nothing "$work/program/program" 2>&1) && fail "the README's program trained without data"
grep -q 'torchbus data fetch mnist' <<<"$said" || fail "the README's program does not say what to do where MNIST is missing: $said"

# The README's own callback, pasted as it stands.
mkdir "$work/readme"
python3 - README.md "$work/readme" <<'EOF'
import re, sys
from pathlib import Path
text, folder = Path(sys.argv[1]).read_text(), Path(sys.argv[2])
text = text[text.index("## Write your own"):text.index("Filters belong to the connection")]
header, source, registration, test = re.findall(r"```cpp\n(.*?)```", text, re.S)
(folder / "good_enough.hpp").write_text(header)
(folder / "good_enough.cpp").write_text(source + registration)
includes = ["torch/torch.h", "torchbus/torchbus.hpp", "catch2/catch.hpp"]
(folder / "good_enough_test.cpp").write_text("".join(f"#include <{name}>\n" for name in includes) + '#include "good_enough.hpp"\n' + test)
(folder / "run.json").write_text(re.search(r"```json\n(.*?)```", text, re.S)[1])
commands = re.search(r"```sh\n(.*?)```", text, re.S)[1].splitlines()
(folder / "build.sh").write_text("set -e\n" + "\n".join(line for line in commands if line.startswith("c++ ")) + "\n")
EOF
[[ -e /usr/include/catch2/catch.hpp ]] || sed -i '/good_enough_test.cpp/d' "$work/readme/build.sh"  # Catch2 3 has no catch.hpp
(cd "$work/readme" && bash build.sh) || fail "the README's callback does not build as it is pasted"
if [[ -x $work/readme/good_enough_test ]]; then
    LD_LIBRARY_PATH=$library "$work/readme/good_enough_test" || fail "the README's test fails"
fi
said=$(cd "$work/readme" && "$program" train run.json 2>&1) || fail "training with the README's callback exited with $?: $said"
grep -q '^stopped after .* by good_enough: the loss is low enough' <<<"$said" || fail "the README's callback did not stop the run: $said"
