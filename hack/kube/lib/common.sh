# What every command of hack/kube shares: names, folders, processes, cgroups, waiting. Sourced, never run.
# shellcheck shell=bash

KUBE_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
REPOSITORY=$(cd "$KUBE_DIR/../.." && pwd)
. "$REPOSITORY/hack/env.sh"

# The cluster's name; several clusters live side by side, each with a name of its own.
NAME=${ATOLL_KUBE_NAME:-atoll}
# Where the state of all clusters is, and of this one.
CLUSTERS=${ATOLL_KUBE_ROOT:-/var/lib/atoll-kube}
STATE=$CLUSTERS/$NAME
# Below the root of every cgroup hierarchy. What is in it was started by this cluster and by nobody else.
CGROUP=atoll-kube/$NAME
VERSION=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$REPOSITORY/Cargo.toml")

say() { printf 'kube %s: %s\n' "$NAME" "$*" >&2; }
fail() { say "$*"; exit 1; }

[[ $NAME =~ ^[a-z][a-z0-9-]{0,19}$ ]] ||
  fail "ATOLL_KUBE_NAME is '$NAME': up to 20 lower-case letters, digits and hyphens, a letter first"
[ "$(id -u)" = 0 ] || fail 'needs root: it makes namespaces, mounts and cgroups'

# seconds FROM: how long ago that was, FROM being a value of EPOCHREALTIME.
seconds() { awk -v from="$1" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.1f", to - from }'; }

# until SECONDS WHAT COMMAND...: repeats the command until it succeeds; says what it waited for if it never does.
until_true() {
  local limit=$1 what=$2 end
  shift 2
  end=$((EPOCHSECONDS + limit))
  until "$@" >/dev/null 2>&1; do
    if [ "$EPOCHSECONDS" -ge "$end" ]; then
      say "waited $limit s in vain for $what"
      return 1
    fi
    sleep 0.1
  done
}

# lock: one command at a time changes a cluster. The lock is the state's folder, so that nothing is left when it goes.
lock() {
  local end=$((EPOCHSECONDS + 600))
  while :; do
    mkdir -p "$STATE"
    exec 9<"$STATE"
    flock -n 9 || { say 'another command is at work on this cluster, waiting for it'; flock -w 600 9 || fail 'it takes more than 10 minutes'; }
    # A `down` may have removed the folder meanwhile.
    [ "$(stat -L -c %i /proc/self/fd/9)" = "$(stat -c %i "$STATE" 2>/dev/null)" ] && return
    [ "$EPOCHSECONDS" -lt "$end" ] || fail "can't lock $STATE"
  done
}

# ---- Processes. A record is "PID START": the pid may be another process's by now, pid and start time together not.

# born PID: when it started, in clock ticks since the machine did; nothing if there is none.
born() { sed -n 's/.*) //p' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# record NAME PID
record() {
  echo "$2 $(born "$2")" >"$STATE/run/$1.pid.tmp"
  mv "$STATE/run/$1.pid.tmp" "$STATE/run/$1.pid"
}

# pid_of NAME: the recorded process, if it still runs.
pid_of() {
  local pid start state
  read -r pid start 2>/dev/null <"$STATE/run/$1.pid" || return 1
  [ -n "$start" ] && [ "$(born "$pid")" = "$start" ] || return 1
  # A process that ended and was not waited for has nothing left but its entry.
  state=$(sed -n 's/.*) \(.\).*/\1/p' "/proc/$pid/stat" 2>/dev/null)
  [ -n "$state" ] && [ "$state" != Z ] || return 1
  echo "$pid"
}

running() { pid_of "$1" >/dev/null; }
stopped() { ! running "$1"; }

# start NAME GROUP COMMAND...: a daemon in the cluster's cgroup GROUP; its output goes to log/NAME.log.
start() {
  local name=$1 group=$2
  shift 2
  running "$name" && return
  (
    join "$group"
    # Descriptors of this script, its lock among them, are not for what outlives it.
    exec 9<&- </dev/null >>"$STATE/log/$name.log" 2>&1
    exec setsid "$@"
  ) &
  record "$name" $!
  disown
}

# children PID: of one process.
children() { cat "/proc/$1/task/$1/children" 2>/dev/null || true; }

# stop NAME [SECONDS [child]]: asks it to end, and ends it if it doesn't. 'child': the record is of a nsenter that waits
# for the process that is meant.
stop() {
  local name=$1 patience=${2:-5} pid target
  if pid=$(pid_of "$name"); then
    target=$pid
    if [ "${3:-}" = child ]; then target=$(children "$pid"); fi
    # shellcheck disable=SC2086
    if [ "$patience" -gt 0 ] && kill -TERM $target 2>/dev/null; then
      for _ in $(seq $((patience * 20))); do running "$name" || break; sleep 0.05; done
    fi
    # shellcheck disable=SC2086
    if running "$name"; then kill -KILL $target 2>/dev/null || true; fi
    until_true 20 "the end of $name" stopped "$name"
  fi
  rm -f "$STATE/run/$name.pid"
}

# ---- Cgroups.

# hierarchies: the folders where cgroups are made. On a machine with cgroup v2 alone it is one; where both versions are
# mounted, runc makes groups in the one of version 2 too.
hierarchies() {
  local found
  found=$(awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/mounts)
  [ -n "$found" ] || fail 'no cgroup hierarchy is mounted'
  echo "$found"
}

# make_group GROUP: in every hierarchy, with everything that its parent has.
make_group() {
  local top folder part file
  for top in $(hierarchies); do
    folder=$top
    for part in ${CGROUP//\// } ${1//\// }; do
      # Version 2: a group's controllers are those that its parent hands down.
      if [ -f "$folder/cgroup.controllers" ]; then
        sed 's/\([a-z_]*\)/+\1/g' "$folder/cgroup.controllers" >"$folder/cgroup.subtree_control" 2>/dev/null || true
      fi
      [ -d "$folder/$part" ] || mkdir "$folder/$part" 2>/dev/null || [ -d "$folder/$part" ]
      for file in cpuset.cpus cpuset.mems; do
        if [ -f "$folder/$part/cgroup.clone_children" ] && [ -f "$folder/$part/$file" ] && [ -z "$(cat "$folder/$part/$file")" ]; then
          cat "$folder/$file" >"$folder/$part/$file"
        fi
      done
      folder=$folder/$part
    done
  done
}

# join GROUP: puts the calling shell there.
join() {
  local top
  for top in $(hierarchies); do
    [ ! -d "$top/$CGROUP/$1" ] || echo "$BASHPID" >"$top/$CGROUP/$1/cgroup.procs"
  done
}

# group_pids [GROUP]: every process in it and below.
group_pids() {
  local top
  for top in $(hierarchies); do
    [ -d "$top/$CGROUP${1:+/$1}" ] || continue
    find "$top/$CGROUP${1:+/$1}" -name cgroup.procs -exec cat {} + 2>/dev/null || true
  done | sort -un
}

group_empty() { [ -z "$(group_pids "${1:-}")" ]; }

# end_group [GROUP]: kills everything in it, then removes it in all hierarchies.
end_group() {
  local group=${1:-} top end=$((EPOCHSECONDS + 30))
  until group_empty "$group"; do
    # shellcheck disable=SC2046
    kill -KILL $(group_pids "$group") 2>/dev/null || true
    [ "$EPOCHSECONDS" -lt "$end" ] || { say "processes that don't end: $(group_pids "$group" | tr '\n' ' ')"; return 1; }
    sleep 0.05
  done
  for top in $(hierarchies); do
    [ -d "$top/$CGROUP${group:+/$group}" ] || continue
    until_true 10 "the cgroups of $CGROUP${group:+/$group} to go" remove_tree "$top/$CGROUP${group:+/$group}" || return 1
  done
}

# remove_tree FOLDER: a cgroup and those below; deepest first, since only empty ones can go.
remove_tree() {
  [ -d "$1" ] || return 0
  find "$1" -depth -type d -exec rmdir {} + 2>/dev/null || true
  [ ! -d "$1" ]
}

# ---- The programs.

# program NAME: the path of one that hack/kube/build makes; builds it if it is missing.
program() { "$KUBE_DIR/bin" "$1"; }

# nodes: the names of all nodes that were ever made in this cluster.
nodes() { (cd "$STATE/nodes" 2>/dev/null && ls -d node-* 2>/dev/null || true) | sort -V; }

require_up() { [ -e "$STATE/netns/control" ] && running kube-apiserver || fail "there is no such cluster running: make kube-up (ATOLL_KUBE_NAME=$NAME)"; }

require_node() { [ -d "$STATE/nodes/$1" ] || fail "no node '$1': $(nodes | tr '\n' ' ')"; }
