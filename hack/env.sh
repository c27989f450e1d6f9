# Where everything that is built goes. Source it: `. hack/env.sh`; the Makefile and every script here do.
# Nothing is built inside the checkout, so that a fresh clone finds what another clone has compiled.

# ATOLL_CACHE: the RocksDB library and, unless CARGO_TARGET_DIR says otherwise, cargo's folder.
export ATOLL_CACHE=${ATOLL_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/atoll}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$ATOLL_CACHE/target}
