#!/usr/bin/env bash
# Builds the package, runs the GPU tests, then every GPU benchmark: under nine minutes on one GPU, no network needed.
# Results go to $OUT (default: benchmarks/results). Exit status 1 if a test failed or a benchmark could not run.
set -u
cd "$(dirname "$0")/.." || exit 1
OUT=${OUT:-benchmarks/results}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
PYTHON=${PYTHON:-python3}
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT
status=0

echo "== build"
if "$PYTHON" -m pip install --quiet --no-index --no-build-isolation --no-deps --target "$built" . >"$OUT/build.log" 2>&1; then
    # The tests and benchmarks must import what was built, not the sources beside them.
    export PYTHONPATH="$built:$PWD/benchmarks"
else
    tail -5 "$OUT/build.log"
    echo "build failed: going on without the compiled core"
    cp -r diffq_fast "$built/"
    export PYTHONPATH="$built:$PWD/benchmarks"
    status=1
fi
"$PYTHON" -P -c "import diffq_fast, json; print(json.dumps(diffq_fast.backend_info()['backends'], indent=1))" || status=1

echo "== tests"
# Alone, without the suite's conftest: that one needs packages which a bare GPU machine may lack. In four processes,
# as most of the time goes into compiling kernels, one for each combination of dtypes and group sizes.
mkdir -p "$built/gpu_tests/support"
cp tests/support/gpu_tensors.py "$built/gpu_tests/support/"
files=(test_gpu.py test_gpu_streams.py test_gpu_export.py)
cp "${files[@]/#/tests/gpu/}" "$built/gpu_tests/"
pytest() { # seconds, arguments
    (cd "$built/gpu_tests" && timeout "$1" "$PYTHON" -P -m pytest -q -p no:cacheprovider \
        -W ignore::pytest.PytestUnknownMarkWarning "${@:2}")
}
pytest 60 --collect-only "${files[@]}" | grep :: >"$built/names"
parts=()
for part in 0 1 2 3; do
    mapfile -t names < <(awk "NR % 4 == $part" "$built/names")
    pytest 140 "${names[@]:-${files[@]}}" >"$built/part_$part" 2>&1 &
    parts+=($!)
done
for part in "${parts[@]}"; do wait "$part" || status=1; done
cat "$built"/part_* >"$OUT/gpu_tests.txt"
grep -hE "^(FAILED|ERROR)|passed|failed|no tests" "$OUT/gpu_tests.txt" | tail -15
# Apart, and last of the tests: a program that waits for ever would take the other results with it.
cp tests/gpu/test_gpu_ticketed.py "$built/gpu_tests/"
pytest 45 test_gpu_ticketed.py >"$OUT/gpu_tests_ticketed.txt" 2>&1 || status=1
tail -5 "$OUT/gpu_tests_ticketed.txt"

echo "== compute-sanitizer"
# Reads and writes out of bounds; the allocator's caching would hide those that hit another tensor.
if command -v compute-sanitizer >/dev/null; then
    (cd "$built/gpu_tests" && PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 40 compute-sanitizer --tool memcheck --error-exitcode 1 \
        "$PYTHON" -P -m pytest -q -p no:cacheprovider -W ignore::pytest.PytestUnknownMarkWarning "${files[@]}" \
        -k "unaligned or planes_are or repeat") >"$OUT/gpu_sanitizer.txt" 2>&1 || status=1
    grep -E "ERROR SUMMARY|passed|failed" "$OUT/gpu_sanitizer.txt"
else
    echo "compute-sanitizer is not on the PATH: left out"
fi

run() { # name, seconds: a benchmark may not take the others' time
    echo "== $1"
    (cd "$built" && timeout "$2" "$PYTHON" -P "$OLDPWD/benchmarks/$1.py" "$OUT") 2>"$OUT/$1.log" || {
        status=1
        echo "$1 failed:"
        tail -5 "$OUT/$1.log"
    }
}
run measure_gpu_export 30
run measure_gpu_transformer 70
run measure_gpu_operators 170
exit $status
