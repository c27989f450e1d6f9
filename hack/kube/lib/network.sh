# The network of a cluster: one namespace with a bridge for the control plane, one for each node, no way out.
# Sourced after common.sh.
# shellcheck shell=bash

CLUSTERS_MAX=100
NODES_MAX=99

# Each cluster has 10.B.0.0/16, B being 100 and its slot, although namespaces without a link could all have the same:
# addresses in logs then say whose they are.
#   10.B.0.1        the control plane          10.B.0.(10 + n)      node-n
#   10.B.(16 + n).0/24  the pods of node-n     10.B.128.0/20        Services
slot() { cat "$STATE/slot"; }
base() { echo "10.$((100 + $(slot)))"; }
control_address() { echo "$(base).0.1"; }
node_address() { echo "$(base).0.$((10 + ${1#node-}))"; }
pod_range() { echo "$(base).$((16 + ${1#node-})).0/24"; }
service_range() { echo "$(base).128.0/20"; }
api_service_address() { echo "$(base).128.1"; }
dns_service_address() { echo "$(base).128.10"; }

# take_slot: the lowest that no other cluster has.
take_slot() {
  [ -s "$STATE/slot" ] && return
  local slot
  (
    flock 8
    for slot in $(seq 0 $((CLUSTERS_MAX - 1))); do
      grep -qsx "$slot" "$CLUSTERS"/*/slot || { echo "$slot" >"$STATE/slot"; exit 0; }
    done
    fail "there are $CLUSTERS_MAX clusters on this machine"
  ) 8<"$CLUSTERS"
}

# inside NAMESPACE COMMAND...: never by `ip netns exec`, which mounts a fresh /sys and hides the cgroups.
inside() {
  local namespace=$1
  shift
  nsenter --net="$STATE/netns/$namespace" "$@"
}

has_namespace() { [ "$(stat -f -c %T "$STATE/netns/$1" 2>/dev/null)" = nsfs ]; }

# make_namespace NAMESPACE: kept by a mount of its file in the state's folder. The name comes with it.
make_namespace() {
  has_namespace "$1" && return
  mkdir -p "$STATE/netns"
  : >"$STATE/netns/$1"
  unshare --net="$STATE/netns/$1" true
}

remove_namespace() {
  if has_namespace "$1"; then umount "$STATE/netns/$1" || umount -l "$STATE/netns/$1"; fi
  rm -f "$STATE/netns/$1"
}

# settings NAMESPACE KEY=VALUE...: of the kernel, in that namespace alone.
settings() {
  local namespace=$1 setting
  shift
  for setting in "$@"; do
    # shellcheck disable=SC2016
    inside "$namespace" bash -c '[ ! -e "/proc/sys/net/$1" ] || echo "$2" >"/proc/sys/net/$1"' _ "${setting%=*}" "${setting#*=}"
  done
}

make_control_network() {
  has_namespace control && return
  make_namespace control.new
  settings control.new ipv6/conf/default/disable_ipv6=1 ipv6/conf/all/disable_ipv6=1 \
    bridge/bridge-nf-call-iptables=0 bridge/bridge-nf-call-arptables=0
  inside control.new ip -batch - <<BATCH
link set lo up
link add lan type bridge forward_delay 0
address add $(control_address)/24 dev lan
link set lan up
BATCH
  # Its final name only when it is whole: a bind mount of a bind mount is the same namespace.
  : >"$STATE/netns/control"
  mount --bind "$STATE/netns/control.new" "$STATE/netns/control"
  remove_namespace control.new
}

# make_node_network NODE: its namespace, its cable to the bridge, the ways to other nodes' pods.
make_node_network() {
  local node=$1 other
  if ! has_namespace "$node"; then
    make_namespace "$node"
    settings "$node" ipv6/conf/default/disable_ipv6=1 ipv6/conf/all/disable_ipv6=1 ipv4/ip_forward=1 \
      ipv4/conf/all/rp_filter=0 ipv4/conf/default/rp_filter=0
  fi
  inside control ip link show "$node" >/dev/null 2>&1 ||
    inside control ip link add "$node" type veth peer name eth0 netns "$STATE/netns/$node"
  inside control ip -batch - <<BATCH
link set $node master lan up
route replace $(pod_range "$node") via $(node_address "$node")
BATCH
  # Services' addresses need a route, which the node's own connections are translated before they would use it.
  inside "$node" ip -batch - <<BATCH
link set lo up
address replace $(node_address "$node")/24 dev eth0
link set eth0 up
route replace $(service_range) dev eth0
BATCH
  for other in $(nodes); do
    [ "$other" = "$node" ] || inside "$node" ip route replace "$(pod_range "$other")" via "$(node_address "$other")"
  done
}
