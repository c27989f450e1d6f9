#!/usr/bin/env bash
# Runs the tests: installs what is missing, then `cargo test` on the whole workspace, then one line of totals.
#
#   hack/test.sh                     everything
#   hack/test.sh --test model        arguments go to cargo test
#
# Always the whole workspace with its default features, never `-p`: choosing crates changes the features of their
# dependencies, and cargo would compile those again.
set -euo pipefail
cd "$(dirname "$0")/.."

hack/setup.sh

log=$(mktemp)
tee_pid=
cleanup() {
  [ -z "$tee_pid" ] || kill "$tee_pid" 2>/dev/null || true
  rm -f "$log"
}
trap cleanup EXIT

status=0
started=$EPOCHSECONDS
exec 3> >(exec tee "$log")
tee_pid=$!
hack/cargo.sh test --workspace --no-fail-fast ${CI:+--locked} "$@" </dev/null >&3 3>&- || status=$?
exec 3>&-
# tee ends with its last writer. A process that a test left behind would keep it open: do not wait for that one.
for _ in $(seq 50); do
  kill -0 "$tee_pid" 2>/dev/null || break
  sleep 0.1
done

# Sums of the lines "test result: ok. 5 passed; 0 failed; ..." of all suites, colours removed.
sed 's/\x1b\[[0-9;]*m//g' "$log" | awk -v status="$status" -v seconds="$((EPOCHSECONDS - started))" '
  /^test result:/ { suites++; for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) passed += $(i - 1); if ($i ~ /^failed/) failed += $(i - 1) } }
  END {
    if (status != 0 && failed == 0) { failed = 1; print "The build failed, or a test program ended before its summary (see above)." }
    printf "\n%d suites in %d s\n%d passed, %d failed\n", suites, seconds, passed, failed
  }
'
exit "$status"
