# Nodes: each a process tree in namespaces of its own. Sourced after common, network and pki.
# shellcheck shell=bash

# in_node NODE COMMAND...: runs a command on a node, as one of its processes.
in_node() {
  local node=$1 init
  shift
  init=$(pid_of "$node.init") || { say "$node is powered off"; return 1; }
  (
    join "$node/daemons"
    exec nsenter --target "$init" --mount --uts --ipc --net --pid -- "$@" 9<&-
  )
}

# start_on NODE NAME COMMAND...: a daemon on a node. Its record is that of the nsenter which waits for it.
start_on() {
  local node=$1 name=$2 init
  shift 2
  init=$(pid_of "$node.init") || fail "$node is powered off"
  start "$node.$name" "$node/daemons" nsenter --target "$init" --mount --uts --ipc --net --pid -- "$@"
}

containerd_config() {
  cat <<TOML
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10"
  # Without CAP_SYS_RESOURCE runc can't lower a score, and says so in words that nobody understands.
  restrict_oom_score_adj = true
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$STATE/nodes/$1/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
TOML
}

# Point to point instead of a bridge: all traffic of pods is routed, so that Services work between two pods of a node
# too, whatever the machine's bridges do with packet filters.
cni_config() {
  cat <<JSON
{
  "cniVersion": "0.4.0", "name": "pods",
  "plugins": [
    {"type": "ptp", "ipMasq": false,
     "ipam": {"type": "host-local", "subnet": "$(pod_range "$1")", "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
JSON
}

kubelet_config() {
  cat <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: $STATE/pki/ca.crt}
authorization: {mode: Webhook}
clusterDomain: cluster.local
clusterDNS: ["$(dns_service_address)"]
# Pods' names are the cluster's; there is nobody else to ask.
resolvConf: ""
cgroupDriver: cgroupfs
cgroupRoot: /$CGROUP/$1
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
nodeStatusUpdateFrequency: 4s
# All nodes share one disk, which may be rather full: pods are not evicted and images not removed for that.
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
volumePluginDir: /var/lib/kubelet/volumeplugins
YAML
}

kube_proxy_config() {
  cat <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: $1
oomScoreAdj: 0
clientConnection: {kubeconfig: $STATE/kubeconfig/kube-proxy}
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
# A namespace may not set the machine's limits.
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
YAML
}

# boot NODE: its namespaces, folders and containerd. Its disk is as it was left.
boot() {
  local node=$1 folder=$STATE/nodes/$1
  running "$node.init" && return
  mkdir -p "$folder"/{cni,disk/{kubelet,containerd,log,volumes}} "$STATE/network-volumes"
  [ -s "$folder/disk/machine-id" ] || openssl rand -hex 16 >"$folder/disk/machine-id"
  containerd_config "$node" >"$folder/containerd.toml"
  cni_config "$node" >"$folder/cni/10-pods.conflist"
  kubelet_config "$node" >"$folder/kubelet.yaml"
  kube_proxy_config "$node" >"$folder/kube-proxy.yaml"
  make_node_certificates "$node"
  end_group "$node"
  make_group "$node/daemons"
  rm -f "$STATE/run/$node".*
  make_node_network "$node"
  start "$node.power" "$node/daemons" nsenter --net="$STATE/netns/$node" \
    unshare --fork --kill-child --pid --mount --ipc --uts --propagation private \
    "$KUBE_DIR/lib/node-init" "$node" "$STATE" "$ATOLL_CACHE/kube" "$KUBE_DIR" "$(program pause)"
  until_true 20 "the first process of $node (see $STATE/log/$node.power.log)" running "$node.init"
  start_containerd "$node"
}

start_containerd() {
  start_on "$1" containerd containerd --config "$STATE/nodes/$1/containerd.toml" --log-level warn
  until_true 20 "containerd of $1 (see $STATE/log/$1.containerd.log)" in_node "$1" ctr version
}

# join_cluster NODE: starts what speaks to the API server.
join_cluster() {
  local node=$1 folder=$STATE/nodes/$1
  start_on "$node" kubelet "$(program kubelet)" --config "$folder/kubelet.yaml" \
    --kubeconfig "$STATE/kubeconfig/$node" --hostname-override "$node" --node-ip "$(node_address "$node")" \
    --node-labels "topology.kubernetes.io/zone=zone-${node#node-},topology.kubernetes.io/region=local" --v 1
  start_on "$node" kube-proxy "$(program kube-proxy)" --config "$folder/kube-proxy.yaml"
}

power_on() {
  boot "$1"
  "$KUBE_DIR/load" --node "$1"
  join_cluster "$1"
}

# power_off NODE: at once and without a word to anybody: the cable first, so that nothing of the end is heard.
power_off() {
  local node=$1 pid
  [ ! -e "$STATE/netns/control" ] || inside control ip link set "$node" down 2>/dev/null || true
  if pid=$(pid_of "$node.power"); then kill -KILL "$pid" 2>/dev/null || true; fi
  until_true 30 "the end of $node's processes" stopped "$node.init" || true
  end_group "$node"
  remove_namespace "$node"
  # The cable goes with the namespace, but not at once.
  [ ! -e "$STATE/netns/control" ] || inside control ip link delete "$node" 2>/dev/null || true
  rm -f "$STATE/run/$node".*
}

node_ready() { [ "$(kubectl get node "$1" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}' 2>/dev/null)" = True ]; }
