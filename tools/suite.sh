# What tools/test and tools/test_slow share: sets up, and runs programs so that tools/summarise_tests.py can count them.
# shellcheck source=tools/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# What reads the event stream for real. Where one cannot be had, its test is skipped and says so.
install_readers() {
    install_wheels websockets==17.4 || say "without Python's websockets a test is skipped"
    install_wheels jsonschema==4.26.0 attrs==26.1.0 jsonschema-specifications==2025.9.1 referencing==0.37.0 rpds-py==2026.9.1 typing-extensions==4.16.0 ||
        say "without Python's jsonschema a test is skipped"
    install_environment build/readers tensorboard tensorboard==2.21.0
    install_environment build/mlflow-venv mlflow mlflow==3.17.2
    local prometheus=$PWD/build/readers/prometheus
    if [[ ! -x $prometheus/usr/bin/prometheus ]] || ! has_program chromium; then
        has_program apt-get || { say "without Prometheus or Chromium their tests are skipped"; return 0; }
        say "fetching Prometheus and Chromium"
        mkdir -p "$prometheus"
        if ((EUID == 0)); then
            apt-get update -qq </dev/null || true
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium </dev/null >/dev/null || true
        fi
        (cd "$prometheus" && apt-get download -qq prometheus && dpkg -x prometheus_*.deb .) </dev/null >/dev/null 2>&1 || say "without Prometheus its test is skipped"
    fi
}

install_environment() {  # install_environment FOLDER PROGRAM PACKAGE: a virtual environment of its own, for what wants many packages
    local folder=$1 program=$2 package=$3
    [[ -x $folder/bin/$program ]] && return 0
    say "installing $package into $folder"
    { [[ -x $folder/bin/python ]] || python3 -m venv "$folder"; } && "$folder/bin/python" -m pip --disable-pip-version-check --quiet install "$package" ||
        say "without $package its test is skipped"
}

install_readers

results=$PWD/build/test-results
limit=${TORCHBUS_TEST_TIMEOUT:-1200}  # seconds for a test program or script
launcher=()                           # what test programs run under

record() {  # record NAME COMMAND...: leaves NAME.log and NAME.rc
    local name=$1 status=0
    shift
    say "running $name, $((SECONDS / 60)) min from the start"
    timeout --kill-after=10 "$limit" "$@" >"$results/$name.log" 2>&1 </dev/null || status=$?
    echo "$status" >"$results/$name.rc"
}

unit_tests() {  # unit_tests NAME PROGRAM [test cases]
    local name=$1 program=$2
    shift 2
    : >"$results/$name.xml"  # stays empty where the program does not get as far as reporting
    record "$name" "${launcher[@]}" "$program" "$@" --reporter xml --out "$results/$name.xml"
}

# Unoptimized, with line numbers only and many files in one: these builds are read by the sanitizer alone, and are made
# in a fifth of the time. That each file compiles alone is seen in build/release.
plain=(--unity=on -Dunity_size=12 --buildtype=plain -Doptimization=0 -Dcpp_args=-g1 -Db_lundef=false -Dexamples=false -Dbenchmarks=disabled)

asan_tests() {  # asan_tests PROGRAM: under ASan and UBSan
    local program=$1
    # The one thing that is suppressed: LibTorch is not instrumented, and containers that it filled look overflown to ASan.
    export ASAN_OPTIONS="detect_container_overflow=0:detect_stack_use_after_return=1"
    export UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1"
    configure build/asan "${plain[@]}" -Db_sanitize=address,undefined
    build build/asan "test/$program"
    unit_tests asan "build/asan/test/$program"
}

tsan_tests() {  # tsan_tests PROGRAM [test cases]: under TSan
    local program=$1
    shift
    configure build/tsan "${plain[@]}" -Db_sanitize=thread
    build build/tsan "test/$program"
    # TSan knows neither OpenMP's threads nor the wide address randomisation of newer kernels.
    export OMP_NUM_THREADS=1
    if setarch --addr-no-randomize true 2>/dev/null; then launcher=(setarch --addr-no-randomize); fi
    unit_tests tsan "build/tsan/test/$program" "$@"
    launcher=()
}

fresh_results() {
    rm -rf "$results"
    mkdir -p "$results"
}

# Whatever ends a suite before it is counted: a build that fails.
trap 'status=$?; ((status == 0)) || printf "\nthe tests did not get as far as being counted\n0 passed, 1 failed\n"' EXIT
