# The control plane: processes beside each other in the control namespace. Sourced after common, network and pki.
# shellcheck shell=bash

# A node that says nothing for this long is NotReady.
NODE_GRACE_SECONDS=20

kubectl() { inside control env KUBECONFIG="$STATE/kubeconfig/admin" "$(program kubectl)" "$@"; }

start_control() { # start_control NAME COMMAND...: in the control namespace
  local name=$1
  shift
  start "$name" control nsenter --net="$STATE/netns/control" "$@"
}

start_etcd() {
  # Not synced: a test cluster's state may die with the machine.
  start_control etcd "$(program etcd)" --name control --data-dir "$STATE/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --auto-compaction-mode periodic --auto-compaction-retention 1h
}

# Everything is audited, and only refusals are kept: a policy can't choose by the answer, so a filter does.
audit_policy() {
  cat <<'YAML'
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
- level: Metadata
YAML
}

start_apiserver() {
  local pki=$STATE/pki
  running kube-apiserver && return
  audit_policy >"$STATE/audit-policy.yaml"
  start_control kube-apiserver "$KUBE_DIR/lib/keep-refused" "$STATE/log/refused.log" "$(program kube-apiserver)" \
    --etcd-servers=http://127.0.0.1:2379 \
    --advertise-address="$(control_address)" --secure-port=6443 \
    --service-cluster-ip-range="$(service_range)" \
    --allow-privileged=true \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
    --client-ca-file="$pki/ca.crt" \
    --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
    --kubelet-client-certificate="$pki/apiserver-kubelet-client.crt" \
    --kubelet-client-key="$pki/apiserver-kubelet-client.key" \
    --kubelet-preferred-address-types=InternalIP \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --service-account-key-file="$pki/service-account.pub" \
    --service-account-signing-key-file="$pki/service-account.key" \
    --requestheader-client-ca-file="$pki/front-proxy-ca.crt" --requestheader-allowed-names=front-proxy-client \
    --requestheader-extra-headers-prefix=X-Remote-Extra- --requestheader-group-headers=X-Remote-Group \
    --requestheader-username-headers=X-Remote-User \
    --proxy-client-cert-file="$pki/front-proxy-client.crt" --proxy-client-key-file="$pki/front-proxy-client.key" \
    --enable-aggregator-routing=true \
    --audit-policy-file="$STATE/audit-policy.yaml" --audit-log-path=-
}

# It hangs on SIGTERM once its etcd is gone: it is stopped first, and not asked for long.
stop_apiserver() { stop kube-apiserver "${1:-2}"; }

api_ready() { kubectl get --raw /readyz --request-timeout 2s >/dev/null 2>&1; }

start_controllers() {
  local pki=$STATE/pki conf=$STATE/kubeconfig
  start_control kube-controller-manager "$(program kube-controller-manager)" \
    --kubeconfig="$conf/controller-manager" --bind-address=127.0.0.1 --leader-elect=false \
    --root-ca-file="$pki/ca.crt" --service-account-private-key-file="$pki/service-account.key" \
    --cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key" \
    --use-service-account-credentials --node-monitor-grace-period="${NODE_GRACE_SECONDS}s"
  start_control kube-scheduler "$(program kube-scheduler)" \
    --kubeconfig="$conf/scheduler" --bind-address=127.0.0.1 --leader-elect=false
}

# The names of the cluster, answered by a process of the control plane behind the Service that pods ask.
start_dns() {
  cat >"$STATE/Corefile" <<CONFIG
.:53 {
  errors
  health 127.0.0.1:8080
  ready 127.0.0.1:8181
  cache 5
  kubernetes cluster.local in-addr.arpa {
    kubeconfig $STATE/kubeconfig/coredns
    pods insecure
  }
}
CONFIG
  start_control coredns "$(program coredns)" -conf "$STATE/Corefile" -quiet
}

# The provisioner makes folders on the nodes' disks from outside of them.
start_provisioner() {
  local built=$CARGO_TARGET_DIR/debug/atoll-provisioner
  running provisioner && return
  if [ -x "$built" ]; then
    # A copy: a build must not replace what runs.
    mkdir -p "$STATE/bin"
    cp -f "$built" "$STATE/bin/atoll-provisioner.tmp"
    mv "$STATE/bin/atoll-provisioner.tmp" "$STATE/bin/atoll-provisioner"
  fi
  [ -x "$STATE/bin/atoll-provisioner" ] || fail "$built is missing: run 'make kube-up' or hack/cargo.sh build --workspace"
  start_control provisioner "$STATE/bin/atoll-provisioner" --kubeconfig "$STATE/kubeconfig/provisioner" --state "$STATE"
}

# apply_manifests: what every cluster has: DNS, StorageClasses, rights, the CRDs of snapshots.
apply_manifests() {
  # shellcheck disable=SC2016
  DNS_SERVICE=$(dns_service_address) DNS_SERVER=$(control_address) perl -pe 's/\$\{(\w+)\}/$ENV{$1}/g' \
    "$KUBE_DIR"/manifests/*.yaml |
    kubectl apply --server-side --force-conflicts -f - -f "$("$KUBE_DIR/build" --crds)" >/dev/null
}

dns_ready() {
  # shellcheck disable=SC2016
  inside control bash -c 'exec 3<>/dev/tcp/127.0.0.1/8181 && printf "GET /ready HTTP/1.0\r\n\r\n" >&3 && grep -q "200 OK" <&3'
}
