#!/usr/bin/env bash
# What can be said of the core under Windows without Windows: needs clang and libc++ (apt-get install clang libc++-dev).
#   bash csrc/tests/check_windows.sh
# 1. What Microsoft's compiler is given holds nothing of GCC's language: the sources are preprocessed as it does, and read.
# 2. The core compiles by the rules of clang-cl: Microsoft's ABI, sizes and extensions, its headers stubbed, clang's
#    library over them. Nothing is linked or run.
# 3. Where MinGW's headers are there, the core and its tests compile against the real ones of Windows.
set -euo pipefail
cd "$(dirname "$0")/../.."
stubs=$(mktemp -d)
trap 'rm -rf "$stubs"' EXIT
sources=(csrc/core/*/*.cpp)
interface=(csrc/interface/*.cpp) # needs the system's own headers
warnings=(-std=c++17 -Wall -Wextra -Wpedantic -Werror -Icsrc -Icsrc/include "-DDIFFQ_FAST_VERSION=\"\"" -DDIFFQ_FAST_DATA=\"\")

mkdir "$stubs/empty"
grep -hoE '#include <[^>]+>' -r csrc/core | sed 's/.*<\(.*\)>/\1/' | sort -u | while read -r header; do
  mkdir -p "$stubs/empty/$(dirname "$header")" && : > "$stubs/empty/$header"
done
for source in "${sources[@]}"; do
  clang++ -E -P -std=c++17 -nostdinc -nostdinc++ -isystem "$stubs/empty" -Icsrc -U__clang__ -U__GNUC__ -U__linux__ \
    -U__x86_64__ -D_MSC_VER=1938 -D_WIN32 -D_M_X64 "$source" > "$stubs/preprocessed"
  if grep -nE '__builtin_|__attribute__|__asm__|_Pragma|# *pragma (GCC|clang)|vector_size' "$stubs/preprocessed"; then
    echo "$source: Microsoft's compiler would be given the lines above" >&2
    exit 1
  fi
done
echo "${#sources[@]} sources hold nothing that Microsoft's compiler does not know by its name"

mkdir "$stubs/msvc" && cd "$stubs/msvc"
for header in vcruntime.h crtdbg.h eh.h xlocinfo.h; do echo '#pragma once' > $header; done
echo '#pragma once' > stdint.h
for bits in 8 16 32 64; do
  for kind in "" _least _fast; do
    echo "typedef __INT${bits}_TYPE__ int$kind${bits}_t; typedef __UINT${bits}_TYPE__ uint$kind${bits}_t;"
  done
  echo "#define INT${bits}_MAX __INT${bits}_MAX__"
  echo "#define INT${bits}_MIN (-__INT${bits}_MAX__ - 1)"
  echo "#define UINT${bits}_MAX __UINT${bits}_MAX__"
done >> stdint.h
echo 'typedef __INTPTR_TYPE__ intptr_t; typedef __UINTPTR_TYPE__ uintptr_t;
typedef __INTMAX_TYPE__ intmax_t; typedef __UINTMAX_TYPE__ uintmax_t;' >> stdint.h
cat > vcruntime_exception.h << 'END'
#pragma once
namespace std {
class exception {
  public:
    exception() noexcept;
    exception(const char*) noexcept;
    exception(const char*, int) noexcept;
    virtual ~exception() noexcept;
    virtual const char* what() const;
};
class bad_exception : public exception {};
class bad_alloc : public exception {};
class bad_array_new_length : public bad_alloc {};
}
END
cat > new.h << 'END'
#pragma once
#include <stddef.h>
#include <vcruntime_exception.h>
namespace std {
struct nothrow_t {};
extern const nothrow_t nothrow;
enum class align_val_t : size_t {};
}
void* operator new(size_t, void*) noexcept;
void operator delete(void*, void*) noexcept;
void* operator new(size_t, std::align_val_t);
void* operator new(size_t, std::align_val_t, const std::nothrow_t&) noexcept;
void operator delete(void*, std::align_val_t) noexcept;
void* _aligned_malloc(size_t, size_t);
void _aligned_free(void*);
END
cat > vcruntime_typeinfo.h << 'END'
#pragma once
#include <vcruntime_exception.h>
class type_info {
  public:
    virtual ~type_info();
    size_t hash_code() const noexcept;
    bool operator==(const type_info&) const noexcept;
    bool before(const type_info&) const noexcept;
    const char* name() const noexcept;
};
namespace std {
using ::type_info;
class bad_cast : public exception {};
class bad_typeid : public exception {};
}
END
echo '#include <new.h>' > vcruntime_new.h
cd - > /dev/null
libcxx=$(echo '#include <version>' | clang++ -stdlib=libc++ -E -x c++ - | sed -n 's/^# 1 "\(.*\)\/version".*/\1/p' | head -n 1)
for source in "${sources[@]}"; do
  clang++ --target=x86_64-pc-windows-msvc -fms-compatibility -fms-extensions -fms-compatibility-version=19.38 \
    -fsyntax-only "${warnings[@]}" -nostdinc++ -nostdlibinc -isystem "$libcxx" -isystem "$stubs/msvc" \
    -idirafter /usr/include -idirafter "/usr/include/$(uname -m)-linux-gnu" -D_LIBCPP_HAS_NO_LOCALIZATION \
    -D_BITS_STDINT_INTN_H -include stdint.h "$source" # glibc's own integers have other sizes
done
echo "${#sources[@]} sources compile by the rules of clang-cl"

mingw=$(echo /usr/lib/gcc/x86_64-w64-mingw32/*-posix/include/c++)
if [ -d "$mingw" ]; then
  for source in "${sources[@]}" "${interface[@]}" csrc/tests/*/test_*.cpp; do
    clang++ --target=x86_64-w64-mingw32 -fsyntax-only "${warnings[@]}" -nostdinc++ -isystem "$mingw" \
      -isystem "$mingw/x86_64-w64-mingw32" -isystem /usr/x86_64-w64-mingw32/include "$source"
  done
  echo "the core and its tests compile against the headers of MinGW"
fi
