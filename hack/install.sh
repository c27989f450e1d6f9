#!/usr/bin/env bash
# Installs this checkout's Atoll on the cluster of hack/kube and waits until it serves. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."

ROLLOUT=180s

kubectl() { hack/kube/kubectl --namespace atoll-system "$@"; }

hack/kube/kubectl apply -k config/default
# What the operator creates and keeps; this is the first and the last of it (operator/src/build/prerequisites.rs). Of an
# earlier install some may be there.
end=$((EPOCHSECONDS + ${ROLLOUT%s}))
until hack/kube/kubectl get crd/filesystemclusters.atoll.dev >/dev/null 2>&1 &&
  hack/kube/kubectl --namespace atoll-volumes get rolebinding/atoll-csi-volumes >/dev/null 2>&1; do
  [ "$EPOCHSECONDS" -lt "$end" ] || { echo "install: the operator didn't create atoll-volumes: see its log" >&2; exit 1; }
  sleep 0.2
done
hack/kube/kubectl wait crd/filesystemclusters.atoll.dev --for=condition=Established --timeout "$ROLLOUT"
for workload in deployment/atoll-operator deployment/atoll-csi-controller daemonset/atoll-csi-node daemonset/atoll-mount-host; do
  kubectl rollout status "$workload" --timeout "$ROLLOUT"
done
# Its pods are replaced by hand, so there is no rollout to follow: only whether there is one on each node.
desired=$(kubectl get daemonset/atoll-holder -o jsonpath='{.status.desiredNumberScheduled}')
kubectl wait daemonset/atoll-holder --for="jsonpath={.status.numberReady}=$desired" --timeout "$ROLLOUT"
