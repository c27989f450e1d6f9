#!/usr/bin/env bash
# Proves the promises of e2e/ on a Kubernetes of their own, which is removed afterwards; before them, the rules of the
# custom resource (hack/test-rules.sh).
#
#   hack/e2e.sh                  all of them
#   hack/e2e.sh --short          those that every change has to keep
#   hack/e2e.sh --list           their names
#   hack/e2e.sh NAME...          some
#
# ATOLL_E2E_KEEP=1   leave the cluster running, and use the one that an earlier run left
# ATOLL_KUBE_NAME    its name (e2e)
set -euo pipefail

cd "$(dirname "$0")/.."
. hack/env.sh

export ATOLL_KUBE_NAME=${ATOLL_KUBE_NAME:-e2e}
program=$CARGO_TARGET_DIR/debug/atoll-e2e
[ -x "$program" ] || { echo "e2e: $program is missing: run 'make e2e'" >&2; exit 1; }
# The resource's rules are a part of every run but those of single promises.
rules=1
for argument in "$@"; do
  case $argument in
    --list | --help | -h | --version) exec "$program" "$argument" ;;
    -*) ;;
    *) rules=0 ;;
  esac
done

# A copy: another checkout's build may replace the program while it runs.
work=$(mktemp -d)
finish() {
  local status=$?
  rm -rf "$work"
  if [ "${ATOLL_E2E_KEEP:-0}" = 0 ]; then hack/kube/down || status=1; fi
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
cp "$program" "$work/atoll-e2e"

NODES=3 hack/kube/up
# The definition alone: no operator may act on what the rules' test makes.
if [ "$rules" = 1 ] && ! hack/kube/kubectl get namespace atoll-system >/dev/null 2>&1; then
  hack/kube/kubectl apply -k config/crd >/dev/null
  hack/kube/run hack/test-rules.sh
fi
hack/kube/load --build >/dev/null
hack/install.sh
# `kubectl atoll` is a plugin: found in the PATH, as users have it.
PATH=$CARGO_TARGET_DIR/shipped:$PATH hack/kube/run "$work/atoll-e2e" "$@"
