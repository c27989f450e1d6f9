#!/usr/bin/env bash
# Measures Atoll beside the local file system and a FUSE passthrough, all in one run; docs/benchmarks.md says how to
# read the results. Starts what it measures and removes it again, whatever happens.
#
#   hack/bench.sh                                       everything, under 12 minutes
#   hack/bench.sh --quick                               under 2 minutes
#   hack/bench.sh --targets local,atoll-3 --only small  some targets, some workloads (--list shows them)
#   hack/bench.sh --target ceph=/mnt/ceph               another mounted file system in the same run
#   hack/bench.sh --pid ceph=1234                       … and the process whose CPU belongs to it
#   hack/bench.sh --against COMMIT                      what has changed since: each of Atoll's targets beside the same
#                                                       of another commit, which is built if need be (hack/bench/build.sh)
#   hack/bench.sh --build …                             only builds what these arguments need
#
# Targets: local, passthrough, atoll-1, atoll-3 (copies; also -2, -4, -5). All of them keep their data in one folder
# of the local file system, a new one below ATOLL_BENCH_DIR. Other arguments go to atoll-bench (--help shows them).
#
# ATOLL_BENCH_DIR        where that folder is made (/var/tmp)
# ATOLL_BENCH_UP         arguments for 'atoll-fs local up', such as '--transport fuser'
# ATOLL_BENCH_FUSE       arguments for the passthrough; by default those that make it as coherent as Atoll
# ATOLL_BENCH_PROFILE    cargo's profile of the programs (that of the images)
# ATOLL_BENCH_AGAINST_PROFILE  … of the other commit's (the same)
set -euo pipefail

cd "$(dirname "$0")/.."
. hack/env.sh

# What the images have (hack/images/build.sh).
profile=${ATOLL_BENCH_PROFILE:-dev}
programs=$CARGO_TARGET_DIR/$profile
[ "$profile" != dev ] || programs=$CARGO_TARGET_DIR/debug
read -r -a up_arguments <<<"${ATOLL_BENCH_UP:-}"
# Names and attributes are asked for each time, as on a mount that others may share.
read -r -a fuse_arguments <<<"${ATOLL_BENCH_FUSE:---ttl-ms 0}"
UNMOUNT_SECONDS_MAX=20
MOUNT_SECONDS_MAX=20
CAPACITY=16Gi

targets=local,passthrough,atoll-1,atoll-3
against=
against_program=
only_build=
arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    --targets) targets=$2; shift ;;
    --targets=*) targets=${1#*=} ;;
    --against) against=$2; shift ;;
    --against=*) against=${1#*=} ;;
    --build) only_build=yes ;;
    --list | --help | -h | --version) exec "$programs/atoll-bench" "$1" ;;
    *) arguments+=("$1") ;;
  esac
  shift
done

say() { printf 'bench: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

if [ -n "$only_build" ]; then hack/bench/build.sh "$profile"; fi
if [ -n "$against" ]; then
  against_program=$(hack/bench/build.sh "${ATOLL_BENCH_AGAINST_PROFILE:-$profile}" "$against")
  against=$(git rev-parse --short "$against^{commit}")
fi
[ -z "$only_build" ] || exit 0

base=
bench_pid=
passthrough_pid=
mounts=()

mounted() { grep -qF " $1 " /proc/self/mountinfo; }

# abort MOUNTPOINT: ends a connection that answers no more. Everything that waits for it gets an error.
abort() {
  local number
  number=$(awk -v point="$1" '$5 == point { split($3, device, ":"); print device[2] }' /proc/self/mountinfo | tail -n 1)
  [ -z "$number" ] || echo 1 >"/sys/fs/fuse/connections/$number/abort" 2>/dev/null || true
}

# unmount MOUNTPOINT: gently, then not.
unmount() {
  mounted "$1" || return 0
  timeout "$UNMOUNT_SECONDS_MAX" umount "$1" 2>/dev/null && return 0
  abort "$1"
  umount -l "$1" 2>/dev/null || true
}

# serving DATA: the process of the local cluster with that data folder.
serving() {
  local file
  for file in /run/atoll/*.json; do
    [ -e "$file" ] && grep -qF "\"$1\"" "$file" && sed -nE 's/.*"pid": ([0-9]+).*/\1/p' "$file"
  done || true
}

finish() {
  local status=$? name pid
  trap - EXIT INT TERM HUP
  # From here on everything is tried, whatever fails.
  set +e
  if [ -n "$bench_pid" ] && kill -TERM "$bench_pid" 2>/dev/null; then
    for _ in $(seq 100); do kill -0 "$bench_pid" 2>/dev/null || break; sleep 0.1; done
    kill -KILL "$bench_pid" 2>/dev/null || true
  fi
  for name in "${mounts[@]}"; do
    case $name in
      passthrough)
        unmount "$base/mnt/$name"
        [ -z "$passthrough_pid" ] || kill "$passthrough_pid" 2>/dev/null || true
        ;;
      *)
        pid=$(serving "$base/data/$name")
        if ! timeout 130 "$base/bin/$name" local down "$base/mnt/$name" --data "$base/data/$name" >/dev/null 2>&1; then
          say "$name doesn't stop; the end of its log:"
          tail -n 5 "$base/data/$name/log" >&2 2>/dev/null || true
          [ -z "$pid" ] || kill -KILL "$pid" 2>/dev/null || true
        fi
        unmount "$base/mnt/$name"
        ;;
    esac
  done
  # Never across a mount that could not be removed.
  if [ -n "$base" ]; then rm -rf --one-file-system "$base" || say "$base is left"; fi
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

start_passthrough() {
  local program=$programs/examples/passthrough mountpoint=$base/mnt/passthrough
  [ -x "$program" ] || fail "$program is missing: run 'make bench', or hack/cargo.sh build --workspace --examples"
  mkdir -p "$base/data/passthrough" "$mountpoint"
  mounts+=(passthrough)
  "$program" "$base/data/passthrough" "$mountpoint" "${fuse_arguments[@]}" &
  passthrough_pid=$!
  for _ in $(seq $((MOUNT_SECONDS_MAX * 20))); do
    mounted "$mountpoint" && stat "$mountpoint" >/dev/null && break
    kill -0 "$passthrough_pid" 2>/dev/null || fail "the passthrough ended"
    sleep 0.05
  done
  mounted "$mountpoint" || fail "the passthrough doesn't mount"
  arguments+=(--target "passthrough=$mountpoint" --pid "passthrough=$passthrough_pid" --disposable passthrough)
}

start_atoll() { # start_atoll NAME COPIES PROGRAM
  local name=$1 mountpoint=$base/mnt/$1 data=$base/data/$1 pid
  [ -x "$3" ] || fail "$3 is missing: run 'make build'"
  mkdir -p "$mountpoint" "$base/data" "$base/bin"
  # Under a name of its own: a build that comes meanwhile changes nothing.
  cp "$3" "$base/bin/$name"
  mounts+=("$name")
  "$base/bin/$name" local up "$mountpoint" --data "$data" --copies "$2" --capacity "$CAPACITY" "${up_arguments[@]}" >&2 ||
    { tail -n 20 "$data/log" >&2 2>/dev/null || true; fail "$name doesn't start"; }
  pid=$(serving "$data")
  [ -n "$pid" ] || fail "can't find the process that serves $mountpoint"
  arguments+=(--target "$name=$mountpoint" --pid "$name=$pid" --disposable "$name")
}

[ -x "$programs/atoll-bench" ] || fail "$programs/atoll-bench is missing: run 'make bench', or hack/bench.sh --build"
[ "$(id -u)" = 0 ] || fail "needs root: it mounts file systems and empties caches"
mounted /sys/fs/fuse/connections || mount -t fusectl fusectl /sys/fs/fuse/connections 2>/dev/null || true
mkdir -p "${ATOLL_BENCH_DIR:-/var/tmp}"
base=$(cd "${ATOLL_BENCH_DIR:-/var/tmp}" && mktemp -d "$PWD/atoll-bench.XXXXXX")
mkdir -p "$base/mnt" "$base/data/local" "$base/scratch"

for target in ${targets//,/ }; do
  case $target in
    local) arguments+=(--target "local=$base/data/local") ;;
    passthrough) start_passthrough ;;
    atoll-[1-5])
      start_atoll "$target" "${target#atoll-}" "$programs/atoll-fs"
      if [ -n "$against" ]; then
        start_atoll "$target@$against" "${target#atoll-}" "$against_program"
        arguments+=(--against "$target=$target@$against")
      fi
      ;;
    *) fail "unknown target '$target': local, passthrough, atoll-1 … atoll-5; others by --target NAME=FOLDER" ;;
  esac
done

# In the background, so that a signal ends this script at once and not after the measurement.
status=0
"$programs/atoll-bench" --scratch "$base/scratch" "${arguments[@]}" &
bench_pid=$!
wait "$bench_pid" || status=$?
bench_pid=
exit "$status"
