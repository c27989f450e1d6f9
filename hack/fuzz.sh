#!/usr/bin/env bash
# Looks for bytes that something that reads bytes panics over: each target of hack/fuzz for a minute.
#
#   hack/fuzz.sh                        all targets
#   hack/fuzz.sh frame record           these
#   ATOLL_FUZZ_SECONDS=3600             for longer
#   hack/fuzz.sh --keep [TARGET...]     no search: what the searches of this machine have found is made as small as it gets
#                                       and becomes the corpora in the repository, which the tests go through
#
# What is found is kept in the cache ($ATOLL_CACHE/fuzz), and the next search begins with it. Bytes that make a target panic
# are written there, too, and named.
set -euo pipefail
cd "$(dirname "$0")/.."
. hack/env.sh

keep=
[ "${1-}" != --keep ] || { keep=1; shift; }
seconds=${ATOLL_FUZZ_SECONDS:-60}
# Longer inputs are of no use: nothing that is read here says more in more.
length_max=4096
# Files of one corpus in the repository.
files_max=40

RUSTC_WORKSPACE_WRAPPER=$PWD/hack/fuzz/instrument \
  hack/cargo.sh build --workspace --bin atoll-fuzz --features atoll-fuzz/engine </dev/null
# A copy: the next build of another kind replaces it.
program=$(mktemp)
trap 'rm -f "$program"' EXIT
cp "$CARGO_TARGET_DIR/debug/atoll-fuzz" "$program"
chmod +x "$program"

[ $# -gt 0 ] || set -- $(ls hack/fuzz/corpora)
status=0
for target; do
  found=$ATOLL_CACHE/fuzz/$target
  corpus=hack/fuzz/corpora/$target
  mkdir -p "$found" "$found.failed"
  export ATOLL_FUZZ_TARGET=$target
  if [ -n "$keep" ]; then
    small=$(mktemp -d)
    "$program" -set_cover_merge=1 -max_len="$length_max" "$small" "$corpus" "$found" 2>/dev/null
    find "$corpus" -type f -delete
    # Of all sizes: short ones come to few places, long ones to all at once.
    step=$((($(ls "$small" | wc -l) + files_max - 1) / files_max))
    ls -S "$small" | awk -v step="$step" 'NR % step == 1 || step == 1' | while read -r file; do
      cp "$small/$file" "$corpus/$file"
    done
    rm -rf "$small"
    printf '%-16s %s files, %s bytes\n' "$target" "$(ls "$corpus" | wc -l)" "$(cat "$corpus"/* | wc -c)"
    continue
  fi
  if ATOLL_FUZZ_SEEDS=$found "$program" -max_total_time="$seconds" -max_len="$length_max" -timeout=20 -rss_limit_mb=2048 \
    -print_final_stats=1 -artifact_prefix="$found.failed/" "$found" "$corpus" >"$found.log" 2>&1 </dev/null; then
    printf '%-16s ok: %s\n' "$target" "$(sed -n 's/^stat::number_of_executed_units: *\(.*\)/\1 inputs/p' "$found.log")"
  else
    status=1
    printf '%-16s FAILED: see %s\n' "$target" "$found.log"
    grep -E 'panicked|ERROR|Test unit written' -A1 "$found.log" | head -n 8 || true
  fi
done
exit "$status"
