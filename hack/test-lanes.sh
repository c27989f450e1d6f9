#!/usr/bin/env bash
# Runs all tests of the workspace in two lanes at once: those that wait for most of their time (for elections, leases, silent
# servers) beside the others. The output of the first is shown when both have ended. hack/test.sh calls this, under the
# lock of hack/cargo.sh; everything is compiled by then.
#
#   hack/cargo.sh -- hack/test-lanes.sh ARGUMENTS…    arguments go to each cargo test
set -euo pipefail
cd "$(dirname "$0")/.."

# Of fs/atoll-fs/tests; less than half of a core each.
waiting=(crash fsck full group mounts partition processes refusals repair served)

names=$(cargo metadata --no-deps --format-version 1 | grep -o '"kind":\["test"\],"crate_types":\["bin"\],"name":"[^"]*"' | sed 's/.*:"//; s/"//' | sort -u)
others=()
for name in $names; do
  [[ " ${waiting[*]} " == *" $name "* ]] || others+=(--test "$name")
done
slow=()
for name in "${waiting[@]}"; do
  grep -qx "$name" <<<"$names" || { echo "test-lanes: there is no suite '$name'" >&2; exit 1; }
  slow+=(--test "$name")
done

log=$(mktemp)
lane=
finish() {
  # It has a process group of its own, in which its tests are.
  [ -z "$lane" ] || kill -TERM -- "-$lane" 2>/dev/null || true
  rm -f "$log"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

status=0
setsid cargo test "$@" "${slow[@]}" >"$log" 2>&1 </dev/null &
lane=$!
cargo test "$@" --lib --bins "${others[@]}" </dev/null || status=$?
cargo test "$@" --doc </dev/null || status=$?
wait "$lane" || status=$?
lane=
cat "$log"
exit "$status"
