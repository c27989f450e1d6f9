#!/usr/bin/env bash
# Installs this checkout's Atoll on the cluster of hack/kube and waits until it serves. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."

ROLLOUT=180s

hack/kube/kubectl apply -k config/default
for workload in deployment/atoll-operator deployment/atoll-csi-controller daemonset/atoll-csi-node daemonset/atoll-mount-host; do
  hack/kube/kubectl --namespace atoll-system rollout status "$workload" --timeout "$ROLLOUT"
done
