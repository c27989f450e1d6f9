#!/usr/bin/env bash
# Tests the alerts (config/monitoring): promtool checks their syntax, and that each fires on what it is for and is quiet on what is
# next to it (alerts.test.yaml). Builds promtool once per machine.
set -euo pipefail
cd "$(dirname "$0")/.."

promtool=$(hack/kube/bin promtool)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The rules are the spec of the resource.
sed -n '/^  groups:/,$s/^  //p' config/monitoring/alerts.yaml >"$work/full.yaml"
"$promtool" check rules "$work/full.yaml"
# Texts for people are no part of what is tested.
awk '/^ *annotations:/ { skip = 1; next } /^ *- (alert|name):/ { skip = 0 } !skip' "$work/full.yaml" >"$work/rules.yaml"
cp config/monitoring/alerts.test.yaml "$work/"
for alert in $(sed -n 's/^ *- alert: //p' "$work/full.yaml"); do
  grep -q "alertname: $alert\$" "$work/alerts.test.yaml" || { echo "alerts: nothing tests $alert" >&2; exit 1; }
done
"$promtool" test rules "$work/alerts.test.yaml"
