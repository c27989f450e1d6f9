# What hack/bench.sh measures, but for the peers (peers.sh): how each target starts and stops. Sourced by it.
#
# start_KIND NAME … makes the target if it isn't there yet, starts it and returns when its mount point answers; it sets
# mountpoint[NAME] and pids[NAME], the processes that serve it. stop_KIND NAME ends it, so that it can start again.

# alive PID…: true while one of them runs.
alive() {
  local pid
  for pid in "$@"; do ! kill -0 "$pid" 2>/dev/null || return 0; done
  return 1
}

# ended SECONDS PID…: waits for them so long; fails if one still runs then.
ended() {
  local rest=$(($1 * 20))
  shift
  while alive "$@"; do
    [ $((rest -= 1)) -gt 0 ] || return 1
    sleep 0.05
  done
}

# answers NAME LOG PID…: waits until the mount is there and usable; fails if one of the processes ends before.
answers() {
  local name=$1 log=$2 rest=$((MOUNT_SECONDS_MAX * 50)) pid
  shift 2
  until mounted "${mountpoint[$name]}" && stat "${mountpoint[$name]}" >/dev/null 2>&1; do
    for pid in "$@"; do
      kill -0 "$pid" 2>/dev/null || { tail -n 20 "$log" >&2 || true; fail "$name: a process ended at once"; }
    done
    [ $((rest -= 1)) -gt 0 ] || { tail -n 20 "$log" >&2 || true; fail "$name isn't mounted after $MOUNT_SECONDS_MAX s"; }
    sleep 0.02
  done
}

# free_port: one that nobody listens at, and that the system gives to no outgoing connection.
free_port() {
  local candidate
  while :; do
    candidate=$((10000 + RANDOM % 20000))
    [[ " $ports " == *" $candidate "* ]] && continue
    (exec 3<>"/dev/tcp/127.0.0.1/$candidate") 2>/dev/null && continue
    ports+=" $candidate"
    printf -v "$1" %s "$candidate"
    return
  done
}
ports=

### A FUSE file system that hands everything on to a local folder.

start_passthrough() { # start_passthrough NAME ARGUMENT…
  local name=$1 program=$programs/examples/passthrough
  shift
  [ -x "$program" ] || fail "$program is missing: run 'make bench', or hack/bench.sh --build"
  mountpoint[$name]=$base/mnt/$name
  mkdir -p "$base/data/$name" "${mountpoint[$name]}"
  "$program" "$base/data/$name" "${mountpoint[$name]}" "$@" 2>"$base/log/$name" &
  pids[$name]=$!
  disown $!
  answers "$name" "$base/log/$name" "${pids[$name]}"
}

stop_passthrough() {
  unmount "${mountpoint[$1]}"
  # shellcheck disable=SC2086
  kill -TERM ${pids[$1]} 2>/dev/null || true
}

### Atoll in one process: 'atoll-fs local up'.

# serving DATA: the process of the local cluster with that data folder.
serving() {
  local file
  for file in /run/atoll/*.json; do
    [ -e "$file" ] && grep -qF "\"$1\"" "$file" && sed -nE 's/.*"pid": ([0-9]+).*/\1/p' "$file"
  done || true
}

start_local() { # start_local NAME COPIES
  local name=$1 copies=${2%x} data=$base/data/$1 arguments=()
  mountpoint[$name]=$base/mnt/$name
  mkdir -p "${mountpoint[$name]}"
  if [ ! -e "$data" ]; then
    arguments=(--copies "$copies" --capacity "$CAPACITY")
    # An older commit has shared volumes only.
    if [ "$copies" = "$2" ] && "$base/bin/$name" local up --help | grep -q -- --shared; then arguments+=(--shared); fi
  fi
  "$base/bin/$name" local up "${mountpoint[$name]}" --data "$data" "${arguments[@]}" "${up_arguments[@]}" >"$base/log/$name" 2>&1 ||
    { tail -n 20 "$base/log/$name" "$data/log" >&2 2>/dev/null || true; fail "$name doesn't start"; }
  pids[$name]=$(serving "$data")
  [ -n "${pids[$name]}" ] || fail "can't find the process that serves ${mountpoint[$name]}"
}

stop_local() {
  local name=$1 pid
  pid=$(serving "$base/data/$name")
  if ! timeout 130 "$base/bin/$name" local down "${mountpoint[$name]}" --data "$base/data/$name" >/dev/null 2>&1; then
    say "$name doesn't stop; the end of its log:"
    tail -n 5 "$base/data/$name/log" >&2 2>/dev/null || true
    [ -z "$pid" ] || kill -KILL "$pid" 2>/dev/null || true
  fi
  unmount "${mountpoint[$name]}"
}

### Atoll as in Kubernetes: metadata servers, storage servers and the mount are processes of their own.

declare -A cluster_id addresses listens

start_group() { # start_group NAME METADATA-SERVERS STORAGE-SERVERS
  local name=$1 metadata=$2 storage=$3 data=$base/data/$1 program=$base/bin/$1 log=$base/log/$1 new= port number
  local exclusive=() kind=${1%@*}
  [[ $kind != *x ]] || exclusive=(--exclusive)
  mountpoint[$name]=$base/mnt/$name
  mkdir -p "$data" "${mountpoint[$name]}"
  if [ ! -e "$data/key" ]; then
    new=yes
    cluster_id[$name]=$("$program" keygen "$data/key")
    for ((number = 0; number < metadata + storage; number++)); do
      free_port port
      listens[$name]+="127.0.0.1:$port "
      [ "$number" -ge "$metadata" ] || addresses[$name]+="${addresses[$name]:+,}127.0.0.1:$port"
    done
  fi
  local all=(--cluster "${cluster_id[$name]}" --key-file "$data/key") to=(--metadata "${addresses[$name]}") listen
  read -r -a listen <<<"${listens[$name]}"
  pids[$name]=
  for ((number = 0; number < metadata; number++)); do
    "$program" metadata "${all[@]}" --data "$data/metadata-$number" --listen "${listen[number]}" --http 127.0.0.1:0 >>"$log" 2>&1 &
    pids[$name]+="$! "
    disown $!
  done
  if [ -n "$new" ]; then
    for number in $(seq 100); do
      "$program" bootstrap "${all[@]}" "${to[@]}" --capacity "$CAPACITY" --copies $((storage < 3 ? storage : 3)) "${exclusive[@]}" >>"$log" 2>&1 && break
      [ "$number" -lt 100 ] || { tail -n 20 "$log" >&2; fail "$name: no cluster comes of it"; }
      sleep 0.1
    done
  fi
  for ((number = 0; number < storage; number++)); do
    "$program" storage "${all[@]}" "${to[@]}" --data "$data/storage-$number" --listen "${listen[metadata + number]}" \
      --http 127.0.0.1:0 --labels "host=$number" >>"$log" 2>&1 &
    pids[$name]+="$! "
    disown $!
  done
  "$program" mount "${all[@]}" "${to[@]}" "${mountpoint[$name]}" "${up_arguments[@]}" >>"$log" 2>&1 &
  pids[$name]+=$!
  disown $!
  # shellcheck disable=SC2086
  answers "$name" "$log" ${pids[$name]}
  # A file can be written once there is a server for each copy.
  for number in $(seq 200); do
    [ "$("$program" status "${all[@]}" "${to[@]}" -o json 2>/dev/null | grep -c '"alive": true')" -lt "$storage" ] || return 0
    sleep 0.05
  done
  tail -n 20 "$log" >&2
  fail "$name: not all storage servers are there"
}

stop_group() {
  local name=$1 all mount
  read -r -a all <<<"${pids[$name]:-}"
  [ ${#all[@]} -gt 0 ] || return 0
  mount=${all[-1]}
  kill -TERM "$mount" 2>/dev/null || true
  if ! ended 120 "$mount"; then
    say "the mount of $name doesn't stop; the end of its log:"
    tail -n 5 "$base/log/$name" >&2 || true
    kill -KILL "$mount" 2>/dev/null || true
  fi
  unmount "${mountpoint[$name]}"
  kill -TERM "${all[@]}" 2>/dev/null || true
  ended 30 "${all[@]}" || { say "servers of $name don't stop"; kill -KILL "${all[@]}" 2>/dev/null || true; }
}
