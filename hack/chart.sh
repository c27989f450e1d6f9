#!/usr/bin/env bash
# Proves the chart (config/chart) without a cluster: it renders the same objects as the kustomize bases, one by one; what each
# platform needs (config/chart/ci) is in its rendering; values that can't work are refused. Builds helm and kubectl once per
# machine.
#
#   hack/chart.sh            all of it
#   hack/chart.sh --package  only prints the path of the packaged chart
set -euo pipefail
cd "$(dirname "$0")/.."
. hack/env.sh

helm=$(hack/kube/bin helm)
kubectl=$(hack/kube/bin kubectl)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Alerts and dashboard are links there to the ones of config/monitoring; a package has them as files.
chart=$work/atoll
cp -RL config/chart "$chart"
# Nothing of a user's own is read or written.
export HELM_CACHE_HOME=$work/cache HELM_CONFIG_HOME=$work/config HELM_DATA_HOME=$work/data

if [ "${1-}" = --package ]; then
  mkdir -p "$CARGO_TARGET_DIR/chart"
  "$helm" package "$chart" --destination "$CARGO_TARGET_DIR/chart" >/dev/null
  echo "$CARGO_TARGET_DIR/chart/atoll-$(hack/images/version).tgz"
  exit
fi

hack/cargo.sh build --workspace --bin atoll-manifests --quiet </dev/null
manifests=$CARGO_TARGET_DIR/debug/atoll-manifests

failures=0 cases=0
fail() {
  failures=$((failures + 1))
  printf 'FAILED: %s\n' "$1" >&2
}
render() { # render [FLAG...]: with the API of the newest Kubernetes that is supported
  "$helm" template atoll "$chart" --namespace atoll-system --kube-version 1.36.0 "$@"
}
same() { # same WHAT BASES FLAG...: BASES are kustomizations; `-` before the flags that say what only they have
  local what=$1 bases=$2 base
  shift 2
  cases=$((cases + 1))
  for base in $bases; do
    printf -- '---\n'
    case $base in
      # The namespace is an argument there.
      config/network/volumes) "$kubectl" kustomize "$base" | sed 's/^  name: \(atoll-.*\)$/&\n  namespace: atoll-volumes/' ;;
      *) "$kubectl" kustomize "$base" ;;
    esac
  done >"$work/left"
  render "$@" >"$work/right" || { fail "$what: isn't rendered"; return; }
  "$manifests" same "$work/left" "$work/right" --only-left Namespace/atoll-system || fail "$what: differs from $bases"
}
has() { # has VALUES FLAG...: what the values of config/chart/ci ask for is there
  local values=$1
  shift
  cases=$((cases + 1))
  render --values "$chart/ci/$values.yaml" >"$work/right" || { fail "$values: isn't rendered"; return; }
  "$manifests" check "$work/right" "$@" || fail "$values"
}
refused() { # refused WHAT WORDS FLAG...
  local what=$1 words=$2 answer
  shift 2
  cases=$((cases + 1))
  if answer=$(render "$@" 2>&1); then
    fail "$what: accepted"
  elif ! grep -qF -- "$words" <<<"$answer"; then
    fail "$what: refused without saying '$words': $answer"
  fi
}

"$helm" lint --strict --quiet "$chart" --namespace atoll-system || fail lint

same defaults config/default
same 'network policies' 'config/default config/network/system config/network/volumes' --set networkPolicies.enabled=true
same monitoring 'config/default config/monitoring' --set monitoring.podMonitor.enabled=true \
  --set monitoring.prometheusRule.enabled=true --set monitoring.dashboard.enabled=true
same 'watched namespaces' config/watched --set 'operator.namespaces={atoll-volumes}'

has air-gap --registry registry.example:5000/mirror --pull-secret registry
has gke --has ResourceQuota
has ipv6 --ipv6
has k0s --kubelet /var/lib/k0s/kubelet
has microk8s --kubelet /var/snap/microk8s/common/var/lib/kubelet
has monitoring --has PodMonitor --has PrometheusRule
has namespaces --has NetworkPolicy
has no-priority
has openshift --has SecurityContextConstraints
has talos --has NetworkPolicy
for values in "$chart"/ci/*.yaml; do
  grep -q "^has $(basename "$values" .yaml)\b" "$0" || fail "$values: nothing checks it"
done
! render --values "$chart/ci/no-priority.yaml" | grep -q '^ *priorityClassName: [a-z]' || fail 'no-priority: names a PriorityClass'

refused 'a value that there is not' "additional properties 'kubletDirectory' not allowed" --set kubletDirectory=/x
refused 'a wrong pull policy' pullPolicy --set image.pullPolicy=Sometimes
refused 'a relative directory' kubeletDirectory --set kubeletDirectory=var/lib
refused 'a pull secret that is an object' imagePullSecrets --set 'imagePullSecrets[0].name=x'
refused 'two default classes' 'at most one' --set 'storageClasses[0].isDefault=true' --set 'storageClasses[1].isDefault=true' \
  --set 'storageClasses[0].name=a' --set 'storageClasses[1].name=b'
refused 'another namespace' 'Atoll runs in the namespace atoll-system' --namespace other
refused 'an old Kubernetes' 'requires kubeVersion' --kube-version 1.32.0

printf '%d passed, %d failed\n' "$((cases - failures))" "$failures"
[ "$failures" = 0 ]
