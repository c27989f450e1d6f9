#!/usr/bin/env bash
# The house's rules that no compiler checks. Atoll tells its readers where things are by what is absent ("no clock
# in fs/core"); this script says so when one of these sentences stops being true. Needs no compilation.
#
# Prints every broken rule and fails if there is one; long files are only reported.
set -euo pipefail
cd "$(dirname "$0")/.."

# Every rule about dependencies asks cargo; an answer that fails would look like "nothing found".
cargo metadata --format-version 1 --locked --no-deps >/dev/null && cargo tree --locked --depth 0 >/dev/null ||
  { echo 'house: cargo cannot read the workspace (is Cargo.lock out of date?)' >&2; exit 1; }

# Above this a file is reported: readers get lost in it; cut it by role or by operation.
LINES_PER_FILE_MAX=700

broken=0
rule() { # rule TEXT FINDINGS: complains when there are findings.
  [ -z "$2" ] && return
  broken=$((broken + 1))
  printf 'house: %s\n' "$1" >&2
  sed 's/^/    /' <<<"$2" >&2
}

# code FILE...: the lines of Rust files as "file:line:text", without comments and without test modules.
code() {
  [ $# -eq 0 ] || awk '
    FNR == 1 { skip = 0; attribute = 0 }
    skip { if (/^}/) skip = 0; next }
    attribute { attribute = 0; if (/^(pub(\([a-z]+\))? )?mod [a-z_0-9]+ *{/) { if (!/}/) skip = 1; next } if (/^mod [a-z_0-9]+;/) next }
    /^#\[cfg\(test\)\]/ { attribute = 1; next }
    { text = $0; sub(/^[ \t]*\/\/.*/, "", text); sub(/[ \t]\/\/[^"]*$/, "", text); if (text != "") printf "%s:%d:%s\n", FILENAME, FNR, text }
  ' "$@"
}
# sources FOLDER...: the Rust files below, those that hold nothing but tests left out.
sources() {
  find "$@" -name '*.rs' -not -name 'tests.rs' -not -name '*_test.rs' -not -name '*_tests.rs' -not -path '*/tests/*' 2>/dev/null | sort
}
# search PATTERN FOLDER...: where code outside tests matches.
search() {
  local pattern=$1 files
  shift
  mapfile -t files < <(sources "$@")
  code "${files[@]}" | grep -E -- "$pattern" || true
}

# dependencies CRATE [ARG...]: names of the crates it pulls in, outside tests.
dependencies() {
  local crate=$1
  shift
  cargo tree --locked -p "$crate" --edges normal --prefix none --format '{p}' "$@" | awk 'NF { print $1 }' | sort -u
}
# absent CRATE 'REGEX' 'WHY' [ARG...]
absent() {
  local crate=$1 pattern=$2 why=$3
  shift 3
  rule "$crate must not depend on these crates: $why" "$(dependencies "$crate" "$@" | grep -Ex "$pattern" || true)"
}
kube='kube(-.*)?|k8s-openapi|tonic(-.*)?'
absent atoll-core "tokio(-.*)?|mio|openraft|rocksdb|fuser|nix|rand|getrandom|$kube" \
  'the core decides; it has no I/O, no clock, no randomness'
absent atoll-client "openraft|rocksdb|fuser|$kube" 'a client builds without the servers and without a kernel'
absent atoll-fuse "openraft|rocksdb|$kube" 'the mount builds without the servers'
absent atoll-storage "openraft|rocksdb|fuser|$kube" 'a storage server knows chunks, not metadata'
absent atoll-raft "rocksdb|fuser|atoll-(metadata|storage|client|fuse)|$kube" 'it is the slowest crate to compile and must change rarely'
absent atoll-fs 'rocksdb|openraft' 'the mount alone builds without RocksDB' --no-default-features
absent atoll-fs "$kube" 'the file system knows nothing of Kubernetes'
servers='openraft|rocksdb|fuser|atoll-(raft|metadata|storage|client|fuse|fs)'
absent atoll-crds "$servers|atoll-(core|proto|operator|csi)" 'it names things, and everybody has to be able to build on it'
absent atoll-operator "$servers|atoll-csi" 'of the file system it knows messages and types alone'
absent kubectl-atoll "$servers|atoll-(csi|operator|core|proto)" 'it shows what the custom resources say'

rule 'fs/core has no clock and no randomness: both are arguments' \
  "$(search '(SystemTime|Instant)::now|\brand::|thread_rng|getrandom|RandomState' fs/core/src)"
rule 'fs/core has no I/O' \
  "$(search 'std::(fs|net|env|process|thread|io::(stdin|stdout|stderr))\b|\b(println|print|eprintln)!' fs/core/src)"
rule 'fs knows nothing of Kubernetes' "$(search '\b(kube|k8s_openapi)::' fs)"
rule 'only the disk module of fs/storage touches files: faults are injected there' \
  "$(search '(std|tokio)::fs\b|\bFile::(open|create)|\bOpenOptions\b' fs/storage/src | grep -v '^fs/storage/src/disk[./]' || true)"
# All clones of a machine share one build folder, so this names the clone that happened to compile the program.
rule 'env!("CARGO_MANIFEST_DIR") is the path of another clone as often as not: use std::env::var at run time' \
  "$(grep -rnE '\benv!\("CARGO_(MANIFEST_DIR|MANIFEST_PATH|WORKSPACE_DIR)"' --include='*.rs' fs || true)"
rule 'of the file system the CSI driver knows the key, the device and the bundle' \
  "$(search '\batoll_(client|core|fuse|metadata|raft|storage)::' csi/src | grep -vE 'atoll_core::ids::ClusterId|atoll_fuse::(bundle|device|Layout)' || true)"
rule 'no unfinished code, no switched-off tests' \
  "$(grep -rnE '\b(TODO|FIXME|XXX)\b|\b(todo|unimplemented)!|#\[ignore' --include='*.rs' --include='*.sh' --exclude=check-house.sh fs hack crds operator csi kubectl || true)"

# `cargo build` and `cargo test` share what they compile only while the crates that tests add switch on no feature of
# the crates that programs use; otherwise those and all their dependents are compiled twice.
features() {
  cargo tree --locked --workspace --prefix none --format '{p} {f}' --edges "$1" | sed 's/ (\*)$//' | grep . | sort -u
}
programs=$(features normal,build)
tests=$(features normal,build,dev)
shared=$(awk '{ print $1, $2 }' <<<"$programs")
rule 'these crates are compiled twice, since a dev-dependency adds a feature: give it to a dependency as well' \
  "$(comm -13 <(echo "$programs") <(echo "$tests") | while read -r name version features; do
    grep -qxF "$name $version" <<<"$shared" && echo "$name $version with $features" || true
  done)"

# SEMANTICS.md names the test of each promise as `test: name`, the name of a Rust test function.
if [ -f SEMANTICS.md ]; then
  known=$(find fs -name '*.rs' -exec awk '
    /^[ \t]*#\[([a-z_]+::)?test(\(.*)?\]/ { test = 1; next }
    test && match($0, /fn [a-z_A-Z0-9]+/) { print substr($0, RSTART + 3, RLENGTH - 3); test = 0 }
  ' {} + | sort -u)
  rule 'SEMANTICS.md names tests that do not exist' \
    "$(grep -oE '\btest: `?[A-Za-z0-9_:]+' SEMANTICS.md | sed -E 's/^test: `?//; s/.*:://' | sort -u |
      comm -23 - <(echo "$known"))"
else
  rule 'the promises are missing' 'no SEMANTICS.md'
fi

find fs hack crds operator kubectl -name '*.rs' -o -name '*.sh' | xargs wc -l | awk -v max="$LINES_PER_FILE_MAX" \
  '$2 != "total" && $1 > max { printf "house: %s has %d lines: cut it by role or by operation\n", $2, $1 }' >&2

[ "$broken" -eq 0 ] || { echo "house: $broken rules broken" >&2; exit 1; }
echo "house: every rule holds" >&2
