# Cases about faults and what comes after them.
# shellcheck shell=bash disable=SC2154

# steady NAMESPACE NODE: a namespace with a pod on a node that counts in a file of its own.
steady() {
  namespace "$1"
  apply <<YAML
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: $1}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Mi}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: steady, namespace: $1}
spec:
  replicas: 1
  serviceName: steady
  selector: {matchLabels: {app: steady}}
  template:
    metadata: {labels: {app: steady}}
    spec:
      nodeSelector: {kubernetes.io/hostname: $2}
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: ghcr.io/atoll-dev/workload:VERSION
        command: [bash, -c, 'echo start >>/data/starts; exec python3 -m http.server 8080 --directory /data']
        volumeMounts: [{name: data, mountPath: /data}]
      volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
YAML
  rolled_out "$1" statefulset/steady
}
starts() { execute "$1" steady-0 wc -l /data/starts | cut -d' ' -f1; }
address() { value '{.status.podIP}' -n "$1" get pod steady-0; }
node_state() { value '{.status.conditions[?(@.type=="Ready")].status}' get node "$1"; }
node_is() { [ "$(node_state "$1")" = "$2" ]; }
# answers ADDRESS: does the pod's server, asked from the control namespace?
answers() { inside control bash -c 'exec 3<>"/dev/tcp/$0/8080" && printf "GET /starts HTTP/1.0\r\n\r\n" >&3 && timeout 2 grep -q start <&3' "$1"; }

# Each alone, and no container notices.
case_kubelet_and_containerd_restart() {
  local what
  steady restarts node-0
  for what in kubelet containerd; do
    local before
    before=$(pid_of "node-0.$what")
    fault "restart-$what" node-0
    [ "$(pid_of "node-0.$what")" != "$before" ] || problem "$what was not restarted"
  done
  until_true 30 'node-0 to be Ready' node_is node-0 True
  until_true 30 'exec to work again' execute restarts steady-0 true
  equal "$(starts restarts)" 1 'starts of the container'
  equal "$(value '{.status.containerStatuses[0].restartCount}' -n restarts get pod steady-0)" 0 'restarts'
  dispose restarts
}

# Pods run without it.
case_apiserver_restart() {
  local address
  steady apiless node-0
  address=$(address apiless)
  fault stop-apiserver
  ! kubectl get --raw /readyz --request-timeout 2s >/dev/null 2>&1 || problem 'the API server answers'
  until_true 5 'the pod to answer' answers "$address"
  fault start-apiserver
  equal "$(starts apiless)" 1 'starts of the container'
  dispose apiless
}

# A node that nobody hears is NotReady, its pods go on, and it comes back.
case_network_cut() {
  local address
  steady cut node-1
  address=$(address cut)
  until_true 5 'the pod to answer' answers "$address"
  fault cut-network node-1
  ! timeout 3 bash -c "$(declare -f inside answers); STATE=$STATE; answers $address" 2>/dev/null || problem 'the cut cable carries something'
  until_true 60 'node-1 to be unknown' node_is node-1 Unknown
  fault mend-network node-1
  until_true 30 'node-1 to be Ready' node_is node-1 True
  until_true 10 'the pod to answer' answers "$address"
  equal "$(starts cut)" 1 'starts of the container'
  dispose cut
}

# A rate holds, and so does a share of lost packets.
case_slow_and_lossy_links() {
  local address start took lost
  steady links node-1
  address=$(address links)
  execute links steady-0 dd if=/dev/zero of=/data/file bs=1M count=2 2>/dev/null
  fault limit-rate node-1 8mbit
  start=$EPOCHREALTIME
  inside control bash -c 'exec 3<>"/dev/tcp/$0/8080" && printf "GET /file HTTP/1.0\r\n\r\n" >&3 && cat <&3' "$address" >/dev/null
  took=$(seconds "$start")
  # 2 MiB at 1 MB/s, the first 128 KiB for nothing.
  awk -v took="$took" 'BEGIN { exit !(took >= 1.5) }' || problem "2 MiB at 8 Mbit/s took only $took s"
  fault clear-link node-1
  fault drop node-1 40
  # Both ways: 36 % of the answers come.
  lost=$(inside control ping -q -i 0.01 -W 1 -c 200 "$(node_address node-1)" | sed -n 's/.* \([0-9]*\)[.0-9]*% packet loss.*/\1/p')
  [ "$lost" -ge 45 ] && [ "$lost" -le 80 ] || problem "$lost % were lost instead of 64"
  fault clear-link node-1
  lost=$(inside control ping -q -i 0.01 -W 1 -c 50 "$(node_address node-1)" | sed -n 's/.* \([0-9]*\)[.0-9]*% packet loss.*/\1/p')
  equal "$lost" 0 'packets lost on the mended link'
  dispose links
}

# Everything on a node dies at once; its disk and its pods are back when it is.
case_power_cut() {
  local start
  steady power node-2
  start=$EPOCHREALTIME
  fault power-off node-2
  until_true 60 'node-2 to be NotReady' node_is node-2 Unknown
  printf '      NotReady after %s s\n' "$(seconds "$start")"
  start=$EPOCHREALTIME
  fault power-on node-2
  until_true 60 'node-2 to be Ready' node_is node-2 True
  until_true 90 'the pod to have started again' again power 2
  printf '      the pod is back %s s after the power\n' "$(seconds "$start")"
  kubectl -n power wait --for=condition=Ready pod/steady-0 --timeout=60s >/dev/null

  # A new disk: the node comes back, its volumes don't.
  fault power-off node-2
  fault wipe-disk node-2
  fault power-on node-2
  until_true 60 'node-2 to be Ready' node_is node-2 True
  [ -z "$(ls "$STATE/nodes/node-2/disk/volumes")" ] || problem 'the new disk has volumes'
  kubectl delete namespace power --wait=false >/dev/null
  kubectl -n power delete pod steady-0 --force --grace-period=0 >/dev/null 2>&1 || true
  until_true 60 'the volume to be deleted' no_volumes power
}
again() { [ "$(starts "$1" 2>/dev/null)" = "$2" ]; }
