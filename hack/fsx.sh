#!/usr/bin/env bash
# fsx on a mount: random changes of one file, every read compared with what must be there, in all modes that fsx has.
#
#   hack/fsx.sh                                   100,000 operations, 10 seeds, each mode
#   ATOLL_FSX_OPERATIONS=5000 ATOLL_FSX_SEEDS=2 hack/fsx.sh
#   ATOLL_FSX_MODES="plain holes"                 some modes
#   ATOLL_FSX_AT_ONCE=1                           one seed after the other (default 5 at once)
#
# fsx is a program with a licence of its own (APSL-2.0): it is installed into the cache, and nothing here depends
# on it.
set -euo pipefail

cd "$(dirname "$0")/.."
. hack/env.sh

version=0.3.2
operations=${ATOLL_FSX_OPERATIONS:-100000}
seeds=${ATOLL_FSX_SEEDS:-10}
at_once=${ATOLL_FSX_AT_ONCE:-5}
read -r -a modes <<<"${ATOLL_FSX_MODES:-plain nomap holes copies large aligned blocks}"
atoll=$CARGO_TARGET_DIR/shipped/atoll-fs
work=$(mktemp -d)
mountpoint=$work/mnt
data=$work/data

fail() { printf 'fsx: %s\n' "$*" >&2; exit 1; }
finish() {
  local status=$?
  jobs -p | xargs -r kill 2>/dev/null || true
  "$atoll" local down "$mountpoint" --data "$data" >/dev/null 2>&1 || true
  [ "$status" = 0 ] || { tail -n 20 "$data/log" >&2 || true; }
  rm -rf "$work"
}
trap finish EXIT

[ -x "$atoll" ] || fail "$atoll is missing: run 'make build' first"
fsx=$ATOLL_CACHE/tools/bin/fsx
if [ ! -x "$fsx" ]; then
  echo "installing fsx $version into $ATOLL_CACHE/tools"
  CARGO_TARGET_DIR=$ATOLL_CACHE/tools/target cargo install fsx --version "$version" --locked --quiet --root "$ATOLL_CACHE/tools"
  rm -rf "$ATOLL_CACHE/tools/target"
fi

# The modes: what is done how often, and to which sizes.
mode() {
  case $1 in
    plain) printf '[weights]\nclose_open = 1\nfsync = 1\nfdatasync = 1\n' ;;
    nomap) printf '[weights]\nclose_open = 1\nmapread = 0\nmapwrite = 0\nfsync = 1\n' ;;
    holes) printf '[weights]\nclose_open = 1\nposix_fallocate = 5\npunch_hole = 10\ninvalidate = 1\n' ;;
    copies) printf '[weights]\nclose_open = 1\ncopy_file_range = 10\nsendfile = 5\nposix_fadvise = 2\n' ;;
    large) printf 'flen = 4194304\n[opsize]\nmax = 300000\n[weights]\nclose_open = 1\npunch_hole = 2\ncopy_file_range = 2\n' ;;
    aligned) printf '[opsize]\nalign = 4096\nmax = 65536\n[weights]\npunch_hole = 2\ninvalidate = 2\n' ;;
    blocks) printf 'blockmode = true\nflen = 1048576\n[weights]\nwrite = 10\nread = 10\ntruncate = 0\nfsync = 1\n' ;;
  esac
}

"$atoll" local up "$mountpoint" --data "$data" --copies 1 --capacity 4Gi
# one MODE SEED: a file of its own.
one() {
  local file=$mountpoint/$1-$2 out=$work/$1-$2.out
  [ "$1" != blocks ] || truncate -s 1M "$file"
  if ! "$fsx" -f "$work/$1.toml" -S "$2" -N "$operations" -P "$work" "$file" >"$out" 2>&1; then
    # This version of fsx may ask for an allocation of no bytes, which posix_fallocate(3) refuses on every filesystem.
    # What came before was right; another seed goes on.
    if grep -q 'does not support posix_fallocate' "$out" && tail -n 1 "$out" | grep -q 'POSIX_FALLOCATE .*( *0x0 bytes)'; then
      echo "fsx: mode $1, seed $2 ended with an allocation of no bytes: seed $(($2 + 1000)) instead"
      rm -f "$file" "$out"
      one "$1" "$(($2 + 1000))"
      return
    fi
    tail -n 40 "$out" >&2
    printf 'fsx: mode %s, seed %s\n' "$1" "$2" >&2
    return 1
  fi
  rm -f "$file" "$out"
}

for name in "${modes[@]}"; do
  mode "$name" >"$work/$name.toml"
  running=0
  for seed in $(seq "$seeds"); do
    # Most of the time is waiting for syncs, which those that run at once share.
    if [ "$running" -ge "$at_once" ]; then
      wait -n || fail "mode $name failed (above)"
      running=$((running - 1))
    fi
    one "$name" "$seed" &
    running=$((running + 1))
  done
  for _ in $(seq "$running"); do wait -n || fail "mode $name failed (above)"; done
  echo "fsx: $name: $seeds seeds of $operations operations"
done
