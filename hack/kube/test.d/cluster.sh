# Cases about the cluster as a whole.
# shellcheck shell=bash disable=SC2154

# From nothing to Ready nodes with zones, as fast as README.md says.
case_nodes_ready() {
  local start=$EPOCHREALTIME took node
  "$KUBE_DIR/down" 2>/dev/null
  NODES=$nodes "$KUBE_DIR/up"
  took=$(seconds "$start")
  printf '      %s nodes Ready after %s s\n' "$nodes" "$took"
  for node in $(seq 0 $((nodes - 1))); do
    equal "$(value '{.metadata.labels.topology\.kubernetes\.io/zone}' get node "node-$node")" "zone-$node" "zone of node-$node"
  done
  equal "$(value '{.metadata.name}' get storageclass local)" local 'the class'
  start=$EPOCHREALTIME
  "$KUBE_DIR/load" "${archives[@]}"
  printf '      images loaded in %s s\n' "$(seconds "$start")"
}

# Nothing is started twice, nothing restarted.
case_up_twice() {
  local before
  before=$(cat "$STATE"/run/*.pid | sort)
  NODES=$nodes "$KUBE_DIR/up" 2>/dev/null
  equal "$(cat "$STATE"/run/*.pid | sort)" "$before" 'processes'
  "$KUBE_DIR/status" >/dev/null 2>&1
}

# The Dockerfile makes the same image as hack/images/build.
case_dockerfile() { "$REPOSITORY/hack/images/check" 2>&1; }

# Two clusters don't know of each other: the second comes and goes beside the first.
case_two_clusters() {
  local other=$NAME-b before
  before=$(cat "$STATE"/run/*.pid | sort)
  ATOLL_KUBE_NAME=$other NODES=1 "$KUBE_DIR/up" 2>/dev/null
  equal "$(ATOLL_KUBE_NAME=$other "$KUBE_DIR/kubectl" get nodes -o name)" node/node-0 'nodes of the other cluster'
  equal "$(kubectl get nodes -o name | wc -l)" "$nodes" 'nodes of this cluster'
  [ "$(cat "$STATE/slot")" != "$(cat "$CLUSTERS/$other/slot")" ] || problem 'both have the same addresses'
  ATOLL_KUBE_NAME=$other "$KUBE_DIR/down" 2>/dev/null
  [ ! -e "$CLUSTERS/$other" ] || problem "$CLUSTERS/$other is left"
  equal "$(cat "$STATE"/run/*.pid | sort)" "$before" 'processes of this cluster'
  kubectl get --raw /readyz >/dev/null
}

# Removing what is gone is no error, and nothing with its name is left.
case_down_twice() {
  local namespaces
  namespaces=$(for pid in $(group_pids); do readlink /proc/"$pid"/ns/{net,mnt,pid} 2>/dev/null || true; done | sort -u)
  "$KUBE_DIR/down" 2>/dev/null
  "$KUBE_DIR/down" 2>/dev/null
  [ ! -e "$STATE" ] || problem "$STATE is left"
  ! grep -F " $STATE" /proc/self/mountinfo || problem 'mounts are left'
  [ -z "$(find $(hierarchies) -maxdepth 2 -path "*/$CGROUP" 2>/dev/null)" ] || problem 'cgroups are left'
  [ -z "$(losetup --list --noheadings --output BACK-FILE | grep -F "$STATE/" || true)" ] || problem 'loop devices are left'
  # Namespaces live while a process or a mount has them; the machine's own are in the list too. Of what has ended and
  # waits for the machine's init to take note of it the process namespace can still be read.
  local own left
  own=$(readlink /proc/self/ns/{net,mnt,pid})
  left=$(for pid in /proc/[0-9]*; do
    grep -q '^State:[[:space:]][ZX]' "$pid/status" 2>/dev/null || readlink "$pid"/ns/{net,mnt,pid} 2>/dev/null || true
  done | sort -u |
    comm -12 - <(comm -23 <(echo "$namespaces") <(sort <<<"$own")))
  [ -z "$left" ] || problem "processes are left in namespaces $left"
}
