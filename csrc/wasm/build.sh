#!/usr/bin/env bash
# The core's reader as WebAssembly: build/wasm becomes the npm package. Needs clang and, from Debian, what `packages` has.
#   bash csrc/wasm/build.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-build/wasm}
packages=(clang-14 lld-14 libc++-14-dev-wasm32 libc++abi-14-dev-wasm32 libclang-rt-14-dev-wasm32 wasi-libc binaryen)
if ! dpkg -s "${packages[@]}" > /dev/null 2>&1; then
  apt-get update -qq && apt-get install -qq -y --no-install-recommends "${packages[@]}" > /dev/null
fi
mkdir -p "$folder/objects"
version=$(sed -n 's/^__version__ = "\([0-9.]*\).*/\1/p' diffq_fast/_version.py)

# Exceptions are on so that `throw` compiles; exports.cpp says where they go. No entry of the table of kernels is called
# that reading does not need (kernels.cpp), so nothing that trains is linked.
flags=(--target=wasm32-wasi -std=c++17 -msimd128 -mbulk-memory -flto -fexceptions -ffp-contract=off -fno-math-errno
  -fno-trapping-math -fvisibility=hidden -ffunction-sections -fdata-sections -Wall -Wextra -Werror -Wno-unused-function
  -Icsrc -Icsrc/include "-DDIFFQ_FAST_VERSION=\"$version\"")
sources=(csrc/wasm/*.cpp csrc/interface/diffq_fast.cpp csrc/core/file/*.cpp csrc/core/infer/packed_rows.cpp
  csrc/core/pack/{coding,level_code,packed_levels,quantize,streams}.cpp)
exports=(malloc free $(grep -oh 'diffq_fast_wasm_\w*(' csrc/wasm/exports.cpp | tr -d '(' | sort -u)
  diffq_fast_{version,status_text,validate,count,describe,read_float32,plain_data}
  diffq_fast_matrix_{open,close,rows,columns,bytes,multiply,read_rows})

compile() { # what reads headers is small, what decodes is fast
  local level=-Oz
  case "$1" in */kernels.cpp | */crc32.cpp | */weight_values.cpp | */coding.cpp | */packed_levels.cpp | */quantize.cpp | */packed_rows.cpp) level=-O2 ;; esac
  clang-14 $level "${flags[@]}" -c "$1" -o "$folder/objects/$(basename "$1" .cpp).o"
}
objects=() running=()
for source in "${sources[@]}"; do
  objects+=("$folder/objects/$(basename "$source" .cpp).o")
  compile "$source" &
  running+=($!)
  if [ ${#running[@]} -ge "$(nproc)" ]; then
    wait "${running[0]}"
    running=("${running[@]:1}")
  fi
done
for one in "${running[@]}"; do wait "$one"; done

# No stack overflow goes unseen: the stack lies below everything else.
clang-14 -flto --target=wasm32-wasi -mexec-model=reactor -fuse-ld="$(command -v wasm-ld-14)" -nodefaultlibs "${objects[@]}" \
  -lc++ -lc++abi -lc -lc-printscan-no-floating-point -lclang_rt.builtins-wasm32 \
  -L"$(clang-14 -print-resource-dir)/lib/wasi" -Wl,--gc-sections,--strip-all,--stack-first,-z,stack-size=524288 \
  "${exports[@]/#/-Wl,--export=}" -o "$folder/linked.wasm"
wasm-opt -O3 --enable-simd --enable-bulk-memory --strip-debug --strip-producers "$folder/linked.wasm" -o "$folder/diffq_fast.wasm"
cp csrc/wasm/{index.js,index.d.ts,package.json,README.md} LICENSE "$folder"
rm -r "$folder/objects" "$folder/linked.wasm"
echo "$folder/diffq_fast.wasm: $(stat -c %s "$folder/diffq_fast.wasm") bytes, $(gzip -9c "$folder/diffq_fast.wasm" | wc -c) compressed"
