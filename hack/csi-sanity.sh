#!/usr/bin/env bash
# Runs csi-sanity, the CSI project's test of drivers, against ours: controller, node plugin and mount host in one process,
# clusters and mounts real (csi/examples/sanity.rs), everything in a folder and on loopback addresses. Needs root.
#
#   hack/csi-sanity.sh [ARGUMENT...]     arguments go to csi-sanity, e.g. -ginkgo.focus='Node Service'
#
# Fails if a test fails, if another test is skipped than csi/sanity-skips.txt lists (with a reason each), if a key is
# found in the log, or if anything is left behind.
set -euo pipefail
cd "$(dirname "$0")/.."
. hack/env.sh

say() { printf 'csi-sanity: %s\n' "$*" >&2; }
sanity=$(hack/kube/bin csi-sanity)
for program in atoll-fs examples/sanity; do
  [ -x "$CARGO_TARGET_DIR/debug/$program" ] ||
    { say "$CARGO_TARGET_DIR/debug/$program is missing: make csi-sanity builds it"; exit 1; }
done

# Not below /root: clients run under user ids of their own and have to reach the program.
work=$(mktemp -d /tmp/atoll-sanity.XXXXXX)
chmod 755 "$work"
driver=
cleanup() {
  if [ -n "$driver" ] && kill -0 "$driver" 2>/dev/null; then
    kill "$driver" 2>/dev/null || true
    wait "$driver" 2>/dev/null || true
  fi
  # Mounts of a run that failed; nobody serves them by now.
  awk -v work="$work/" 'index($5, work) == 1 { print $5 }' /proc/self/mountinfo | tac | xargs -r -n 1 umount -l
  rm -rf --one-file-system "$work"
}
trap cleanup EXIT

cp "$CARGO_TARGET_DIR/debug/atoll-fs" "$CARGO_TARGET_DIR/debug/examples/sanity" "$work/"
cluster=$("$work/atoll-fs" keygen "$work/key")
"$work/sanity" "unix://$work/csi.sock" "$work" "$work/atoll-fs" "$cluster" 2>"$work/log" &
driver=$!
# kubelet passes the Secret's entries on with each stage and publish.
for call in NodeStageVolumeSecret NodePublishVolumeSecret; do
  printf '%s:\n  cluster: "%s"\n  key: "%s"\n' "$call" "$cluster" "$(cat "$work/key")"
done >"$work/secrets.yaml"

status=0
"$sanity" --csi.endpoint="unix://$work/csi.sock" --csi.secrets="$work/secrets.yaml" \
  --csi.mountdir="$work/mount" --csi.stagingdir="$work/staging" \
  --ginkgo.junit-report="$work/report.xml" --ginkgo.no-color "$@" >"$work/output" 2>&1 || status=$?
grep -E '^(Ran |Will run |FAIL!|SUCCESS!|\[Fail\]|  \[FAIL\]|  \[FAILED\])|^ *\[FAIL' "$work/output" >&2 || tail -n 30 "$work/output" >&2
[ "$status" -eq 0 ] || { cp "$work/output" "$work/log" "${TMPDIR:-/tmp}/" 2>/dev/null || true; say "failed; output and log are in ${TMPDIR:-/tmp}"; exit 1; }

# It says itself if it has to leave a mount or a cluster behind.
kill "$driver"
wait "$driver" || { tail -n 5 "$work/log" >&2; say 'the driver did not end in order'; exit 1; }
driver=
if grep -qF "$(cat "$work/key")" "$work/log" "$work/output"; then say 'a key is in the log'; exit 1; fi
left=$(awk -v work="$work/" 'index($5, work) == 1 { print $5 }' /proc/self/mountinfo)
[ -z "$left" ] || { say "mounts are left: $left"; exit 1; }

if [ $# -eq 0 ]; then
  # Lines of the list: a test's name, a tab, the reason.
  skipped=$(sed -nE 's/.*<testcase name="([^"]*)".* status="skipped".*/\1/p' "$work/report.xml" |
    sed "s/&#39;/'/g; s/&#34;/\"/g; s/&lt;/</g; s/&gt;/>/g; s/&amp;/\&/g" | LC_ALL=C sort)
  listed=$({ grep -v '^#' csi/sanity-skips.txt || true; } | cut -f1 | LC_ALL=C sort)
  if [ "$skipped" != "$listed" ]; then
    diff <(printf '%s\n' "$listed") <(printf '%s\n' "$skipped") >&2 || true
    say 'other tests were skipped than csi/sanity-skips.txt lists (< listed, > skipped)'
    exit 1
  fi
  say "0 failures, $(printf '%s\n' "$skipped" | wc -l) skipped for the reasons in csi/sanity-skips.txt"
fi
