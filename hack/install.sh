#!/usr/bin/env bash
# Installs this checkout's Atoll on the cluster of hack/kube and waits until it serves. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."

ROLLOUT=180s

kubectl() { hack/kube/kubectl --namespace atoll-system "$@"; }

hack/kube/kubectl apply -k config/default
for workload in deployment/atoll-operator deployment/atoll-csi-controller daemonset/atoll-csi-node; do
  kubectl rollout status "$workload" --timeout "$ROLLOUT"
done
# Its pods are replaced by hand, so there is no rollout to follow: only whether there is one on each node.
desired=$(kubectl get daemonset/atoll-mount-host -o jsonpath='{.status.desiredNumberScheduled}')
kubectl wait daemonset/atoll-mount-host --for="jsonpath={.status.numberReady}=$desired" --timeout "$ROLLOUT"
