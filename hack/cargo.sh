#!/usr/bin/env bash
# Runs cargo on this checkout with the RocksDB library and the build folder that all checkouts of the machine share.
#
#   hack/cargo.sh build --workspace
#   hack/cargo.sh -- COMMAND...         a command that runs cargo more than once, under the same lock
#
# Cargo decides by file times whether a crate of the workspace has to be compiled again, and a fresh clone has
# fresh times: everything would be. Worse, in a shared folder a clone of an older commit could have times that
# are older than what another clone compiled, and take that for its own. So before cargo runs, every
# file gets the time at which its present content first came to this build folder: the same content keeps its
# time and is not compiled again, other content gets the present time and is. The record lies in the build folder.
#
# One cargo at a time uses the folder, tests included (their programs lie in it): others wait for the lock.
# For a build that waits for nobody, set CARGO_TARGET_DIR to a folder of your own.
set -euo pipefail

cd "$(dirname "$0")/.."
. hack/env.sh

say() { printf 'cargo.sh: %s\n' "$*" >&2; }

# stamp: gives every source file its time. Call with the lock held: nothing may compile between the record and cargo.
stamp() {
  local record=$CARGO_TARGET_DIR/.atoll-stamps now
  now=$(date +%s.%N)
  touch "$record"
  # Lines of the new record: hash, time, path. Paths of the source tree have no line breaks.
  find . \( -name .git -o -name target \) -prune -o -type f -print0 | xargs -0 sha256sum |
    awk -v now="$now" '
      { hash = $1; sub(/^[^ ]+ +/, "") }
      old { time = $1; sub(/^[^ ]+ +/, ""); known[hash, $0] = time; next }
      { print hash, ((hash, $0) in known ? known[hash, $0] : now), $0 }
    ' old=1 "$record" old=0 - >"$record.new"
  local time
  for time in $(cut -d' ' -f2 "$record.new" | sort -u); do
    awk -v time="$time" '$2 == time { sub(/^[^ ]+ +[^ ]+ +/, ""); printf "%s%c", $0, 0 }' "$record.new" |
      xargs -0 touch -d "@$time" --
  done
  mv "$record.new" "$record"
}

ROCKSDB_LIB_DIR=$(hack/rocksdb.sh)
export ROCKSDB_LIB_DIR ROCKSDB_STATIC=1

mkdir -p "$CARGO_TARGET_DIR"
exec 9>"$CARGO_TARGET_DIR/.atoll-lock"
if ! flock -n 9; then
  say "another run uses $CARGO_TARGET_DIR, waiting for it"
  flock 9
fi
stamp
# Cargo and what it starts must not inherit the lock: a server that outlives its test would keep it.
status=0
case ${1-} in
  --) shift; "$@" 9>&- || status=$? ;;
  *) cargo "$@" 9>&- || status=$? ;;
esac
exit $status
