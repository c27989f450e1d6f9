#!/usr/bin/env bash
# Everything that can be said about a commit without running what it makes: format, lints, documentation, the rules of
# the house, what it depends on, what is generated. Goes through all of it even if something fails; ends with one line
# for each check.
#
# The checks share one build folder with the tests. What cargo compiles for lints and documentation is only looked at,
# never run, and kept beside what is built.
set -uo pipefail
cd "$(dirname "$0")/.."

failed=0
lines=()
check() { # check WHAT WHAT-TO-DO COMMAND...
  local what=$1 remedy=$2 started=$EPOCHSECONDS verdict=ok
  shift 2
  printf '== %s\n' "$what" >&2
  "$@" </dev/null || { verdict="FAILED: $remedy"; failed=$((failed + 1)); }
  lines+=("$(printf '%-15s %4d s  %s' "$what" $((EPOCHSECONDS - started)) "$verdict")")
}

locked=(--locked)
check format 'make fix' cargo fmt --all --check
check dependencies 'see deny.toml' hack/deny.sh
# The rules (hack/tidy), and what is generated (config/crd) against what generates it.
check rules 'each says above what to do instead' \
  hack/cargo.sh test --workspace "${locked[@]}" --test house --test generated --quiet
check lints 'make fix mends most' \
  hack/cargo.sh clippy --workspace --all-targets --keep-going "${locked[@]}" --quiet -- -D warnings
RUSTDOCFLAGS='-D warnings' check documentation 'links have to lead somewhere, and to what readers can see' \
  hack/cargo.sh doc --workspace --no-deps --keep-going "${locked[@]}" --quiet

printf '\n' >&2
printf '%s\n' "${lines[@]}" >&2
[ "$failed" -eq 0 ]
