#!/usr/bin/env bash
# Runs the tests: installs what is missing, then `cargo test` on the whole workspace, then the chart, then a short run of a
# Kubernetes of several nodes, then Atoll on one, then one line of totals.
#
#   hack/test.sh                     everything
#   hack/test.sh --test model        arguments go to cargo test; nothing else runs
#
# Tests that mount, kill and cut the power do so with the program that is shipped (hack/ship.sh), as Kubernetes does;
# ATOLL_PROGRAM= (empty) leaves that out, for a quick look with the one that cargo compiles for tests.
#
# Always the whole workspace with its default features, never `-p`: choosing crates changes the features of their
# dependencies, and cargo would compile those again.
set -euo pipefail
cd "$(dirname "$0")/.."
. hack/env.sh

hack/setup.sh

work=$(mktemp -d)
tee_pid=
kube_pid=
cleanup() {
  [ -z "$tee_pid" ] || kill "$tee_pid" 2>/dev/null || true
  # It has a process group of its own, in which the compilers are.
  [ -z "$kube_pid" ] || kill -TERM -- "-$kube_pid" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

# Kubernetes' programs take a quarter of an hour of a core, once per machine; so does fetching the images' packages.
# They have one core of their own beside the compilation and the tests, at low priority.
if [ $# -eq 0 ]; then
  set -m
  (export ATOLL_JOBS=1 GOMAXPROCS=1; nice -n 10 hack/kube/build && nice -n 10 hack/kube/build helm && nice -n 10 hack/images/build --bases) \
    >"$work/kube-build" 2>&1 </dev/null &
  kube_pid=$!
  set +m
fi

# recorded LOG COMMAND...: runs it, its output to the terminal and to the log.
recorded() {
  local log=$1 status=0
  shift
  exec 3> >(exec tee "$log")
  tee_pid=$!
  "$@" </dev/null >&3 3>&- || status=$?
  exec 3>&-
  # tee ends with its last writer. A process that a test left behind would keep it open: do not wait for that one.
  for _ in $(seq 50); do
    kill -0 "$tee_pid" 2>/dev/null || break
    sleep 0.1
  done
  return "$status"
}

status=0
started=$EPOCHSECONDS
if [ -z "${ATOLL_PROGRAM+set}" ]; then
  shipped=$(hack/ship.sh)
  # A copy: another checkout's build may replace it while tests run. Not below /root: clients with user ids of their own
  # have to reach it.
  chmod 755 "$work"
  cp "$shipped/atoll-fs" "$work/"
  export ATOLL_PROGRAM=$work/atoll-fs
elif [ -z "$ATOLL_PROGRAM" ]; then
  unset ATOLL_PROGRAM
fi
ship_seconds=$((EPOCHSECONDS - started))
tests=(--workspace --no-fail-fast ${CI:+--locked})
if [ $# -gt 0 ]; then
  recorded "$work/cargo" hack/cargo.sh test "${tests[@]}" "$@" || status=$?
else
  recorded "$work/cargo" hack/cargo.sh test "${tests[@]}" --no-run || status=$?
  [ "$status" != 0 ] || recorded "$work/cargo" hack/cargo.sh -- hack/test-lanes.sh "${tests[@]}" || status=$?
fi
rust_seconds=$((EPOCHSECONDS - started - ship_seconds))

kube_status=0
: >"$work/chart"
: >"$work/kube"
: >"$work/e2e"
if [ $# -eq 0 ]; then
  echo
  echo "A Kubernetes of three nodes (hack/kube/test --short):"
  wait "$kube_pid" || kube_status=$?
  kube_pid=
  if [ "$kube_status" != 0 ]; then tail -n 30 "$work/kube-build"; fi
  [ "$kube_status" != 0 ] || hack/ship.sh >/dev/null || kube_status=$?
  [ "$kube_status" != 0 ] || hack/cargo.sh build --workspace --bin atoll-provisioner --bin atoll-e2e ${CI:+--locked} \
    </dev/null || kube_status=$?
  [ "$kube_status" != 0 ] || recorded "$work/chart" hack/chart.sh || kube_status=$?
  [ "$kube_status" != 0 ] || recorded "$work/kube" hack/kube/test --short || kube_status=$?
  if [ "$kube_status" = 0 ]; then
    echo
    echo "Atoll on a Kubernetes of three nodes (hack/e2e.sh --short):"
    recorded "$work/e2e" hack/e2e.sh --short || kube_status=$?
  fi
fi

# Sums of the lines "test result: ok. 5 passed; 0 failed; ..." of all suites, colours removed, and of the chart's and clusters'
# "5 passed, 0 failed".
cases=$(sed -n 's/^\([0-9]* passed, [0-9]* failed\)$/\1/p' "$work/chart" "$work/kube" "$work/e2e" | tr '\n' ' ')
sed 's/\x1b\[[0-9;]*m//g' "$work/cargo" | awk -v status="$status" -v kube="$kube_status" -v ship="$ship_seconds" -v seconds="$rust_seconds" \
  -v all="$((EPOCHSECONDS - started))" -v cases="$cases" '
  /^test result:/ { suites++; for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) passed += $(i - 1); if ($i ~ /^failed/) failed += $(i - 1) } }
  END {
    if (status != 0 && failed == 0) { failed = 1; print "The build failed, or a test program ended before its summary (see above)." }
    words = split(cases, n, " ")
    for (i = 1; i + 2 <= words; i += 4) { passed += n[i]; kube_failed += n[i + 2] }
    if (kube != 0 && kube_failed == 0) { kube_failed = 1; print "The test cluster could not be built or tested (see above)." }
    printf "\nshipped programs in %d s, %d suites in %d s, everything in %d s\n%d passed, %d failed\n", ship, suites, seconds, all, passed, failed + kube_failed
  }
'
[ "$status" = 0 ] && [ "$kube_status" = 0 ]
