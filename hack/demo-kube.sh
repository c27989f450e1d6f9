#!/usr/bin/env bash
# The whole product on real input: a Kubernetes of three nodes, Atoll installed on it, a PVC that pods on three nodes
# write and read at once, a storage pod and a metadata pod killed with -9 while they write, every byte compared, and
# the PVC deleted without a trace.
#
#   hack/demo-kube.sh
#
# The cluster is left running, to go on by hand; `make kube-down` removes it. ATOLL_KUBE_NAME names another one.
set -euo pipefail

cd "$(dirname "$0")/.."
. hack/env.sh

export ATOLL_KUBE_NAME=${ATOLL_KUBE_NAME:-atoll}
NAMESPACE=atoll-demo
WAIT=180s
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
started=$EPOCHSECONDS

step() { printf '\n\033[1m%s\033[0m\n' "== $* ($((EPOCHSECONDS - started)) s)"; }
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }
kubectl() { hack/kube/kubectl "$@"; }
here() { kubectl --namespace "$NAMESPACE" "$@"; }

# kill_9 NAMESPACE POD: a signal to the processes of its containers, which this machine sees like its own.
kill_9() {
  local uid file pid killed=0
  uid=$(kubectl --namespace "$1" get pod "$2" -o jsonpath='{.metadata.uid}')
  [ -n "$uid" ] || fail "there is no pod $1/$2"
  for file in $(grep -lsF "pod$uid" /proc/[0-9]*/cgroup); do
    pid=${file#/proc/}
    pid=${pid%/cgroup}
    # The pod's own first process stays: what ended is then started again in the same pod.
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = pause ] && continue
    kill -KILL "$pid" 2>/dev/null && killed=$((killed + 1))
  done
  [ "$killed" -gt 0 ] || fail "no process of $1/$2 was found"
}

finish() {
  local status=$?
  [ "$status" = 0 ] && return
  printf '\nthe demonstration FAILED (exit %s); the state of the cluster:\n' "$status" >&2
  kubectl get pods,pvc,fsc -A -o wide >&2 || true
  kubectl get events -A --sort-by=.lastTimestamp 2>/dev/null | tail -n 20 >&2 || true
}
trap finish EXIT

step "A Kubernetes of three nodes"
NODES=3 hack/kube/up

step "Images of this checkout, in every node"
hack/kube/load --build

step "Install"
hack/install.sh

step "A PVC, and a pod on each node that uses it"
kubectl delete namespace "$NAMESPACE" --ignore-not-found --wait --timeout "$WAIT"
kubectl create namespace "$NAMESPACE"
mapfile -t nodes < <(kubectl get nodes -o name | sed 's|node/||' | sort | head -n 3)
[ "${#nodes[@]}" = 3 ] || fail "three nodes are needed, there are ${#nodes[@]}"
{
  cat <<YAML
apiVersion: v1
kind: PersistentVolumeClaim
metadata: { name: shared }
spec:
  accessModes: [ReadWriteMany]
  storageClassName: atoll
  resources: { requests: { storage: 4Gi } }
YAML
  for number in 0 1 2; do
    cat <<YAML
---
apiVersion: v1
kind: Pod
metadata: { name: pod-$number }
spec:
  nodeSelector: { kubernetes.io/hostname: ${nodes[number]} }
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: ghcr.io/atoll-dev/workload:$version
    command: [sleep, infinity]
    volumeMounts: [{ name: data, mountPath: /data }]
  volumes:
  - name: data
    persistentVolumeClaim: { claimName: shared }
YAML
  done
} | here apply -f -
began=$EPOCHSECONDS
here wait pod/pod-0 pod/pod-1 pod/pod-2 --for=condition=Ready --timeout "$WAIT"
echo "from PVC to running pods: $((EPOCHSECONDS - began)) s"
here get pods -o wide
here exec pod-0 -- df -h /data

# The volume's own cluster, which was made for the PVC.
volume=$(here get pvc shared -o jsonpath='{.spec.volumeName}')
cluster=$(kubectl get pv "$volume" -o jsonpath='{.spec.csi.volumeHandle}')
cluster=${cluster##*/}

step "Each pod copies a real tree, while a storage pod and a metadata pod are killed with -9"
copy='mkdir -p /data/$0 && cp -a /usr/lib /usr/share /data/$0/ &&
      cd /data/$0 && find . -type f -print0 | sort -z | xargs -0 sha256sum >/data/$0.sums && wc -l </data/$0.sums'
copies=()
for number in 0 1 2; do
  here exec "pod-$number" -- sh -euc "$copy" "pod-$number" &
  copies+=($!)
done
for component in storage metadata; do
  sleep 3
  echo "kill -9: $cluster-$component-0"
  kill_9 atoll-volumes "$cluster-$component-0"
done
for copy in "${copies[@]}"; do wait "$copy" || fail "a copy failed"; done

step "Each pod reads what the others wrote"
for number in 0 1 2; do
  other=$(((number + 1) % 3))
  here exec "pod-$number" -- sh -euc 'cd /data/$0 && sha256sum -c --quiet /data/$0.sums && echo "$0: every byte is equal"' "pod-$other"
done

step "kubectl atoll status"
hack/kube/run "$CARGO_TARGET_DIR/shipped/kubectl-atoll" status shared --namespace "$NAMESPACE"
kubectl get fsc -A

step "Delete the PVC: nothing is left"
here delete pod pod-0 pod-1 pod-2 --wait --timeout "$WAIT"
here delete pvc shared --wait --timeout "$WAIT"
kubectl wait "pv/$volume" --for=delete --timeout "$WAIT"
left=$(kubectl --namespace atoll-volumes get fsc,statefulset,service,secret,pod,pvc -o name)
[ -z "$left" ] || fail "left: $left"
echo "no cluster, no pod, no PVC, no Secret"
kubectl delete namespace "$NAMESPACE" --wait --timeout "$WAIT"

step "Done. To go on by hand"
cat <<TEXT
  hack/kube/kubectl get storageclass
  hack/kube/kubectl apply -f config/samples/
  hack/kube/run $CARGO_TARGET_DIR/shipped/kubectl-atoll list -A
  make kube-down
TEXT
