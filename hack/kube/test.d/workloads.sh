# Cases about what pods do with each other and with the API server.
# shellcheck shell=bash disable=SC2154

# A Service reached by its name, from a pod of another node and from one of the same node.
case_service_by_name() {
  local client
  namespace web
  apply <<'YAML'
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: web, labels: {app: server}}
spec:
  nodeSelector: {kubernetes.io/hostname: node-0}
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: ghcr.io/atoll-dev/workload:VERSION
    command: [bash, -c, 'mkdir /www; echo hello >/www/page; exec busybox httpd -f -p 8080 -h /www']
    readinessProbe: {httpGet: {path: /page, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: web}
spec:
  selector: {app: server}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: web}
spec:
  nodeSelector: {kubernetes.io/hostname: node-1}
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: 'ghcr.io/atoll-dev/workload:VERSION', command: [sleep, infinity]}
---
apiVersion: v1
kind: Pod
metadata: {name: near, namespace: web}
spec:
  nodeSelector: {kubernetes.io/hostname: node-0}
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: 'ghcr.io/atoll-dev/workload:VERSION', command: [sleep, infinity]}
YAML
  for client in server far near; do ready web "pod/$client"; done
  for client in far near; do
    until_true 20 "the Service from the pod '$client'" fetches "$client" http://server/page
    equal "$(execute web "$client" curl -sS --max-time 5 http://server.web.svc.cluster.local/page)" hello "what $client got"
  done
  # A pod that calls its own Service meets itself.
  equal "$(execute web server curl -sS --max-time 5 http://server.web/page)" hello 'what the server got'
  # There is no way out.
  ! execute web far curl -sS --max-time 2 http://198.51.100.1/ >/dev/null 2>&1 || problem 'a pod reached the world'
  dispose web
}
fetches() { execute web "$1" curl -fsS --max-time 2 "$2"; }

# A privileged DaemonSet mounts a FUSE file system on every node, by Bidirectional propagation; another pod reads it.
case_fuse_between_pods() {
  local pod
  namespace fuse
  apply <<'YAML'
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: mounter, namespace: fuse}
spec:
  selector: {matchLabels: {app: mounter}}
  template:
    metadata: {labels: {app: mounter}}
    spec:
      terminationGracePeriodSeconds: 10
      containers:
      - name: main
        image: ghcr.io/atoll-dev/atoll:VERSION
        command:
        - bash
        - -c
        - |
          set -e
          mkdir -p /shared/mount
          atoll-fs local up /shared/mount --data /data --copies 1 --capacity 1Gi
          echo "written on $NODE" >/shared/mount/file
          trap 'atoll-fs local down /shared/mount --data /data; rmdir /shared/mount; exit 0' TERM
          touch /tmp/ready
          while :; do sleep 1 & wait $!; done
        env:
        - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
        readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1}
        securityContext: {privileged: true}
        volumeMounts:
        - {name: shared, mountPath: /shared, mountPropagation: Bidirectional}
        - {name: data, mountPath: /data}
      volumes:
      - {name: shared, hostPath: {path: /var/lib/kubelet/plugins/fuse-test, type: DirectoryOrCreate}}
      - {name: data, emptyDir: {}}
YAML
  rolled_out fuse daemonset/mounter
  apply <<'YAML'
apiVersion: v1
kind: Pod
metadata: {name: reader, namespace: fuse}
spec:
  nodeSelector: {kubernetes.io/hostname: node-1}
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: ghcr.io/atoll-dev/workload:VERSION
    command: [sleep, infinity]
    volumeMounts: [{name: shared, mountPath: /shared, mountPropagation: HostToContainer}]
  volumes:
  - {name: shared, hostPath: {path: /var/lib/kubelet/plugins/fuse-test}}
YAML
  ready fuse pod/reader
  equal "$(execute fuse reader cat /shared/mount/file)" 'written on node-1' 'contents'
  execute fuse reader grep -q ' /shared/mount .* - fuse' /proc/self/mountinfo || problem 'it is no FUSE file system'
  execute fuse reader dd if=/dev/urandom of=/shared/mount/big bs=1M count=8 conv=fsync 2>/dev/null
  pod=$(kubectl -n fuse get pods -l app=mounter --field-selector spec.nodeName=node-1 -o name)
  equal "$(execute fuse reader sha256sum </dev/null /shared/mount/big)" \
    "$(execute fuse "${pod#pod/}" sha256sum /shared/mount/big)" 'sums on both sides'
  # The other node has a file system of its own.
  pod=$(kubectl -n fuse get pods -l app=mounter --field-selector spec.nodeName=node-0 -o name)
  equal "$(execute fuse "${pod#pod/}" cat /shared/mount/file)" 'written on node-0' 'contents on node-0'
  dispose fuse
}

# A pod reads and verifies the API server with its own account; what it may not do is refused, and on record.
case_service_account() {
  namespace account
  apply <<'YAML'
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: account}
rules:
- {apiGroups: [""], resources: [pods], verbs: [list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader, namespace: account}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: default, namespace: account}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: account}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: 'ghcr.io/atoll-dev/workload:VERSION', command: [sleep, infinity]}
YAML
  ready account pod/client
  equal "$(ask pods)" 200 'the answer to what it may do'
  equal "$(ask secrets)" 403 'the answer to what it may not do'
  until_true 10 'the refusal to be on record' \
    grep -q '"resource":"secrets","namespace":"account"' "$STATE/log/refused.log"
  ! grep -v '"code":403' "$STATE/log/refused.log" || problem 'other requests are on record too'
  dispose account
}
ask() { # ask RESOURCE: prints the status of a request from the pod
  local account=/var/run/secrets/kubernetes.io/serviceaccount
  execute account client bash -c "curl -sS --max-time 10 -o /dev/null -w '%{http_code}' --cacert $account/ca.crt \
    -H \"Authorization: Bearer \$(cat $account/token)\" https://kubernetes.default.svc/api/v1/namespaces/account/$1"
}

# Two copies of a real controller choose a leader by a Lease; when it is gone the other takes over.
case_leader_election() {
  local leader
  namespace election
  apply <<'YAML'
apiVersion: v1
kind: ServiceAccount
metadata: {name: controller, namespace: election}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: election-test}
rules:
- {apiGroups: [snapshot.storage.k8s.io], resources: ['*'], verbs: [get, list, watch, update, patch]}
- {apiGroups: [""], resources: [persistentvolumes, persistentvolumeclaims, nodes], verbs: [get, list, watch]}
- {apiGroups: [""], resources: [events], verbs: [create, update, patch]}
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, list, watch, create, update, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: election-test}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: election-test}
subjects: [{kind: ServiceAccount, name: controller, namespace: election}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: controller, namespace: election}
spec:
  replicas: 2
  selector: {matchLabels: {app: controller}}
  template:
    metadata: {labels: {app: controller}}
    spec:
      serviceAccountName: controller
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: registry.k8s.io/sig-storage/snapshot-controller:SNAPSHOTTER
        args: [--leader-election, --leader-election-namespace=election, --v=2]
YAML
  kubectl -n election set image deployment/controller \
    "main=$("$KUBE_DIR/load" --list | grep /snapshot-controller:)" >/dev/null
  rolled_out election deployment/controller
  until_true 40 'a leader' elected
  leader=$(holder)
  kubectl -n election delete pod "${leader%%_*}" --wait=false >/dev/null 2>&1 || problem "the leader $leader is no pod"
  until_true 60 'another leader' another "$leader"
  kubectl delete clusterrole,clusterrolebinding election-test >/dev/null
  dispose election
}
holder() { value '{.items[0].spec.holderIdentity}' -n election get leases; }
elected() { [ -n "$(holder)" ] && kubectl -n election get pods -o name | grep -q "$(holder | sed 's/_.*//')"; }
another() { elected && [ "$(holder)" != "$1" ]; }
