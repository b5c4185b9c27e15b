#!/usr/bin/env bash
# What the test suite has no time for: many seeds, every story with many seeds, every story that can be played with real
# nodes, and fuzzing. What it does and what it last found: tests/README.md.
#
#   tests/nightly.sh               about an hour on two cores
#   PERCENT=1000 tests/nightly.sh  ten times the seeds and the fuzzing
#   PERCENT=1 tests/nightly.sh     a few minutes, to try it out: few seeds, and real nodes wait no longer than 3 s
#   FIRST=1 tests/nightly.sh       seeds from 1 on; else they begin with today's date (20261124000000 ...)
#   PROFILE=dev tests/nightly.sh   without optimisation
set -uo pipefail
cd "$(dirname "$0")/.."

percent=${PERCENT:-100}
first=${FIRST:-$(date -u +%Y%m%d)000000}
profile=${PROFILE:-release}
built=$([ "$profile" = dev ] && echo debug || echo "$profile")
starling="${CARGO_TARGET_DIR:-target}/$built/starling"
wait=()
[ "$percent" -ge 100 ] || wait=(--longest-wait 3s)
failed=0

# of N: so much of it, and one at least.
of() {
    local part=$(($1 * percent / 100))
    echo $((part > 0 ? part : 1))
}

# part NAME COMMAND...: runs it, says how long it took, and remembers when it failed. Exit code 4: cannot be done here.
part() {
    local name=$1 began=$SECONDS code=0
    shift
    echo "== $name: $*"
    "$@" || code=$?
    case $code in
        0) echo "   ok after $((SECONDS - began)) s" ;;
        4) echo "   SKIPPED: it cannot be done here" ;;
        *) echo "   FAILED with exit code $code after $((SECONDS - began)) s"; failed=$((failed + 1)) ;;
    esac
}

echo "nightly: $percent %, seeds from $first"
part build cargo build --profile "$profile" --bin starling
[ "$failed" -eq 0 ] || exit 1
part "drawn stories" "$starling" sim --seed "$first" --seeds "$(of 2000)"
part "shipped stories" "$starling" sim examples/scenarios --seed "$first" --seeds "$(of 500)"
part partitions env STARLING_SEEDS="$(of 300)" cargo test --profile "$profile" --test partition

for story in examples/scenarios/*.toml; do
    part "real nodes: $(basename "$story" .toml)" "$starling" sim "$story" --real "${wait[@]}"
done

# Every reader of bytes that others wrote, fed by chance, each for so many seconds.
fuzz=(env STARLING_FUZZ_SECONDS="$(of 30)" STARLING_FUZZ_SEED="$first")
part fuzzing "${fuzz[@]}" cargo test --profile "$profile" --test decoders -- --test-threads 1

if [ "$failed" -gt 0 ]; then
    echo "nightly: $failed parts FAILED"
    exit 1
fi
echo "nightly: all parts held, after $((SECONDS / 60)) min"
