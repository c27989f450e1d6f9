#!/usr/bin/env bash
# stress-ng's file system stressors on a mount, all of them, one after another; then files that lay beside them are
# compared byte by byte, before and after everything was killed.
#
#   hack/stress.sh                     20 s each
#   ATOLL_STRESS_SECONDS=5 hack/stress.sh
set -euo pipefail

cd "$(dirname "$0")/.."
. hack/env.sh

seconds=${ATOLL_STRESS_SECONDS:-20}
atoll=$CARGO_TARGET_DIR/shipped/atoll-fs
work=$(mktemp -d)
mountpoint=$work/mnt
data=$work/data

fail() { printf 'stress: %s\n' "$*" >&2; exit 1; }
finish() {
  local status=$?
  "$atoll" local down "$mountpoint" --data "$data" >/dev/null 2>&1 || true
  [ "$status" = 0 ] || { tail -n 20 "$data/log" >&2 || true; }
  rm -rf "$work"
}
trap finish EXIT

[ -x "$atoll" ] || fail "$atoll is missing: run 'make build' first"
if ! command -v stress-ng >/dev/null; then
  apt-get -q -y install --no-install-recommends stress-ng >"$work/apt" 2>&1 ||
    { tail -n 20 "$work/apt" >&2; fail 'stress-ng can not be installed (apt-get update first?)'; }
fi

"$atoll" local up "$mountpoint" --data "$data" --copies 1 --capacity 8Gi
# What nobody touches must stay as it is.
mkdir "$mountpoint/beside" "$mountpoint/stress"
for number in $(seq 20); do
  head -c $((number * 100000)) /dev/urandom >"$mountpoint/beside/$number"
done
before=$(cd "$mountpoint/beside" && sha256sum *)

# The stressors that work on files in a folder.
stressors='access aiol chdir chmod chown copy-file dentry dir dirdeep dirmany dup fallocate fcntl fiemap file-ioctl
  filename flock fpunch fstat getdent hdd inode-flags io iomix lease link locka lockf lockofd mknod mmap open rename
  revio seek symlink sync-file touch utime xattr'
for stressor in $stressors; do
  stress-ng --temp-path "$mountpoint/stress" --"$stressor" 2 --timeout "${seconds}s" --verify --quiet ||
    fail "$stressor (exit $?)"
  echo "stress: $stressor"
done
[ "$(cd "$mountpoint/beside" && sha256sum *)" = "$before" ] || fail 'files beside were changed'

pid=$(sed -nE 's/.*"pid": ([0-9]+).*/\1/p' $(grep -l "\"$data\"" /run/atoll/*.json))
kill -9 "$pid"
"$atoll" local up "$mountpoint" --data "$data" --copies 1 --capacity 8Gi
[ "$(cd "$mountpoint/beside" && sha256sum *)" = "$before" ] || fail 'files beside were changed by a kill'
rm -rf "$mountpoint/stress"
echo 'stress: every byte is as it was'
