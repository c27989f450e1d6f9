#!/usr/bin/env bash
# Installs the Debian packages that building and testing Atoll needs. Does nothing, quickly and without the
# network, when all of them are there; otherwise says what it installs and why. Needs root (or sudo) only then.
#
#   hack/setup.sh          all of them
#   hack/setup.sh build    only what a build needs
#   hack/setup.sh verify   what a build and 'make verify' need, cargo-deny among it
#   hack/setup.sh kube     what a build, a test cluster and its images need
#   hack/setup.sh peers    other distributed file systems, beside which 'make bench ARGS=--peers' measures: never without
#                          being asked for
#   hack/setup.sh --list   print them, install nothing
set -euo pipefail

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# bindgen reads RocksDB's C header through libclang. On Debian 12 the library and its own headers are 7 MB; the
# package libclang-dev, whose name is the same in every release, brings 30 MB of objects nobody links.
. /etc/os-release
case ${ID:-}${VERSION_ID:-} in
  debian12) clang=(libclang1-14 libclang-common-14-dev) ;;
  *) clang=(libclang-dev) ;;
esac

build_packages=$(
  cat <<PACKAGES
ca-certificates         downloads of crates
g++                     compiles RocksDB, links every program
pkg-config              build scripts of crates look for libraries with it
make                    the targets of the Makefile
util-linux              flock: two builds at once take turns; losetup, mount
$(printf '%s reads a C header for the RocksDB bindings\n' "${clang[@]}")
PACKAGES
)
test_packages=$(
  cat <<'PACKAGES'
fuse3                   fusermount3: mounting and unmounting as an ordinary user
acl                     setfacl, getfacl: access lists in the tests
attr                    setfattr, getfattr: extended attributes in the tests
e2fsprogs               mkfs.ext4: the disk that loses power, and the file system to compare with
git                     real program: clone and fsck of a repository
sqlite3                 real program: transactions and an integrity check
tar                     real program: a tree with every type of file
xz-utils                real program: packed trees
rsync                   real program: the second run has nothing to do
fio                     real program: random writes, verified; the benchmarks
dbench                  real program: a file server's load
procps                  memory and processes of the demonstration
PACKAGES
)
kube_packages=$(
  cat <<'PACKAGES'
containerd              the container runtime of a test cluster's nodes
runc                    starts containers
containernetworking-plugins  pods' networks
iptables                host ports of pods
nftables                Services of a test cluster; faults of its links
conntrack               kube-proxy forgets connections to pods that are gone
iproute2                namespaces and links of nodes
iputils-ping            packets that were lost
openssl                 certificates of a test cluster
procps                  what a cluster's processes are
xfsprogs                volumes of a fixed size
mmdebstrap              the images' Debian packages
PACKAGES
)
peer_packages=$(
  cat <<'PACKAGES'
moosefs-master          MooseFS: the server of its metadata
moosefs-chunkserver     MooseFS: the servers of its data
moosefs-client          MooseFS: its mounts
glusterfs-server        GlusterFS: servers and mounts
iproute2                networks of their own
PACKAGES
)

case ${1:-all} in
  all) packages=$build_packages$'\n'$test_packages$'\n'$kube_packages ;;
  kube) packages=$build_packages$'\n'$kube_packages ;;
  build | verify) packages=$build_packages ;;
  peers) packages=$peer_packages ;;
  --list) printf '%s\n' "$build_packages" "$test_packages" "$kube_packages" "$peer_packages"; exit 0 ;;
  *) fail "unknown argument '$1' (none, 'build', 'verify', 'kube', 'peers' or '--list')" ;;
esac

missing=()
while read -r package why; do
  # dpkg-query prints a word for installed, half-installed and removed packages, and fails for unknown ones.
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$state" = installed ] && continue
  missing+=("$package")
  say "missing: $package ($why)"
done <<<"$packages"

if [ ${#missing[@]} -gt 0 ]; then
  as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || fail "run this as root: apt-get install --no-install-recommends ${missing[*]}"
    as_root=(sudo)
  fi
  say "apt-get update, then install ${#missing[@]} packages"
  log=$(mktemp)
  list=$(mktemp)
  policy=/usr/sbin/policy-rc.d
  made_policy=
  clean() {
    rm -f "$log" "$list"
    [ -z "$made_policy" ] || "${as_root[@]}" rm -f "$policy"
  }
  trap clean EXIT
  options=(-o DPkg::Lock::Timeout=600)
  if [ "${1:-}" = peers ]; then
    # A release of Debian keeps the versions of the year it was made in; its backports have those of today. apt knows
    # about them for this once.
    archive=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' \
      "Codename: ${VERSION_CODENAME:-}" 2>/dev/null | head -n 1 || true)
    if [ "${ID:-}" = debian ] && [ -n "$archive" ]; then
      keys=/usr/share/keyrings/debian-archive-keyring.gpg
      cat /etc/apt/sources.list >"$list" 2>/dev/null || true
      printf 'deb %s %s %s-backports main\n' "$([ ! -e "$keys" ] || echo "[signed-by=$keys]")" "$archive" "$VERSION_CODENAME" >>"$list"
      chmod 644 "$list"
      options+=(-o "Dir::Etc::SourceList=$list" -o "APT::Default-Release=$VERSION_CODENAME-backports")
    fi
    # Benchmarks start them when they need them, and nobody else.
    if [ ! -e "$policy" ]; then
      made_policy=yes
      printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
      "${as_root[@]}" chmod 755 "$policy"
    fi
  fi
  # apt waits for another apt-get to finish instead of failing; what it prints matters only when it fails.
  apt() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get "${options[@]}" -q -y "$@" >>"$log" 2>&1 </dev/null
  }
  # A mirror that is out of reach must not stop an install from the lists that are there.
  apt update || say "apt-get update had errors, going on with the package lists that are there"
  apt install --no-install-recommends "${missing[@]}" || {
    tail -n 30 "$log" >&2
    fail "apt-get install failed, its last lines are above"
  }
  say "installed: ${missing[*]}"
fi

[ "${1:-all}" != peers ] || exit 0

for tool in cargo rustc; do
  command -v $tool >/dev/null || fail "no $tool: install Rust 1.95 or newer from https://rustup.rs"
done
case ${1:-all} in build | verify) compiles=1 ;; *) compiles= ;; esac
[ -n "$compiles" ] || command -v go >/dev/null || fail 'no go: install Go 1.26 or newer from https://go.dev/dl'
need=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml")
have=$(rustc --version | cut -d' ' -f2)
[ "$(printf '%s\n%s\n' "$need" "${have%%-*}" | sort -V | head -n 1)" = "$need" ] ||
  fail "rustc is $have, Atoll needs $need or newer: rustup update"

# Containers often come without the device file although the kernel has the module.
if [ -z "$compiles" ] && [ ! -c /dev/fuse ]; then
  if [ "$(id -u)" -eq 0 ]; then
    modprobe fuse 2>/dev/null || true
    [ -c /dev/fuse ] || mknod -m 666 /dev/fuse c 10 229 || true
  fi
  [ -c /dev/fuse ] || fail "no /dev/fuse: load the kernel module 'fuse', or start the container with --device /dev/fuse"
fi

if [ "${1:-all}" = verify ]; then "$(dirname "$0")/deny.sh" --install; fi
