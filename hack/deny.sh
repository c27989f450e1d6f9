#!/usr/bin/env bash
# Checks what the programs are made of against deny.toml: licences, banned crates, registries, known vulnerabilities.
#
#   hack/deny.sh              all of it
#   hack/deny.sh --install    only installs cargo-deny (hack/setup.sh verify does)
#
# cargo-deny is built once per machine, in the version that stands here, into a folder beside the other caches. Its list
# of vulnerabilities comes from the network; where that is out of reach this says so and checks the rest.
set -euo pipefail
cd "$(dirname "$0")/.."
. hack/env.sh

VERSION=0.20.2

say() { printf 'deny: %s\n' "$*" >&2; }

root=$ATOLL_CACHE/cargo-deny-$VERSION
mkdir -p "$ATOLL_CACHE"
exec 9>"$ATOLL_CACHE/cargo-deny.lock"
flock -n 9 || { say 'another run installs cargo-deny, waiting for it'; flock 9; }
if [ ! -x "$root/bin/cargo-deny" ]; then
  say "building cargo-deny $VERSION: about 3 minutes on two cores, once per machine"
  started=$EPOCHSECONDS
  rm -rf "$root.part"
  # Quick to build instead of quick to run: it runs for seconds.
  CARGO_TARGET_DIR=$root.part/target CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off \
    CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_STRIP=symbols \
    cargo install cargo-deny --version "$VERSION" --locked --quiet --root "$root.part" 9>&-
  rm -rf "$root.part/target" "$root"
  mv "$root.part" "$root"
  say "done in $((EPOCHSECONDS - started)) s"
fi
flock -u 9
[ "${1:-}" = --install ] && exit

deny() { "$root/bin/cargo-deny" --locked --log-level error check "$@"; }
# Duplicates are no mistake, and a page long.
deny --allow duplicate bans licenses sources >&2

answer=$(deny advisories 2>&1) && { say 'no known vulnerability'; exit; }
if grep -q 'failed to fetch advisory database' <<<"$answer"; then
  say 'NOT CHECKED: known vulnerabilities. The list of RustSec cannot be fetched from here:'
  say "  $(grep -m 1 '^fatal:' <<<"$answer" || head -n 1 <<<"$answer")"
  exit
fi
printf '%s\n' "$answer" >&2
exit 1
