#!/usr/bin/env bash
# Random calls of the public functions through a Python module that was built with sanitizers (GCC on Linux):
#   bash tests/sanitized_calls.sh BUILD_FOLDER [calls] [seed]
set -euo pipefail
cd "$(dirname "$0")/.."
build="$1"

rm -rf "$build/package" && mkdir "$build/package"
cp -r diffq_fast "$build/package/" && rm -f "$build"/package/diffq_fast/_core*.so
cmake --install "$build" --component python --prefix "$build/package/diffq_fast" > /dev/null

# Python itself is built without: the sanitizers' libraries come first, and what it leaks is not the core's affair.
preload="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)"
LD_PRELOAD="$preload" ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH="$build/package" \
  python tests/random_calls.py "${2:-3000}" "${3:-0}"
