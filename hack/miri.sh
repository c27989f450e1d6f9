#!/usr/bin/env bash
# Runs tests under Miri, which notices what is undefined though it happens to work: those of the kernel's structures, which are
# read and written as bytes, of requests, and of where things lie in shared memory. What uses that memory (memfd, mmap), or a
# socket of the kernel's kind, Miri can't run.
set -euo pipefail
cd "$(dirname "$0")/.."
. hack/env.sh

cargo +nightly miri --version >/dev/null 2>&1 || {
  echo 'miri.sh: no Miri here: rustup component add miri rust-src --toolchain nightly' >&2
  exit 1
}
export CARGO_TARGET_DIR=$CARGO_TARGET_DIR/miri MIRIFLAGS=-Zmiri-disable-isolation
# The one that is skipped parses 30,000 messages, which takes many minutes here; `make fuzz` does more of that.
cargo +nightly miri test -p atoll-fuse --lib -- \
  abi:: request:: reply::tests:: slots::layout:: slots::pool:: device::mountinfo:: --skip no_message_makes_the_parser_panic
cargo +nightly miri test -p atoll-client --lib -- arena::layout::
