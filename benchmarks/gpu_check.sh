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
# Alone, without the suite's conftest: that one needs packages which a bare GPU machine may lack.
mkdir "$built/gpu_tests"
cp tests/test_gpu.py "$built/gpu_tests/"
(cd "$built/gpu_tests" && timeout 150 "$PYTHON" -P -m pytest -q -p no:cacheprovider -W ignore::pytest.PytestUnknownMarkWarning \
    test_gpu.py) >"$OUT/gpu_tests.txt" 2>&1 || status=1
tail -15 "$OUT/gpu_tests.txt"
# Apart, and last of the tests: a program that waits for ever would take the other results with it.
cp tests/test_gpu_ticketed.py "$built/gpu_tests/"
(cd "$built/gpu_tests" && timeout 45 "$PYTHON" -P -m pytest -q -p no:cacheprovider -W ignore::pytest.PytestUnknownMarkWarning \
    test_gpu_ticketed.py) >"$OUT/gpu_tests_ticketed.txt" 2>&1 || status=1
tail -5 "$OUT/gpu_tests_ticketed.txt"

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
