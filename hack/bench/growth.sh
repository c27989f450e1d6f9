#!/usr/bin/env bash
# How the cost of an operation grows with the number of files: fills a metadata server (one, the profile that is shipped, in
# one process with its clients) up to each number and measures operations of each kind; docs/benchmarks.md has the results.
#
#   hack/bench/growth.sh [FILES…]      (10000 100000 1000000; ten million take about twenty minutes and some GiB of disk)
#
# ATOLL_BENCH_DIR        where its data is (/var/tmp)
set -euo pipefail
cd "$(dirname "$0")/../.."
. hack/env.sh

sizes=("$@")
[ $# -gt 0 ] || sizes=(10000 100000 1000000)

hack/cargo.sh build --package atoll-metadata --example load --release
data=$(mktemp -d "${ATOLL_BENCH_DIR:-/var/tmp}/atoll-growth.XXXXXX")
trap 'rm -rf "$data"' EXIT
for files in "${sizes[@]}"; do
  "$CARGO_TARGET_DIR/release/examples/load" "$data/metadata" "$files"
  echo "on disk: $(du -sm "$data" | cut -f 1) MiB"
done
