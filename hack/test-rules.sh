#!/usr/bin/env bash
# Every rule of the custom resource's schema, on a real API server: a case that passes and one that is refused, with
# the words that the refusal has to have. Needs the definition (kubectl apply -k config/crd) and no operator for the
# namespace it makes. Usage: hack/kube/run hack/test-rules.sh
set -euo pipefail

namespace=atoll-rules-$$
kubectl create namespace "$namespace" >/dev/null
trap 'kubectl delete namespace "$namespace" --wait=false >/dev/null 2>&1 || true' EXIT

failures=0 cases=0
fail() {
  failures=$((failures + 1))
  printf 'FAILED: %s\n' "$1" >&2
}
resource() { # resource NAME SPEC: SPEC is YAML in one line
  printf 'apiVersion: atoll.dev/v1alpha1\nkind: FileSystemCluster\nmetadata: {name: "%s", namespace: "%s"}\nspec: %s\n' "$1" "$namespace" "$2"
}
accepted() { # accepted WHAT NAME SPEC
  cases=$((cases + 1))
  local answer
  answer=$(resource "$2" "$3" | kubectl apply --dry-run=server -f - 2>&1) || fail "$1: refused: $answer"
}
refused() { # refused WHAT WORDS NAME SPEC
  cases=$((cases + 1))
  local answer
  if answer=$(resource "$3" "$4" | kubectl apply --dry-run=server -f - 2>&1); then
    fail "$1: accepted"
  elif ! grep -qF -- "$2" <<<"$answer"; then
    fail "$1: refused without saying '$2': $answer"
  fi
}
# changes: on resources that exist.
existing() { resource "$1" "$2" | kubectl apply -f - >/dev/null; }

# Creation.
accepted 'a capacity alone' a '{capacity: 1Gi}'
accepted 'a capacity as a number' a '{capacity: 1073741824}'
accepted 'the smallest capacity' a '{capacity: 16Mi}'
accepted 'the largest capacity' a '{capacity: 1Ei}'
refused 'no capacity' 'spec.capacity: Required' a '{}'
refused 'a capacity that is too small' 'between 16Mi and 1Ei' a '{capacity: 15Mi}'
refused 'a capacity that is too large' 'between 16Mi and 1Ei' a '{capacity: 2Ei}'
refused 'a negative capacity' 'between 16Mi and 1Ei' a '{capacity: -1Gi}'
refused 'a capacity that is none' 'spec.capacity' a '{capacity: much}'
accepted 'a name of 40 characters' "$(printf 'a%.0s' {1..40})" '{capacity: 1Gi}'
refused 'a name of 41 characters' 'at most 40 characters' "$(printf 'a%.0s' {1..41})" '{capacity: 1Gi}'
refused 'a name that begins with a digit' 'begin with a letter' 1a '{capacity: 1Gi}'
refused 'a name with a dot' 'begin with a letter' a.b '{capacity: 1Gi}'
accepted 'one copy' a '{capacity: 1Gi, copies: 1}'
accepted 'five copies' a '{capacity: 1Gi, copies: 5}'
refused 'no copy' 'spec.copies' a '{capacity: 1Gi, copies: 0}'
refused 'six copies' 'spec.copies' a '{capacity: 1Gi, copies: 6}'
accepted 'more servers than copies' a '{capacity: 1Gi, copies: 2, storage: {replicas: 3}}'
refused 'fewer servers than copies' 'storage.replicas must be at least copies' a '{capacity: 1Gi, copies: 3, storage: {replicas: 2}}'
refused 'fewer servers than the default copies' 'storage.replicas must be at least copies' a '{capacity: 1Gi, storage: {replicas: 2}}'
accepted 'one metadata server' a '{capacity: 1Gi, metadata: {replicas: 1}}'
accepted 'five metadata servers' a '{capacity: 1Gi, metadata: {replicas: 5}}'
accepted 'pods somewhere' a '{capacity: 1Gi, placement: {topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: ScheduleAnyway}, storage: {pod: {nodeSelector: {disk: ssd}, tolerations: [{key: storage, operator: Exists}], imagePullSecrets: [{name: registry}], imagePullPolicy: Always, priorityClassName: "", labels: {team: a}}}}'
accepted 'pods that are attracted' a '{capacity: 1Gi, metadata: {pod: {affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: disk, operator: In, values: [ssd]}]}]}}}}}}'
refused 'copies apart by any label' 'must be kubernetes.io/hostname or topology.kubernetes.io/zone' a '{capacity: 1Gi, placement: {topologyKey: example.com/rack}}'
refused 'copies apart somehow' 'spec.placement.whenUnsatisfiable' a '{capacity: 1Gi, placement: {whenUnsatisfiable: Maybe}}'
refused 'an image pulled sometimes' 'spec.storage.pod.imagePullPolicy' a '{capacity: 1Gi, storage: {pod: {imagePullPolicy: Sometimes}}}'
accepted 'a feature level' a '{capacity: 1Gi, featureLevelMax: 1}'
refused 'no feature level' 'spec.featureLevelMax' a '{capacity: 1Gi, featureLevelMax: 0}'
refused 'two metadata servers' 'must be 1, 3 or 5' a '{capacity: 1Gi, metadata: {replicas: 2}}'
accepted 'exclusive' a '{capacity: 1Gi, access: Exclusive}'
refused 'an unknown access' 'spec.access' a '{capacity: 1Gi, access: Often}'
accepted 'encrypted' a '{capacity: 1Gi, encryption: Required}'
refused 'an unknown encryption' 'spec.encryption' a '{capacity: 1Gi, encryption: "Off"}'
accepted 'a root folder' a '{capacity: 1Gi, root: {uid: 1000, gid: 1000, mode: "2770"}}'
refused 'a mode that is none' 'spec.root.mode' a '{capacity: 1Gi, root: {mode: "999"}}'
refused 'a user id that is none' 'spec.root.uid' a '{capacity: 1Gi, root: {uid: -1}}'
accepted 'a version' a '{capacity: 1Gi, version: 1.2.3-rc.1}'
refused 'a version that is none' 'spec.version' a '{capacity: 1Gi, version: "a b"}'
accepted 'a Secret' a '{capacity: 1Gi, clientSecretName: pvc-1}'
refused 'a Secret that is none' 'spec.clientSecretName' a '{capacity: 1Gi, clientSecretName: A_b}'
refused 'a confirmation before there is anything' "must be this cluster's status.clusterId" a \
  '{capacity: 1Gi, deletionConfirmation: "00000000000000000000000000000007"}'
refused 'an unknown field' 'unknown field' a '{capacity: 1Gi, size: 3}'

# Changes.
full='{capacity: 1Gi, copies: 2, clientSecretName: key, metadata: {storage: {size: 4Gi, storageClassName: x}}, storage: {replicas: 3, size: 4Gi, storageClassName: x}}'
existing b "$full"
accepted 'no change' b "$full"
accepted 'the same capacity, written otherwise' b "${full/capacity: 1Gi/capacity: 1024Mi}"
accepted 'a larger capacity' b "${full/capacity: 1Gi/capacity: 2Gi}"
accepted 'a smaller capacity of a volume without files' b "${full/capacity: 1Gi/capacity: 512Mi}"
refused 'other copies' "copies can't be changed in this version yet" b "${full/copies: 2/copies: 1}"
accepted 'more servers' b "${full/replicas: 3/replicas: 4}"
accepted 'fewer servers' b "${full/replicas: 3/replicas: 2}"
refused 'fewer servers than copies, later' 'storage.replicas must be at least copies' b "${full/replicas: 3/replicas: 1}"
accepted 'servers without a number' b "${full/replicas: 3, /}"
accepted 'more metadata servers' b "${full/metadata: \{/metadata: {replicas: 5, }"
refused 'an even number of metadata servers, later' 'must be 1, 3 or 5' b "${full/metadata: \{/metadata: {replicas: 2, }"
accepted 'fewer metadata servers' b "${full/metadata: \{/metadata: {replicas: 1, }"
refused 'another access' "access can't be changed" b "${full/copies: 2/copies: 2, access: Exclusive}"
refused 'another encryption' "encryption can't be changed" b "${full/copies: 2/copies: 2, encryption: Required}"
refused 'another root folder' 'only when the volume is created' b "${full/copies: 2/copies: 2, root: {uid: 7\}}"
refused 'another Secret' "clientSecretName can't be changed" b "${full/clientSecretName: key/clientSecretName: other}"
refused 'no Secret' "clientSecretName can't be changed" b "${full/clientSecretName: key, /}"
accepted "larger disks of the metadata servers" b "${full/size: 4Gi, storageClassName: x\}\}/size: 5Gi, storageClassName: x\}\}}"
refused "another class of the metadata servers' disks" "class of the metadata servers' disks can't be changed" b "${full/storageClassName: x/storageClassName: other}"
refused "no class of the metadata servers' disks" "class of the metadata servers' disks can't be changed" b "${full/storage: \{size: 4Gi, storageClassName: x\}/replicas: 1}"
accepted 'larger disks' b "${full/replicas: 3, size: 4Gi/replicas: 3, size: 5Gi}"
accepted 'no size of the disks' b "${full/replicas: 3, size: 4Gi/replicas: 3}"
refused 'another class of the disks' "class of the storage servers' disks" b "${full%storageClassName: x*}storageClassName: other}}"
accepted 'other resources' b "${full/replicas: 3/replicas: 3, resources: {limits: {memory: 2Gi\}\}}"
accepted 'pause' b "${full/copies: 2/copies: 2, paused: true}"
accepted 'another version' b "${full/copies: 2/copies: 2, version: 1.0.0}"

# The word, and the id that it has to be.
id=00000000000000000000000000000007 other=00000000000000000000000000000008
status() { kubectl -n "$namespace" patch fsc b --subresource=status --type=merge -p "{\"status\":{\"clusterId\":$1}}" 2>&1; }
status "\"$id\"" >/dev/null
accepted 'the right confirmation' b "${full/copies: 2/copies: 2, deletionConfirmation: \"$id\"}"
refused 'a wrong confirmation' "must be this cluster's status.clusterId" b "${full/copies: 2/copies: 2, deletionConfirmation: \"$other\"}"
cases=$((cases + 2))
if answer=$(status "\"$other\""); then fail 'another id: accepted'; fi
grep -qF "never changes" <<<"$answer" || fail "another id: refused without a reason: $answer"
answer=$(status "\"$id\"") || fail "the same id: $answer"

# What files use, and what the disks have, is the least that can be asked for.
kubectl -n "$namespace" patch fsc b --subresource=status --type=merge -p '{"status": {
  "usage": {"bytesTotal": 1073741824, "bytesUsed": 700000000, "inodesTotal": 9, "inodesUsed": 1, "used": "667.6Mi"},
  "metadata": {"replicas": 3, "ready": 3, "summary": "3/3", "diskSize": "3Gi"},
  "storage": {"replicas": 3, "ready": 3, "summary": "3/3", "diskSize": "3Gi"}}}' >/dev/null
accepted 'no change of a volume with files' b "$full"
accepted 'a capacity above what files use' b "${full/capacity: 1Gi/capacity: 700M}"
refused 'a capacity below what files use' "can't be less than what files use" b "${full/capacity: 1Gi/capacity: 699M}"
accepted 'as large disks as there are' b "${full/replicas: 3, size: 4Gi/replicas: 3, size: 3Gi}"
refused 'smaller disks than there are' 'disks only grow' b "${full/replicas: 3, size: 4Gi/replicas: 3, size: 2Gi}"
accepted "as large disks of the metadata servers as there are" b "${full/size: 4Gi, storageClassName: x\}\}/size: 3Gi, storageClassName: x\}\}}"
refused "smaller disks of the metadata servers than there are" 'disks only grow' b "${full/size: 4Gi, storageClassName: x\}\}/size: 2Gi, storageClassName: x\}\}}"

# Every field is explained.
for path in spec spec.capacity spec.storage.replicas spec.metadata.storage.size status.capacity status.conditions status.clusterId; do
  cases=$((cases + 1))
  grep -q DESCRIPTION <<<"$(kubectl explain "fsc.$path")" || fail "kubectl explain fsc.$path says nothing"
done

echo "rules: $cases cases, $failures failures" >&2
[ "$failures" -eq 0 ]
