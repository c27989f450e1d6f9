# Cases about volumes.
# shellcheck shell=bash disable=SC2154

# Three pods on three nodes with a volume each: written, grown, deleted, and the folders gone.
case_stateful_set() {
  local volume n
  namespace stateful
  apply <<'YAML'
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: data, namespace: stateful}
spec:
  replicas: 3
  serviceName: data
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: data}}
  template:
    metadata: {labels: {app: data}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: data}}}
      containers:
      - name: main
        image: ghcr.io/atoll-dev/workload:VERSION
        command: [bash, -c, 'hostname >/data/name; exec sleep infinity']
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec:
      accessModes: [ReadWriteOnce]
      resources: {requests: {storage: 64Mi}}
YAML
  rolled_out stateful statefulset/data
  equal "$(kubectl -n stateful get pods -o 'jsonpath={range .items[*]}{.spec.nodeName}{"\n"}{end}' | sort -u | wc -l)" 3 'nodes of the pods'
  for n in 0 1 2; do equal "$(execute stateful "data-$n" cat /data/name)" "data-$n" 'contents'; done

  # A pod comes back to its data.
  kubectl -n stateful delete pod data-1 --wait >/dev/null
  rolled_out stateful statefulset/data
  equal "$(execute stateful data-1 cat /data/name)" data-1 'contents after a restart'

  kubectl -n stateful patch persistentvolumeclaim data-data-0 --type merge \
    -p '{"spec":{"resources":{"requests":{"storage":"128Mi"}}}}' >/dev/null
  until_true 30 'the claim to have grown' is 128Mi '{.status.capacity.storage}' -n stateful get persistentvolumeclaim data-data-0

  equal "$(ls -d "$STATE"/nodes/*/disk/volumes/pvc-* | wc -l)" 3 'folders'
  dispose stateful
  volume=$(ls -d "$STATE"/nodes/*/disk/volumes/pvc-* 2>/dev/null || true)
  [ -z "$volume" ] || problem "folders are left: $volume"
}

# What the other StorageClasses promise: no growth, a hard limit, no node.
case_volumes_of_each_class() {
  local node other class
  namespace classes
  for class in local-fixed local-limited network; do
    apply <<YAML
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: $class, namespace: classes}
spec:
  storageClassName: $class
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 48Mi}}
YAML
  done
  class_pod one node-0
  ready classes pod/one
  execute classes one bash -euc 'for v in local-fixed local-limited network; do echo "of $HOSTNAME" >/$v/name; done; sync'

  # No growth.
  ! kubectl -n classes patch persistentvolumeclaim local-fixed --type merge \
    -p '{"spec":{"resources":{"requests":{"storage":"96Mi"}}}}' 2>"$STATE/refusal" || problem 'local-fixed grew'
  grep -q 'resize' "$STATE/refusal" || problem "$(cat "$STATE/refusal")"

  # A hard limit: more than its size can't be written; grown while it is in use, it can.
  ! execute classes one dd if=/dev/zero of=/local-limited/big bs=1M count=64 conv=fsync 2>"$STATE/refusal" || problem '64 MiB went into 48'
  grep -q 'No space left' "$STATE/refusal" || problem "$(cat "$STATE/refusal")"
  kubectl -n classes patch persistentvolumeclaim local-limited --type merge \
    -p '{"spec":{"resources":{"requests":{"storage":"96Mi"}}}}' >/dev/null
  until_true 30 'local-limited to have grown' is 96Mi '{.status.capacity.storage}' -n classes get persistentvolumeclaim local-limited
  execute classes one dd if=/dev/zero of=/local-limited/big bs=1M count=64 conv=fsync 2>/dev/null

  # No node: a pod elsewhere finds the data, which it can't with the others.
  kubectl -n classes delete pod one --wait >/dev/null
  apply <<'YAML'
apiVersion: v1
kind: Pod
metadata: {name: two, namespace: classes}
spec:
  nodeSelector: {kubernetes.io/hostname: node-1}
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: ghcr.io/atoll-dev/workload:VERSION
    command: [sleep, infinity]
    volumeMounts: [{name: network, mountPath: /network}]
  volumes: [{name: network, persistentVolumeClaim: {claimName: network}}]
YAML
  ready classes pod/two
  equal "$(execute classes two cat /network/name)" 'of one' 'contents on another node'

  # What isn't served says why.
  apply <<'YAML'
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: blocks, namespace: classes}
spec:
  storageClassName: network
  volumeMode: Block
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Mi}}
YAML
  until_true 20 'an event about volumeMode' refused_claim blocks volumeMode
  dispose classes
  [ -z "$(ls -d "$STATE"/nodes/*/disk/volumes/* "$STATE"/network-volumes/* 2>/dev/null || true)" ] || problem 'volumes are left on the disks'
}

refused_claim() { kubectl -n classes get events --field-selector "involvedObject.name=$1" -o 'jsonpath={.items[*].message}' | grep -q "$2"; }

class_pod() { # class_pod NAME NODE
  apply <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1, namespace: classes}
spec:
  nodeSelector: {kubernetes.io/hostname: $2}
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: ghcr.io/atoll-dev/workload:VERSION
    command: [sleep, infinity]
    volumeMounts:
    - {name: local-fixed, mountPath: /local-fixed}
    - {name: local-limited, mountPath: /local-limited}
    - {name: network, mountPath: /network}
  volumes:
  - {name: local-fixed, persistentVolumeClaim: {claimName: local-fixed}}
  - {name: local-limited, persistentVolumeClaim: {claimName: local-limited}}
  - {name: network, persistentVolumeClaim: {claimName: network}}
YAML
}

# A disk is filled and freed under a pod that writes.
case_full_disk() {
  namespace full
  apply <<'YAML'
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: disk, namespace: full}
spec:
  storageClassName: local-limited
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 32Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: writer, namespace: full}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: ghcr.io/atoll-dev/workload:VERSION
    command: [sleep, infinity]
    volumeMounts: [{name: disk, mountPath: /disk}]
  volumes: [{name: disk, persistentVolumeClaim: {claimName: disk}}]
YAML
  ready full pod/writer
  fault fill-disk full/disk 65536
  ! execute full writer dd if=/dev/zero of=/disk/file bs=64k count=8 conv=fsync 2>/dev/null || problem 'the disk is not full'
  fault free-disk full/disk
  execute full writer dd if=/dev/zero of=/disk/file bs=64k count=8 conv=fsync 2>/dev/null
  dispose full
}
