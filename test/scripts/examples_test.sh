#!/usr/bin/env bash
# Every example runs, and its last line is the one that its first comment promises.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${TORCHBUS_BUILD:-build/release}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=0

check() {  # check NAME PATTERN COMMAND...: the last line of the output must match
    local name=$1 pattern=$2 last
    shift 2
    if ! "$@" >"$scratch/out" 2>"$scratch/err"; then
        echo "$name failed:"
        cat "$scratch/out" "$scratch/err"
        failed=1
        return
    fi
    last=$(tail -n 1 "$scratch/out")
    if ! grep -qE -- "$pattern" <<<"$last"; then
        echo "$name: the last line is '$last', expected it to match '$pattern'"
        failed=1
    fi
}

check 01_hello_bus '^greeter spent its time in 4 calls$' "$build/examples/01_hello_bus"
check 02_custom_callback '^stopped by good_enough: the training loss is below 0.1$' "$build/examples/02_custom_callback"
check 03_custom_event '^\{"worst_batch":\{"loss":[0-9.e-]+,"step":[0-9]+\}\}$' "$build/examples/03_custom_event"
check 06_metrics '^accuracy of the loop minus that of the callback: 0$' "$build/examples/06_metrics"
check 07_mixup_ema "^best eval.ema.loss 0[0-9.]*, kept in $scratch/best/best.safetensors$" "$build/examples/07_mixup_ema" "$scratch/best"
check 08_transfer_learning '^accuracy 0[.0-9]* with the backbone frozen, (0\.[89][0-9]*|1) after it was unfrozen$' "$build/examples/08_transfer_learning"
check 09_timm '^accuracy (0\.[89][0-9]*|1) of the averaged weights, (0\.[89][0-9]*|1) of the trained ones$' "$build/examples/09_timm"
check 10_bert '^accuracy (0\.9[0-9]*|1); [.0-9]+ % of all positions were padding$' "$build/examples/10_bert"
check 11_gan '^mean radius of the generated points [12][.0-9]* \(the data.s is 2\)$' "$build/examples/11_gan"
check 12_own_loop '^stopped after [0-9]+ steps by the main loop: enough seen$' "$build/examples/12_own_loop"

# Each example is built and has its check here.
for source in examples/[0-9]*.cpp; do
    name=$(basename "$source" .cpp)
    [[ -x $build/examples/$name ]] || { echo "$name is not built"; failed=1; }
    grep -q "check $name" "$0" || { echo "$name has no check in $0"; failed=1; }
done

# Those on MNIST need its files; a short run does here.
if ! "$build/src/cli/torchbus" data fetch mnist >"$scratch/fetch" 2>&1; then
    ((failed == 0)) || exit 1
    cat "$scratch/fetch"
    echo "the MNIST files could not be fetched: examples 04, 05 and 14 to 17 were not run"
    exit 77
fi
export TORCHBUS_LIMIT_BATCHES=200
check 04_mnist '^test accuracy 9[0-9.]+ %$' "$build/examples/04_mnist"
mnist_from_run_file() {
    "$build/src/cli/torchbus" train examples/05_mnist.json --set "output=$scratch/mnist" --set "callbacks[4].folder=$scratch/mnist/checkpoints" --set train.epochs=1 &&
        "$build/src/cli/torchbus" evaluate examples/05_mnist.json --weights "$scratch/mnist/model.safetensors" | tr -d '\n '
}
check 05_mnist '"eval.accuracy":0.9[0-9]+' mnist_from_run_file
data_parallel() {
    OMP_NUM_THREADS=1 "$build/src/cli/torchbus" launch --nproc-per-node 2 -- "$build/src/cli/torchbus" train examples/14_data_parallel.json --set "output=$scratch/parallel" \
        --set "callbacks[5].folder=$scratch/parallel/checkpoints" --set train.epochs=1 &&
        "$build/src/cli/torchbus" evaluate examples/05_mnist.json --weights "$scratch/parallel/model.safetensors" | tr -d '\n '
}
check 14_data_parallel '"eval.accuracy":0.9[0-9]+' data_parallel
on_two_ranks() {  # on_two_ranks NAME LAUNCH-OPTION... -- TRAIN-OPTION...
    local name=$1 launch=()
    shift
    while [[ $1 != -- ]]; do launch+=("$1"); shift; done
    shift
    OMP_NUM_THREADS=1 "$build/src/cli/torchbus" launch "${launch[@]}" -- "$build/src/cli/torchbus" train "examples/$name.json" --set "output=$scratch/$name" --set train.epochs=1 "$@" &&
        "$build/src/cli/torchbus" evaluate examples/05_mnist.json --weights "$scratch/$name/model.safetensors" | tr -d '\n '
}
check 15_zero '"eval.accuracy":0.9[0-9]+' on_two_ranks 15_zero --nproc-per-node 2 -- --set "callbacks[5].folder=$scratch/zero/checkpoints"
check 16_accelerate '"eval.accuracy":0.9[0-9]+' on_two_ranks 16_accelerate --config examples/configurations/accelerate.yaml --
check 17_deepspeed '"eval.accuracy":0.[89][0-9]+' on_two_ranks 17_deepspeed --nproc-per-node 2 --
exit "$failed"
