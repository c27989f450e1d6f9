#!/usr/bin/env bash
# The main job, on real input: mounts a file system with 3 copies, copies real trees into it, kills it with -9,
# brings it back and compares every byte.
#
#   hack/demo.sh [MOUNTPOINT]
#
# ATOLL_DEMO_TREE names another tree to copy; ATOLL_DEMO_REST=0 leaves out the minute of rest before memory is measured.
set -euo pipefail

cd "$(dirname "$0")/.."
. hack/env.sh

built=$CARGO_TARGET_DIR/shipped/atoll-fs
mountpoint=${1:-/mnt/atoll-demo}
data=${ATOLL_DEMO_DATA:-/var/lib/atoll/demo}
rest=${ATOLL_DEMO_REST:-60}
work=$(mktemp -d)

step() { printf '\n\033[1m%s\033[0m\n' "== $*"; }
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }

finish() {
  local status=$?
  rm -rf "$work"
  if [ "$status" != 0 ]; then
    "$atoll" local down "$mountpoint" --data "$data" >/dev/null 2>&1 || true
    printf '\nthe demonstration FAILED (exit %s); the log is %s/log\n' "$status" "$data" >&2
  fi
}
trap finish EXIT

[ -x "$built" ] || fail "$built is missing: run hack/ship.sh first"
# A copy: another checkout's build may replace the program between the kill and the restart.
atoll=$work/atoll-fs
cp "$built" "$atoll"

# The larger tree: the sources of the crates that were just built, or the system's headers and documents.
tree=${ATOLL_DEMO_TREE:-}
if [ -z "$tree" ]; then
  for tree in "${CARGO_HOME:-$HOME/.cargo}/registry/src" /usr/include /usr/share; do
    [ -d "$tree" ] && [ "$(find "$tree" -type f | head -n 3000 | wc -l)" -ge 3000 ] && break
  done
fi
[ -d "$tree" ] || fail "no tree of thousands of files found: name one with ATOLL_DEMO_TREE"

seconds() { awk -v from="$1" -v to="$(date +%s.%N)" 'BEGIN { printf "%.1f", to - from }'; }
rate() { awk -v n="$1" -v s="$2" 'BEGIN { printf "%.0f", n / (s > 0 ? s : 0.1) }'; }

# Sums of every file, links' targets and modes: what "every byte" means here.
fingerprint() {
  (cd "$1" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum
   find . \( -type f -o -type d -o -type l \) -printf '%y %m %l %P\n' | LC_ALL=C sort)
}

serving_pid() {
  local file
  for file in /run/atoll/*.json; do
    if [ -e "$file" ] && grep -q "\"$data\"" "$file"; then sed -nE 's/.*"pid": ([0-9]+).*/\1/p' "$file"; fi
  done
}

step "Start: one metadata server, three storage servers, a mount at $mountpoint"
"$atoll" local down "$mountpoint" --data "$data" >/dev/null 2>&1 || true
rm -rf "$data"
began=$(date +%s.%N)
"$atoll" local up "$mountpoint" --data "$data" --copies 3 --capacity 20Gi
echo "usable after $(seconds "$began") s"

step "Copy in: this repository and $tree"
mkdir -p "$work/source"
git ls-files -z | xargs -0 cp --parents -a -t "$work/source"
files=$(find "$work/source" "$tree" -type f | wc -l)
bytes=$(find "$work/source" "$tree" -type f -printf '%s\n' | awk '{ n += $1 } END { print n + 0 }')
began=$(date +%s.%N)
cp -a "$work/source" "$mountpoint/repository"
cp -a "$tree" "$mountpoint/tree"
sync -f "$mountpoint" || true
took=$(seconds "$began")
echo "$files files, $((bytes >> 20)) MiB in $took s: $(rate "$files" "$took") files/s, $(rate "$((bytes >> 20))" "$took") MiB/s"

step "Compare checksums, types and permissions"
fingerprint "$work/source" >"$work/repository.before"
fingerprint "$tree" >"$work/tree.before"
began=$(date +%s.%N)
fingerprint "$mountpoint/repository" >"$work/repository.now"
fingerprint "$mountpoint/tree" >"$work/tree.now"
took=$(seconds "$began")
cmp "$work/repository.before" "$work/repository.now"
cmp "$work/tree.before" "$work/tree.now"
echo "every byte is equal; read back in $took s: $(rate "$((bytes >> 20))" "$took") MiB/s"

step "kill -9 everything, while a file is being written"
pid=$(serving_pid)
[ -n "$pid" ] || fail "can't find the process that serves $mountpoint"
dd if=/dev/urandom of="$mountpoint/synced" bs=1M count=8 conv=fsync status=none
synced=$(sha256sum <"$mountpoint/synced")
(dd if=/dev/zero of="$mountpoint/unsynced" bs=1M count=4096 status=none 2>/dev/null || true) &
writer=$!
sleep 0.5
kill -9 "$pid"
wait "$writer" || true
echo "process $pid is gone; the mount is dead: $(stat "$mountpoint" 2>&1 >/dev/null | sed 's/.*: //')"

step "Start again"
began=$(date +%s.%N)
"$atoll" local up "$mountpoint" --data "$data"
echo "usable after $(seconds "$began") s"

step "Compare again"
fingerprint "$mountpoint/repository" >"$work/repository.now"
fingerprint "$mountpoint/tree" >"$work/tree.now"
cmp "$work/repository.before" "$work/repository.now"
cmp "$work/tree.before" "$work/tree.now"
[ "$(sha256sum <"$mountpoint/synced")" = "$synced" ] || fail "the synced file differs"
echo "every byte is equal, the file that was synced right before the kill too"
rm -f "$mountpoint/unsynced"

step "State"
"$atoll" local status "$mountpoint" --data "$data" || true
df -h "$mountpoint"
if [ "$rest" != 0 ]; then
  echo "resting for $rest s before memory is measured …"
  sleep "$rest"
fi
pid=$(serving_pid)
awk '/^Pss:/ { print "memory of the whole cluster and its mount (Pss):", int($2 / 1024), "MiB" }' "/proc/$pid/smaps_rollup"

step "Done. To go on by hand"
cat <<TEXT
  ls $mountpoint
  $built local status $mountpoint --data $data
  $built local down $mountpoint --data $data     # the data stays in $data
  rm -rf $data                                   # … until you remove it
TEXT
