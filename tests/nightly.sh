#!/usr/bin/env bash
# What the test suite has no time for: many seeds, every story with many seeds, every story that can be played with real
# nodes, and fuzzing. What it does and what it last found: tests/README.md.
#
#   tests/nightly.sh            about an hour on two cores
#   SCALE=10 tests/nightly.sh   ten times the seeds and the fuzzing
#   FIRST=1 tests/nightly.sh    the same seeds again; else they begin with today's date (20261124000000 ...)
set -uo pipefail
cd "$(dirname "$0")/.."

scale=${SCALE:-1}
first=${FIRST:-$(date -u +%Y%m%d)000000}
target=${CARGO_TARGET_DIR:-target}
starling="$target/release/starling"
failed=0

# part NAME COMMAND...: runs it, says how long it took, and remembers when it failed. Exit code 4: cannot be done here.
part() {
    local name=$1 began=$SECONDS code=0
    shift
    echo "== $name: $*"
    "$@" || code=$?
    case $code in
        0) echo "   ok after $((SECONDS - began)) s" ;;
        4) echo "   SKIPPED: it cannot be done on this machine" ;;
        *) echo "   FAILED with exit code $code after $((SECONDS - began)) s"; failed=$((failed + 1)) ;;
    esac
}

echo "nightly: scale $scale, seeds from $first"
part build cargo build --release --bin starling || exit 1
part "drawn stories" "$starling" sim --seed "$first" --seeds $((2000 * scale))
part "shipped stories" "$starling" sim examples/scenarios --seed "$first" --seeds $((500 * scale))
part partitions env STARLING_SEEDS=$((300 * scale)) cargo test --release --test partition

for story in examples/scenarios/*.toml; do
    part "real nodes: $(basename "$story" .toml)" "$starling" sim "$story" --real
done

part fuzzing env STARLING_FUZZ_SECONDS=$((30 * scale)) \
    cargo test --release --test decoders -- --nocapture --test-threads 1

if [ "$failed" -gt 0 ]; then
    echo "nightly: $failed parts FAILED"
    exit 1
fi
echo "nightly: all parts held, after $((SECONDS / 60)) min"
