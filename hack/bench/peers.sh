# Other distributed file systems with three copies, beside which hack/bench.sh measures Atoll. Sourced by it.
# 'hack/setup.sh peers' installs them. Each runs in a network namespace of its own, with an address that is none of the
# loopback's: both refuse that one for servers. Nothing of theirs outside of the run's folder is read or changed.

declare -A holder

# namespace NAME ADDRESS…: a network and a mount namespace of its own, with these addresses.
namespace() {
  local name=$1 address ours
  shift
  unshare --net --mount --propagation private sleep infinity &
  holder[$name]=$!
  disown $!
  ours=$(readlink /proc/self/ns/net)
  for _ in $(seq 100); do
    [ "$(readlink "/proc/${holder[$name]}/ns/net")" = "$ours" ] || break
    sleep 0.02
  done
  within "$name" ip link set lo up
  within "$name" ip link add near type veth peer name far
  for address in "$@"; do within "$name" ip address add "$address/24" dev near; done
  within "$name" ip link set near up
  within "$name" ip link set far up
}

# within NAME COMMAND…: runs it in the network of the target; server NAME … with its view of the file systems, too.
within() { local name=$1; shift; nsenter --net="/proc/${holder[$name]}/ns/net" "$@"; }
server() { local name=$1; shift; nsenter --net="/proc/${holder[$name]}/ns/net" --mount="/proc/${holder[$name]}/ns/mnt" "$@"; }

# inhabitants NAME: the processes in the target's network but for the one that holds it.
inhabitants() {
  local network link pid
  network=$(readlink "/proc/${holder[$1]:-none}/ns/net") || return 0
  for link in /proc/[0-9]*/ns/net; do
    pid=${link#/proc/}
    pid=${pid%%/*}
    [ "$pid" != "${holder[$1]}" ] && [ "$(readlink "$link" 2>/dev/null)" = "$network" ] && printf '%s ' "$pid"
  done || true
}

# clear NAME: unmounts, and ends all that runs in the target's network.
clear_namespace() {
  local all
  unmount "${mountpoint[$1]}"
  read -r -a all <<<"$(inhabitants "$1")"
  [ ${#all[@]} -gt 0 ] || return 0
  kill -TERM "${all[@]}" 2>/dev/null || true
  ended 20 "${all[@]}" || kill -KILL "${all[@]}" 2>/dev/null || true
}

# close_namespace NAME: the namespaces are gone when nobody is in them.
close_namespace() {
  [ -z "${holder[$1]:-}" ] || kill -KILL "${holder[$1]}" 2>/dev/null || true
}

### MooseFS: a master, three chunk servers, a mount.

start_moosefs() {
  local name=$1 data=$base/data/$1 log=$base/log/$1 number new=
  mountpoint[$name]=$base/mnt/$name
  if [ ! -e "$data" ]; then
    new=yes
    namespace "$name" 10.98.1.1 10.98.1.2 10.98.1.3 10.98.1.4
    mkdir -p "$data/master" "${mountpoint[$name]}"
    cp /var/lib/mfs/metadata.mfs.empty "$data/master/metadata.mfs"
    echo '* / rw,alldirs,admin,maproot=0:0' >"$data/exports"
    # As root and with the ordinary priority, as everything else here.
    printf '%s\n' 'WORKING_USER = root' 'WORKING_GROUP = root' 'NICE_LEVEL = 0' "DATA_PATH = $data/master" \
      "EXPORTS_FILENAME = $data/exports" 'MATOML_LISTEN_HOST = 10.98.1.1' 'MATOCS_LISTEN_HOST = 10.98.1.1' \
      'MATOCL_LISTEN_HOST = 10.98.1.1' >"$data/master.cfg"
    for number in 2 3 4; do
      mkdir -p "$data/chunks-$number/state" "$data/chunks-$number/disk"
      echo "$data/chunks-$number/disk" >"$data/chunks-$number/disks"
      printf '%s\n' 'WORKING_USER = root' 'WORKING_GROUP = root' 'NICE_LEVEL = 0' \
        "DATA_PATH = $data/chunks-$number/state" "HDD_CONF_FILENAME = $data/chunks-$number/disks" \
        'MASTER_HOST = 10.98.1.1' "BIND_HOST = 10.98.1.$number" "CSSERV_LISTEN_HOST = 10.98.1.$number" \
        >"$data/chunks-$number.cfg"
    done
  fi
  within "$name" mfsmaster -c "$data/master.cfg" start >>"$log" 2>&1 || { tail "$log" >&2; fail "MooseFS's master doesn't start"; }
  for number in 2 3 4; do
    within "$name" mfschunkserver -c "$data/chunks-$number.cfg" start >>"$log" 2>&1 ||
      { tail "$log" >&2; fail "a chunk server of MooseFS doesn't start"; }
  done
  within "$name" mfsmount -o mfsnice=0 -H 10.98.1.1 "${mountpoint[$name]}" >>"$log" 2>&1 || { tail "$log" >&2; fail "MooseFS doesn't mount"; }
  answers "$name" "$log"
  if [ -n "$new" ]; then
    within "$name" mfssetsclass 3CP "${mountpoint[$name]}" >>"$log" 2>&1 || within "$name" mfssetgoal 3 "${mountpoint[$name]}" >>"$log" 2>&1
    # What is removed is gone at once, as everywhere else: a day's rubbish would fill the disk.
    within "$name" mfssettrashtime 0 "${mountpoint[$name]}" >>"$log" 2>&1
  fi
  # It is usable once a file can have its copies.
  for number in $(seq 400); do
    if { echo probe >"${mountpoint[$name]}/probe"; } 2>/dev/null &&
      [ "$(within "$name" mfsfileinfo "${mountpoint[$name]}/probe" 2>/dev/null | grep -c 'copy [123]')" = 3 ]; then break; fi
    [ "$number" -lt 400 ] || fail 'MooseFS makes no three copies'
    sleep 0.05
  done
  rm -f "${mountpoint[$name]}/probe"
  pids[$name]=$(inhabitants "$name")
}

### GlusterFS: a replicated volume of three bricks, its daemons, a mount.

start_glusterfs() {
  local name=$1 data=$base/data/$1 log=$base/log/$1 folder new= number
  mountpoint[$name]=$base/mnt/$name
  if [ ! -e "$data" ]; then
    new=yes
    namespace "$name" 10.98.2.1
    mkdir -p "${mountpoint[$name]}"
    # Where its paths are fixed it finds folders of the run.
    for folder in /var/lib/glusterd /var/log/glusterfs /run; do
      mkdir -p "$data/state$folder" "$folder"
      [ "$folder" != /var/lib/glusterd ] || cp -a "$folder/." "$data/state$folder/"
      server "$name" mount --bind "$data/state$folder" "$folder"
    done
    mkdir -p "$data/state/run/gluster"
  fi
  server "$name" glusterd >>"$log" 2>&1 || { tail "$log" >&2; fail "glusterd doesn't start"; }
  gluster() { server "$name" /usr/sbin/gluster --mode=script "$@" >>"$log" 2>&1; }
  for number in $(seq 100); do
    gluster volume list && break
    [ "$number" -lt 100 ] || { tail "$log" >&2; fail "glusterd doesn't answer"; }
    sleep 0.1
  done
  if [ -n "$new" ]; then
    mkdir -p "$data/brick-"{1,2,3}
    gluster volume create bench replica 3 10.98.2.1:"$data"/brick-{1,2,3} force || { tail "$log" >&2; fail 'GlusterFS makes no volume'; }
    gluster volume start bench || { tail "$log" >&2; fail "GlusterFS's volume doesn't start"; }
  fi
  within "$name" glusterfs --volfile-server=10.98.2.1 --volfile-id=bench --log-file="$log.mount" "${mountpoint[$name]}" ||
    { tail "$log.mount" >&2; fail "GlusterFS doesn't mount"; }
  answers "$name" "$log.mount"
  # It is usable once all bricks have what is written.
  for number in $(seq 400); do
    if { echo probe >"${mountpoint[$name]}/probe-$number"; } 2>/dev/null &&
      [ "$(find "$data/brick-"{1,2,3} -maxdepth 1 -name "probe-$number" | wc -l)" = 3 ]; then break; fi
    [ "$number" -lt 400 ] || fail 'GlusterFS makes no three copies'
    sleep 0.05
  done
  rm -f "${mountpoint[$name]}"/probe-*
  pids[$name]=$(inhabitants "$name")
}
