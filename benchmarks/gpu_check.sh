#!/usr/bin/env bash
# Builds the package, runs the GPU tests, then every GPU benchmark, on one GPU, no network needed: at most ten minutes
# with the build, as each part but that has a limit (60 s, 140, 45, 40, 30, 70 and 170).
# Results go to $OUT (default: benchmarks/results). Exit status 1 if a test failed or a benchmark could not run.
#
# With --dry, the same without a GPU: each line, on a few weights, with kernels emulated and a stand-in for CUDA
# (tests/dry). Needs Triton. Its figures mean nothing; they go to build/gpu_dry, marked, and the plot is drawn of them.
set -u
cd "$(dirname "$0")/.." || exit 1
dry=
if [ "${1:-}" = --dry ]; then dry=yes; fi
OUT=${OUT:-${dry:+build/gpu_dry}}
OUT=${OUT:-benchmarks/results}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
if [ -n "$dry" ]; then
    case "$OUT" in "$PWD"/benchmarks/*) echo "gpu_check.sh --dry: not into $OUT, where measurements are kept"; exit 1 ;; esac
    rm -f "$OUT"/gpu_*
fi
PYTHON=$(command -v "${PYTHON:-python3}")
PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON") # the folder changes below
python=("$PYTHON" -P ${dry:+"$PWD/tests/dry/run.py"})
patience=${dry:+10} # times as long: kernels are compiled on any machine, and run on none
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT
status=0

limited() { # seconds, command
    timeout "$(($1 * ${patience:-1}))" "${@:2}"
}

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
"${python[@]}" -c "import diffq_fast, json; print(json.dumps(diffq_fast.backend_info()['backends'], indent=1))" || status=1

echo "== tests"
# Alone, without the suite's conftest: that one needs packages which a bare GPU machine may lack. In four processes,
# as most of the time goes into compiling kernels, one for each combination of dtypes and group sizes.
mkdir -p "$built/gpu_tests/support"
cp tests/support/gpu_tensors.py tests/support/packed_row_forms.py "$built/gpu_tests/support/"
files=(test_gpu.py test_gpu_streams.py test_gpu_export.py test_gpu_packed_rows.py)
cp "${files[@]/#/tests/gpu/}" "$built/gpu_tests/"
pytest() { # seconds, arguments
    (cd "$built/gpu_tests" && limited "$1" "${python[@]}" -m pytest -q -p no:cacheprovider \
        -W ignore::pytest.PytestUnknownMarkWarning "${@:2}")
}
collect() { # seconds, arguments: the names of tests; a file that cannot be imported is an error
    pytest "$1" --collect-only "${@:2}" >"$built/collected" 2>&1 || { status=1; cat "$built/collected" >&2; }
    grep :: "$built/collected" || status=1
}
collect 60 "${files[@]}" >"$built/names"
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
sanitized=("${files[@]}" -k "unaligned or planes_are or repeat")
if command -v compute-sanitizer >/dev/null && [ -z "$dry" ]; then
    (cd "$built/gpu_tests" && PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 40 compute-sanitizer --tool memcheck --error-exitcode 1 \
        "$PYTHON" -P -m pytest -q -p no:cacheprovider -W ignore::pytest.PytestUnknownMarkWarning \
        "${sanitized[@]}") >"$OUT/gpu_sanitizer.txt" 2>&1 || status=1
    grep -E "ERROR SUMMARY|passed|failed" "$OUT/gpu_sanitizer.txt"
elif [ -n "$dry" ]; then
    echo "compute-sanitizer cannot run without a GPU: left out, but for the names of its tests"
    collect 20 "${sanitized[@]}"
else
    echo "compute-sanitizer is not on the PATH: left out"
fi

run() { # name, seconds: a benchmark may not take the others' time
    echo "== $1"
    (cd "$built" && limited "$2" "${python[@]}" "$OLDPWD/benchmarks/$1.py" "$OUT") 2>"$OUT/$1.log" || {
        status=1
        echo "$1 failed:"
        tail -5 "$OUT/$1.log"
    }
}
run measure_gpu_export 30
run measure_gpu_transformer 70
run measure_gpu_operators 170

if [ -n "$dry" ]; then
    echo "== what was stored, and what is made of it afterwards"
    "$PYTHON" -P tests/dry/results.py "$OUT" || status=1
    "$PYTHON" -P benchmarks/plot_gpu.py --complete --results "$OUT" --output "$OUT/gpu_roofline.png" || status=1
    (cd "$built" && limited 60 "${python[@]}" -m pytest -q -p no:cacheprovider \
        -o timeout=0 --benchmark-disable "$OLDPWD/benchmarks/bench_gpu.py") || status=1
    [ "$status" = 0 ] && echo "the dry run found nothing" || echo "the dry run FAILED"
fi
exit $status
