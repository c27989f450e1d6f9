#!/usr/bin/env bash
# Builds the static RocksDB library once per machine and prints the folder it is in.
#
#   ROCKSDB_LIB_DIR=$(hack/rocksdb.sh) ROCKSDB_STATIC=1 cargo build
#
# The crate librocksdb-sys would compile RocksDB itself, file by file: 343 C++ files whose headers alone cost
# some nine CPU seconds each, the better part of an hour on two cores. The same sources put together into a dozen
# big files ("unity build") share that header work and take a sixth of it. The library depends on the
# sources, the compiler and the flags, on nothing else, so it lives in a cache outside the checkout that every
# clone on the machine uses, in a folder named after all of them: a new version is a new folder.
#
# Sources, defines and flags are those of the crate's own build script; keep them so when the crate is updated.
# Safe to run from several shells at once (one builds, the others wait), and to interrupt: finished parts are
# kept, and the folder appears under its final name only when it is complete.
#
# Environment: ATOLL_CACHE (default ~/.cache/atoll), CXX (default g++), ATOLL_JOBS (default: cores, as memory allows).
set -euo pipefail

cd "$(dirname "$0")/.."
cache=${ATOLL_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/atoll}
cxx=${CXX:-g++}

# Files per compiler run: 29 makes twelve parts, of about 50 CPU seconds and 2 GB of memory each.
FILES_PER_PART=29
JOB_MEMORY_KIB=2000000
# Raise it when this script makes another library from the same inputs.
RECIPE=1

say() { printf 'rocksdb: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

command -v "$cxx" >/dev/null || fail "no C++ compiler '$cxx': run hack/setup.sh, or set CXX"

flags=(
  -std=c++20 -O2 -fPIC -ffunction-sections -fdata-sections -w -include cstdint
  -DNDEBUG -DLZ4=1 -DZSTD=1
  -DHAVE_ALIGNED_NEW -DHAVE_UINT128_EXTENSION
  -DOS_LINUX -DROCKSDB_PLATFORM_POSIX -DROCKSDB_LIB_IO_POSIX
  -DROCKSDB_SCHED_GETCPU_PRESENT -DROCKSDB_AUXV_GETAUXVAL_PRESENT
  -DROCKSDB_FALLOCATE_PRESENT -DROCKSDB_RANGESYNC_PRESENT
)
# Checksums in hardware: every 64-bit server since 2011 (x86) or 2017 (arm) has the instructions.
case $(uname -m) in
  x86_64) flags+=(-msse4.2 -mpclmul) ;;
  aarch64) flags+=(-march=armv8-a+crc+crypto) ;;
esac

# locked NAME: version and checksum of a crate as Cargo.lock has them.
locked() {
  awk -v name="\"$1\"" '$1 == "name" { found = $3 == name }
    found && ($1 == "version" || $1 == "checksum") { gsub(/"/, "", $3); printf "%s ", $3 }' Cargo.lock
}

rocksdb=$(locked librocksdb-sys)
[ -n "$rocksdb" ] || fail "Cargo.lock has no librocksdb-sys"
version=${rocksdb%% *}
version=${version#*+}
key=$({
  printf '%s\n' "$RECIPE" "$FILES_PER_PART" "$rocksdb" "$(locked lz4-sys)" "$(locked zstd-sys)" "${flags[@]}"
  "$cxx" --version
  "$cxx" -dumpmachine
} | sha256sum | cut -c1-12)
out=$cache/rocksdb-$version-$key

finish() {
  echo "$out"
  exit 0
}
[ -f "$out/librocksdb.a" ] && finish

mkdir -p "$cache"
exec 9>"$cache/rocksdb.lock"
if ! flock -n 9; then
  say "another run is building it, waiting"
  flock 9
fi
[ -f "$out/librocksdb.a" ] && finish

# The unpacked crates, fetched if they are missing; only what this machine's platform needs.
say "finding the sources of RocksDB $version"
host=$(rustc -vV | sed -n 's/^host: //p')
metadata=$(cargo metadata --format-version 1 --locked --filter-platform "$host")
# crate NAME: the folder of a crate's sources.
crate() {
  local manifest
  manifest=$(grep -o "\"manifest_path\":\"[^\"]*/$1-[0-9][^\"]*/Cargo.toml\"" <<<"$metadata" | head -n 1 | cut -d'"' -f4)
  [ -n "$manifest" ] || fail "cargo metadata does not know $1: are the features lz4 and zstd of rocksdb on?"
  dirname "$manifest"
}
source=$(crate librocksdb-sys)
lz4=$(crate lz4-sys)
zstd=$(crate zstd-sys)
flags+=(
  -I"$source/rocksdb/include" -I"$source/rocksdb" -I"$source/rocksdb/third-party/gtest-1.8.1/fused-src" -I"$source"
  -I"$lz4/liblz4/lib" -I"$zstd/zstd/lib"
)
for header in "$lz4/liblz4/lib/lz4.h" "$zstd/zstd/lib/zstd.h"; do
  [ -f "$header" ] || fail "$header is missing"
done

work=$out.part
mkdir -p "$work"
rm -f "$work"/*.cc "$work"/*.tmp
{
  grep -vx 'util/build_version.cc' "$source/rocksdb_lib_sources.txt" | sed '/^[[:space:]]*$/d' | sed "s|^|$source/rocksdb/|"
  echo "$source/build_version.cc"
} | sed 's|.*|#include "&"|' | split --lines="$FILES_PER_PART" --numeric-suffixes=1 --additional-suffix=.cc - "$work/part-"

parts=("$work"/part-*.cc)
export total=${#parts[@]} work cxx
cores=$(nproc)
memory_kib=$(awk '$1 == "MemAvailable:" { print $2 }' /proc/meminfo)
jobs=$((memory_kib / JOB_MEMORY_KIB))
jobs=${ATOLL_JOBS:-$((jobs < 1 ? 1 : jobs < cores ? jobs : cores))}

# compile PART FLAG...: one part, renamed when it is whole so that an interrupted run leaves no half object.
compile() {
  local part=$1 object=${1%.cc}.o
  shift
  if [ ! -f "$object" ]; then
    "$cxx" "$@" -c "$part" -o "$object.tmp" || { echo "rocksdb: ${part##*/} did not compile" >&2; exit 255; }
    mv "$object.tmp" "$object"
  fi
  local done=("$work"/part-*.o)
  printf 'rocksdb: %d/%d compiled, %d s\n' "${#done[@]}" "$total" "$((EPOCHSECONDS - started))" >&2
}
export -f compile
export started=$EPOCHSECONDS
say "compiling $total parts, $jobs at a time: about $((11 / jobs + 1)) minutes, once per machine"
# The compilers inherit the lock: should this shell be killed, the next run waits until they have ended.
printf '%s\0' "${parts[@]}" | xargs -0 -P "$jobs" -I{} bash -c 'compile "$@"' _ {} "${flags[@]}" ||
  fail "the build failed; what is done stays in $work"

ar crs "$work/librocksdb.a" "$work"/part-*.o
rm -f "$work"/part-*
# The name must not reach the disk before the contents do.
sync "$work/librocksdb.a"
rm -rf "$out"
mv "$work" "$out"
say "done in $((EPOCHSECONDS - started)) s: $out"
finish
