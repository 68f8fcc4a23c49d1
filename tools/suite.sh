# What tools/test and tools/test_slow share: sets up, and runs programs so that tools/summarise_tests.py can count them.
# shellcheck source=tools/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

results=$PWD/build/test-results
limit=${TORCHBUS_TEST_TIMEOUT:-1200}  # seconds for a test program or script
launcher=()                           # what test programs run under

record() {  # record NAME COMMAND...: leaves NAME.log and NAME.rc
    local name=$1 status=0
    shift
    say "running $name"
    timeout --kill-after=10 "$limit" "$@" >"$results/$name.log" 2>&1 </dev/null || status=$?
    echo "$status" >"$results/$name.rc"
}

unit_tests() {  # unit_tests NAME PROGRAM [test cases]
    local name=$1 program=$2
    shift 2
    : >"$results/$name.xml"  # stays empty where the program does not get as far as reporting
    record "$name" "${launcher[@]}" "$program" "$@" --reporter xml --out "$results/$name.xml"
}

# Unoptimized and with line numbers only: these builds are read by the sanitizer, and made in half the time.
plain=(--buildtype=plain -Doptimization=0 -Dcpp_args=-g1 -Db_lundef=false -Dexamples=false -Dbenchmarks=disabled)

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
