#!/usr/bin/env bash
# Builds what a benchmark measures.
#
#   hack/bench/build.sh PROFILE           this checkout's programs
#   hack/bench/build.sh PROFILE COMMIT    another commit's atoll-fs, and prints where it is
#
# Another commit is built outside of the checkout, below the cache folder: its sources in a folder of their own,
# taken from git, with a build folder that all such commits share and that is kept. So going back and forth
# compiles nothing again in the checkout, and the next commit compiles what differs. The program that comes of it
# is kept, too. It is built in *this* checkout's profiles, whatever that commit's were: what differs is the code.
set -euo pipefail

cd "$(dirname "$0")/../.."
. hack/env.sh

say() { printf 'bench: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

profile=$1
# Cargo's folder for it: the one name that isn't the profile's.
folder=$profile
[ "$profile" != dev ] || folder=debug
# Programs of other commits that are kept; the ones that were used longest ago go.
KEPT_MAX=6

# profiles: from a Cargo.toml, the tables that say how to compile.
profiles() { awk '/^\[/ { on = /^\[profile\./ } on'; }

# In the profile that is shipped only what is shipped, without what tests switch on: the packages of hack/ship.sh.
selected=(--workspace)
if [ "$profile" = release ]; then
  read -r -a selected <<<"$(hack/ship.sh --selected)"
fi

if [ $# = 1 ]; then
  [ "$profile" = release ] ||
    exec hack/cargo.sh build --workspace --bin atoll-fs --bin atoll-bench --example passthrough --profile "$profile"
  hack/cargo.sh build "${selected[@]}" --bin atoll-fs --release
  exec hack/cargo.sh build --package atoll-bench --package atoll-fuse --bin atoll-bench --example passthrough --release
fi

commit=$(git rev-parse --quiet --verify "$2^{commit}") || fail "there is no commit '$2'"
here=$ATOLL_CACHE/against
wanted=$(profiles <Cargo.toml)
key=${commit:0:12}-$profile-$(printf '%s\n' "$wanted" "$(rustc --version)" | sha256sum | cut -c1-8)
kept=$here/kept/$key/atoll-fs
mkdir -p "$here/kept"
exec 8>"$here/lock"
flock -n 8 || { say "another run builds a commit, waiting for it"; flock 8; }

if [ ! -x "$kept" ]; then
  say "building $(git log -1 --format='%h (%s)' "$commit")"
  rm -rf "$here/source"
  mkdir -p "$here/source"
  git archive "$commit" | tar -x -C "$here/source"
  [ -x "$here/source/hack/cargo.sh" ] || fail "that commit has no hack/cargo.sh: it can't be built this way"
  { awk '/^\[/ { off = /^\[profile\./ } !off' "$here/source/Cargo.toml"; printf '%s\n' "$wanted"; } >"$here/Cargo.toml"
  mv "$here/Cargo.toml" "$here/source/Cargo.toml"
  # The libraries that this checkout was built with are most of what it needs. Only whole ones, so under the lock. The
  # record of what was compiled when (hack/cargo.sh) comes along; one that was there knows nothing of these files.
  if [ ! -d "$here/target/$folder" ] && [ -d "$CARGO_TARGET_DIR/$folder/.fingerprint" ]; then
    mkdir -p "$here/target/$folder.new/deps"
    flock "$CARGO_TARGET_DIR/.atoll-lock" sh -ec '
      cp -a "$1/.fingerprint" "$1/build" "$2/"
      find "$1/deps" -maxdepth 1 -type f \( -name "*.rlib" -o -name "*.rmeta" -o -name "*.so" -o -name "*.d" \) \
        -exec cp -p -t "$2/deps" {} +
      if [ -e "$2/../.atoll-stamps" ]; then rm "$2/../.atoll-stamps"; else cp -p "$1/../.atoll-stamps" "$2/../"; fi
    ' sh "$CARGO_TARGET_DIR/$folder" "$here/target/$folder.new"
    mv "$here/target/$folder.new" "$here/target/$folder"
  fi
  # Nothing that is started inherits the lock.
  (
    cd "$here/source"
    CARGO_TARGET_DIR=$here/target hack/cargo.sh build "${selected[@]}" --bin atoll-fs --profile "$profile"
  ) >&2 8>&-
  mkdir -p "$here/kept/$key.new"
  cp "$here/target/$folder/atoll-fs" "$here/kept/$key.new/atoll-fs"
  rm -rf "${kept%/*}"
  mv "$here/kept/$key.new" "${kept%/*}"
  rm -rf "$here/source"
fi
touch "${kept%/*}"
find "$here/kept" -mindepth 1 -maxdepth 1 -printf '%T@ %p\n' | sort -rn | tail -n +$((KEPT_MAX + 1)) | cut -d' ' -f2- |
  while read -r old; do rm -rf "$old"; done
printf '%s\n' "$kept"
