#!/usr/bin/env bash
# Measures Atoll beside other file systems, all in one run; docs/benchmarks.md says how to read the results. Starts
# what it measures and removes it again, whatever happens.
#
#   hack/bench.sh                                       everything of Atoll's
#   hack/bench.sh --peers                               and MooseFS and GlusterFS with three copies
#   hack/bench.sh --quick                               a few minutes, small amounts, no peace: does it work?
#   hack/bench.sh --targets local,atoll-3 --only small  some targets, some workloads (--list shows them)
#   hack/bench.sh --against COMMIT                      what has changed since: each of Atoll's targets beside the same
#                                                       of another commit, which is built if need be (hack/bench/build.sh)
#   hack/bench.sh --target ceph=/mnt/ceph               another mounted file system in the same run
#   hack/bench.sh --pid ceph=1234                       … and the process whose CPU belongs to it
#   hack/bench.sh --build …                             only builds and installs what these arguments need
#
# Targets:
#   local               a folder of the local file system
#   passthrough         a FUSE file system over such a folder that keeps nothing, as a mount that others share
#   passthrough-cached  the same, which keeps names, attributes and what is written, as a mount that is alone
#   atoll-N             N copies, metadata, storage and mount in one process ('atoll-fs local up')
#   atoll-M+S           M metadata servers, S storage servers (up to three copies) and the mount, a process each
#   atoll-Nx, -M+Sx     the same with a volume for one mount (the kernel keeps names and attributes); the others' are shared
#   moosefs, glusterfs  three copies ('hack/setup.sh peers' installs them)
# All of them keep their data in one folder of the local file system, a new one below ATOLL_BENCH_DIR. Other arguments
# go to atoll-bench (--help shows them).
#
# ATOLL_BENCH_DIR        where that folder is made (/var/tmp)
# ATOLL_BENCH_UP         arguments for Atoll's mounts, such as '--transport fuser'
# ATOLL_BENCH_PROFILE    cargo's profile of the programs (release: what is shipped)
# ATOLL_BENCH_AGAINST_PROFILE  … of the other commit's (the same)
# ATOLL_BENCH_STARTS     how often each target is started (5, with --quick or --only once)
set -euo pipefail

cd "$(dirname "$0")/.."
. hack/env.sh

# What is shipped (hack/ship.sh).
profile=${ATOLL_BENCH_PROFILE:-release}
programs=$CARGO_TARGET_DIR/$profile
[ "$profile" != dev ] || programs=$CARGO_TARGET_DIR/debug
read -r -a up_arguments <<<"${ATOLL_BENCH_UP:-}"
UNMOUNT_SECONDS_MAX=20
MOUNT_SECONDS_MAX=60
CAPACITY=16Gi

targets=
peers=
against=
against_program=
only_build=
starts=5
arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    --targets) targets=$2; shift ;;
    --targets=*) targets=${1#*=} ;;
    --peers) peers=yes ;;
    --against) against=$2; shift ;;
    --against=*) against=${1#*=} ;;
    --build) only_build=yes ;;
    --list | --help | -h | --version) exec "$programs/atoll-bench" "$1" ;;
    --quick | --only | --only=*) starts=1; arguments+=("$1") ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
starts=${ATOLL_BENCH_STARTS:-$starts}
# What a change has done is seen without the others, in half of the time.
if [ -z "$targets" ] && [ -n "$against" ]; then targets=atoll-3,atoll-1+3,atoll-3+3; fi
targets=${targets:-local,passthrough,passthrough-cached,atoll-3,atoll-1+3,atoll-3+3,atoll-3+3x}
if [ -n "$peers" ]; then
  targets+=,moosefs,glusterfs
  # Five rounds of that many targets take longer.
  [[ " ${arguments[*]-}" == *' --quick'* || " ${arguments[*]-}" == *' --budget'* ]] || arguments+=(--budget 6600)
fi

say() { printf 'bench: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

if [ -n "$only_build" ]; then
  [[ $targets != *moosefs* && $targets != *glusterfs* ]] || hack/setup.sh peers
  hack/bench/build.sh "$profile"
fi
if [ -n "$against" ]; then
  against_program=$(hack/bench/build.sh "${ATOLL_BENCH_AGAINST_PROFILE:-$profile}" "$against")
  against=$(git rev-parse --short "$against^{commit}")
fi
[ -z "$only_build" ] || exit 0

base=
bench_pid=
started=()
declare -A mountpoint pids first again

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

. hack/bench/targets.sh
. hack/bench/peers.sh

# start NAME, stop NAME: a target, which is there from the first start on.
start() {
  local kind=${1%@*} servers
  case $kind in
    # Names and attributes are asked for each time, as on a mount that others may share.
    passthrough) start_passthrough "$1" --ttl-ms 0 ;;
    passthrough-cached) start_passthrough "$1" --ttl-ms 3600000 --writeback ;;
    moosefs) start_moosefs "$1" ;;
    glusterfs) start_glusterfs "$1" ;;
    atoll-*+*) servers=${kind#atoll-}; servers=${servers%x}; start_group "$1" "${servers%+*}" "${servers#*+}" ;;
    atoll-*) start_local "$1" "${kind#atoll-}" ;;
  esac
}

stop() {
  case ${1%@*} in
    passthrough*) stop_passthrough "$1" ;;
    moosefs | glusterfs) clear_namespace "$1" ;;
    atoll-*+*) stop_group "$1" ;;
    atoll-*) stop_local "$1" ;;
  esac
}

finish() {
  local status=$? name
  trap - EXIT INT TERM HUP
  # From here on everything is tried, whatever fails.
  set +eu
  if [ -n "$bench_pid" ] && kill -TERM "$bench_pid" 2>/dev/null; then
    for _ in $(seq 100); do kill -0 "$bench_pid" 2>/dev/null || break; sleep 0.1; done
    kill -KILL "$bench_pid" 2>/dev/null || true
  fi
  for name in "${started[@]}"; do
    stop "$name"
    close_namespace "$name"
  done
  # Never across a mount that could not be removed.
  if [ -n "$base" ]; then rm -rf --one-file-system "$base" || say "$base is left"; fi
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# timed NAME: starts it and notes how long that took, in milliseconds.
timed() {
  local name=$1 began
  began=$(date +%s%3N)
  start "$name"
  arguments+=(--started "$name=$(($(date +%s%3N) - began))")
}

# add NAME PROGRAM: a target, for the first time.
add() {
  local name=$1 pid
  if [ -n "$2" ]; then
    [ -x "$2" ] || fail "$2 is missing: run 'make bench', or hack/bench.sh --build"
    # Under a name of its own: a build that comes meanwhile changes nothing.
    cp "$2" "$base/bin/$name"
  fi
  started+=("$name")
  timed "$name"
}

[ -x "$programs/atoll-bench" ] || fail "$programs/atoll-bench is missing: run 'make bench', or hack/bench.sh --build"
[ "$(id -u)" = 0 ] || fail "needs root: it mounts file systems and empties caches"
# The passthrough has a descriptor for each file that the kernel knows, and servers have many.
ulimit -n "$(cat /proc/sys/fs/nr_open)" 2>/dev/null || ulimit -n "$(ulimit -H -n)"
mounted /sys/fs/fuse/connections || mount -t fusectl fusectl /sys/fs/fuse/connections 2>/dev/null || true
mkdir -p "${ATOLL_BENCH_DIR:-/var/tmp}"
base=$(cd "${ATOLL_BENCH_DIR:-/var/tmp}" && mktemp -d "$PWD/atoll-bench.XXXXXX")
mkdir -p "$base/mnt" "$base/bin" "$base/log" "$base/data/local" "$base/scratch"
cp "$programs/atoll-bench" "$base/bin/atoll-bench"

for target in ${targets//,/ }; do
  case $target in
    local) arguments+=(--target "local=$base/data/local") ;;
    passthrough | passthrough-cached) add "$target" '' ;;
    moosefs) command -v mfsmaster >/dev/null || fail "MooseFS isn't installed: hack/setup.sh peers"; add "$target" '' ;;
    glusterfs) command -v glusterd >/dev/null || fail "GlusterFS isn't installed: hack/setup.sh peers"; add "$target" '' ;;
    atoll-[1-5] | atoll-[1-5]x | atoll-[1357]+[1-9] | atoll-[1357]+[1-9]x)
      add "$target" "$programs/atoll-fs"
      [ -z "$against" ] || add "$target@$against" "$against_program"
      ;;
    *) fail "unknown target '$target': see the top of hack/bench.sh; others by --target NAME=DIRECTORY" ;;
  esac
done
# Starting what is there already, in turn.
for ((turn = 1; turn < starts; turn++)); do
  for name in "${started[@]}"; do
    stop "$name"
    timed "$name"
  done
done
for name in "${started[@]}"; do
  arguments+=(--target "$name=${mountpoint[$name]}" --disposable "$name")
  for pid in ${pids[$name]}; do arguments+=(--pid "$name=$pid"); done
  [[ $name != *@* ]] || arguments+=(--against "${name%@*}=$name")
done

# In the background, so that a signal ends this script at once and not after the measurement.
status=0
"$base/bin/atoll-bench" --scratch "$base/scratch" "${arguments[@]}" &
bench_pid=$!
wait "$bench_pid" || status=$?
bench_pid=
exit "$status"
