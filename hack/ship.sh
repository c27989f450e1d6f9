#!/usr/bin/env bash
# Builds the programs as they are shipped (profile `release`) and prints the folder they are in. Beside each lies what a
# debugger needs of it, NAME.debug, which its first look is for; in the program itself there are no debug sections.
#
#   hack/ship.sh
#   hack/ship.sh --next        a build that stands for the next release: one feature level more, and the version after this
#                              one; into shipped-next
#   hack/ship.sh --selected    only prints the packages and features, as arguments of cargo: whoever builds some of them
#                              with all of these compiles no library again
#
# Only what users run is built, without what tests and simulations switch on in a build of the whole workspace.
set -euo pipefail
cd "$(dirname "$0")/.."
. hack/env.sh

programs=(atoll-fs atoll-operator atoll-csi kubectl-atoll)
features=atoll-fs/servers
shipped=$CARGO_TARGET_DIR/shipped
if [ "${1-}" = --next ]; then
  programs=(atoll-fs atoll-operator)
  features+=,atoll-fs/next-release,atoll-operator/next-release
  shipped=$CARGO_TARGET_DIR/shipped-next
  ATOLL_VERSION=$(hack/images/version --next)
  export ATOLL_VERSION
fi
selected=("${programs[@]/#/--package=}" --no-default-features "--features=$features")
if [ "${1-}" = --selected ]; then
  echo "${selected[@]}"
  exit
fi

hack/cargo.sh build --release ${CI:+--locked} "${selected[@]}" --bins >&2 </dev/null

mkdir -p "$shipped"
exec 9>"$shipped/.lock"
flock 9
for name in "${programs[@]}"; do
  built=$CARGO_TARGET_DIR/release/$name
  [ "$shipped/$name" -nt "$built" ] && continue
  objcopy --only-keep-debug "$built" "$shipped/$name.debug"
  # Under another name first: it may be running.
  (cd "$shipped" && objcopy --strip-all --add-gnu-debuglink="$name.debug" "$built" "$name.tmp" && mv "$name.tmp" "$name")
done
echo "$shipped"
