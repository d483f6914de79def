#!/usr/bin/env bash
# The C library as others get it: built, installed, found by CMake and by pkg-config; what it exports; the example
# against Python; and the tests that compare it with Python.
#   bash csrc/tests/check_library.sh [BUILD_FOLDER]
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$(realpath -m "${1:-build/tests}")
installed="$build/installed"
export PYTHONPATH="$PWD"

cmake -S . -B "$build" -GNinja -DDIFFQ_FAST_PYTHON=OFF -DDIFFQ_FAST_TESTS=ON -DDIFFQ_FAST_C=ON > /dev/null
cmake --build "$build" --target diffq_fast diffq_fast_static
rm -rf "$installed"
cmake --install "$build" --component c --prefix "$installed" > /dev/null

shared=$(find "$installed" -name libdiffq_fast.so)
others=$(nm -D --defined-only "$shared" | awk '$3 !~ /^diffq_fast_/ { print $3 }')
if [ -n "$others" ]; then
  echo "the library shows more than its interface: $others" >&2
  exit 1
fi

cmake -S examples/cpp -B "$build/example" -GNinja "-DCMAKE_PREFIX_PATH=$installed" > /dev/null
cmake --build "$build/example"
OMP_NUM_THREADS=1 python examples/cpp/check.py "$build/example/classify" "$build/example/files" 1

golden=tests/data/packed_v1_documented.safetensors
expected=$'w F32 packed 9.42857\nb F32 plain 0.25\nv F32 packed 9.42857'
for kind in shared static; do
  if command -v pkg-config > /dev/null; then
    PKG_CONFIG_PATH=$(dirname "$(find "$installed" -name diffq_fast.pc)")
    export PKG_CONFIG_PATH
    flags=$(pkg-config --cflags diffq_fast)
    libraries=$(pkg-config --libs $([ $kind = static ] && echo --static) diffq_fast)
  else
    flags="-I$installed/include" libraries="-L$(dirname "$(find "$installed" -name libdiffq_fast.a)") -ldiffq_fast -lstdc++ -lm -pthread"
  fi
  [ $kind = shared ] || libraries="-Wl,-Bstatic ${libraries/-ldiffq_fast/-ldiffq_fast -Wl,-Bdynamic}"
  # shellcheck disable=SC2086
  "${CC:-cc}" -std=c99 -Wall -Wextra -Wpedantic -Werror $flags csrc/tests/interface/c_program.c $libraries -o "$build/example/$kind"
  printed=$(LD_LIBRARY_PATH=$(dirname "$shared") "$build/example/$kind" $golden)
  if [ "$printed" != "$expected" ]; then
    echo "the C program, linked $kind, printed: $printed" >&2
    exit 1
  fi
done

DIFFQ_FAST_C_LIBRARY="$shared" OMP_NUM_THREADS=1 python -m pytest -q -p no:cacheprovider tests/c_interface
echo "the C library is as it should be"
