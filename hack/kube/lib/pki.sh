# Certificates and kubeconfigs. Sourced after common.sh and network.sh.
# shellcheck shell=bash

DAYS=3650

new_key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 2>/dev/null; }

# authority FILE NAME: a certificate that signs others.
authority() {
  [ -s "$STATE/pki/$1.crt" ] && return
  new_key >"$STATE/pki/$1.key"
  openssl req -x509 -new -key "$STATE/pki/$1.key" -subj "/CN=$2" -days "$DAYS" \
    -addext 'keyUsage=critical,digitalSignature,keyCertSign,cRLSign' -out "$STATE/pki/$1.crt.tmp"
  mv "$STATE/pki/$1.crt.tmp" "$STATE/pki/$1.crt"
}

# certificate FILE SUBJECT [NAMES [AUTHORITY]]: NAMES as openssl writes them: DNS:x,IP:y.
certificate() {
  local file=$STATE/pki/$1 subject=$2 names=${3:-} signer=$STATE/pki/${4:-ca}
  [ -s "$file.crt" ] && return
  new_key >"$file.key"
  openssl req -new -key "$file.key" -subj "$subject" |
    openssl x509 -req -CA "$signer.crt" -CAkey "$signer.key" -set_serial "0x$(openssl rand -hex 8)" -days "$DAYS" \
      -extfile <(printf '%s\n' 'basicConstraints=critical,CA:FALSE' 'keyUsage=critical,digitalSignature' \
        'extendedKeyUsage=serverAuth,clientAuth' ${names:+"subjectAltName=$names"}) -out "$file.crt.tmp" 2>/dev/null
  mv "$file.crt.tmp" "$file.crt"
}

# kubeconfig NAME SUBJECT: with everything in it, so that it can be copied anywhere.
kubeconfig() {
  local file=$STATE/kubeconfig/$1
  [ -s "$file" ] && return
  certificate "$1" "$2"
  cat >"$file.tmp" <<YAML
apiVersion: v1
kind: Config
clusters:
- name: $NAME
  cluster:
    server: https://$(control_address):6443
    certificate-authority-data: $(base64 -w0 "$STATE/pki/ca.crt")
users:
- name: $1
  user:
    client-certificate-data: $(base64 -w0 "$STATE/pki/$1.crt")
    client-key-data: $(base64 -w0 "$STATE/pki/$1.key")
contexts:
- name: $NAME
  context: {cluster: $NAME, user: $1}
current-context: $NAME
YAML
  mv "$file.tmp" "$file"
}

make_certificates() {
  (
    umask 077
    mkdir -p "$STATE/pki" "$STATE/kubeconfig"
    authority ca "atoll-kube $NAME"
    authority front-proxy-ca "atoll-kube $NAME front proxy"
    certificate apiserver '/CN=kube-apiserver' "$(
      printf 'DNS:%s,' kubernetes kubernetes.default kubernetes.default.svc kubernetes.default.svc.cluster.local localhost
      printf 'IP:%s,IP:%s,IP:127.0.0.1' "$(api_service_address)" "$(control_address)"
    )"
    certificate apiserver-kubelet-client '/O=system:masters/CN=kube-apiserver-kubelet-client'
    certificate front-proxy-client '/CN=front-proxy-client' '' front-proxy-ca
    [ -s "$STATE/pki/service-account.pub" ] || {
      new_key >"$STATE/pki/service-account.key"
      openssl pkey -in "$STATE/pki/service-account.key" -pubout -out "$STATE/pki/service-account.pub"
    }
    kubeconfig admin '/O=system:masters/CN=admin'
    kubeconfig controller-manager '/CN=system:kube-controller-manager'
    kubeconfig scheduler '/CN=system:kube-scheduler'
    kubeconfig kube-proxy '/CN=system:kube-proxy'
    kubeconfig coredns '/CN=system:coredns'
    kubeconfig provisioner '/CN=system:provisioner'
  )
}

# make_node_certificates NODE
make_node_certificates() {
  (
    umask 077
    kubeconfig "$1" "/O=system:nodes/CN=system:node:$1"
  )
}
