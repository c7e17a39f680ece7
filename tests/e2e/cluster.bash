# The cluster: images, the agent's DaemonSet, the fake AWS, pods, and the processes of pods on this node.

socket=/run/latchkey/agent.sock
agent=latchkey-agent # the DaemonSet that serves; a hand-over changes it
made_namespaces=()   # what else is to be removed at the end

# === images ===

lay_out() { # ROOT PROGRAM...: copies programs into a folder, each with the libraries that it names
  local root=$1 program library
  shift
  mkdir -p "$root/usr/bin" "$root/tmp"
  chmod 1777 "$root/tmp"
  [[ -e $root/bin ]] || ln -s usr/bin "$root/bin"
  for program in "$@"; do
    cp -L "$program" "$root/usr/bin/"
    { ldd "$program" 2>/dev/null | grep -o '/[^ ]*' || true; } | while read -r library; do # a static one has none
      mkdir -p "$root$(dirname "$library")"
      cp -Ln "$library" "$root$library"
    done
  done
}

build_images() {
  mkdir "$work/programs"
  cp -L "$E2E_AGENT" "$work/programs/latchkey-agent"
  cp -L "$E2E_CSI" "$work/programs/latchkey-csi"
  cp -L "$E2E_CLIENT" "$work/programs/latchkey"
  "$root/deploy/image/assemble" "$work/programs" "$work/agent.tar" docker.io/library/latchkey-agent:e2e

  lay_out "$work/fake" "$E2E_FAKE_AWS"
  $E2E_PACK "$work/fake.tar" docker.io/library/latchkey-fake-aws:e2e "$work/fake" "/usr/bin/$(basename "$E2E_FAKE_AWS")"

  lay_out "$work/client" "$(command -v bash)" "$(command -v curl)" "$(command -v busybox)" "$here"/client/*
  local applet
  for applet in cat env rm sh sleep touch; do ln -s busybox "$work/client/usr/bin/$applet"; done
  $E2E_PACK "$work/client.tar" docker.io/library/latchkey-client:e2e "$work/client" /bin/bash
  # The image that the examples name, which no registry can give here: curl, under that name.
  $E2E_PACK "$work/curl.tar" "docker.io/$(awk '$1 == "image:" {print $2; exit}' "$root/deploy/examples/pod.yaml")" "$work/client" /usr/bin/curl

  $E2E_LOAD "$work"/{agent,fake,client,curl}.tar
}

# === what is installed ===

install_fake_aws() { # trusts the keys with which this cluster signs its tokens
  kubectl get --raw /openid/v1/jwks >"$work/jwks.json"
  kubectl create namespace latchkey-e2e >/dev/null
  start_fake_aws
}

start_fake_aws() { # with the values of now
  local issuer
  issuer=$(kubectl get --raw /.well-known/openid-configuration | jq -r .issuer)
  jq -n --arg issuer "$issuer" --arg test "$test_value" --arg prod "$prod_value" --arg batch "$batch_value" --arg shop "$shop_value" \
    --arg doctor "$doctor_value" -f "$here/fake-aws.jq" >"$work/config.json"
  kubectl -n latchkey-e2e create configmap fake-aws --from-file="$work/config.json" --from-file="$work/jwks.json" \
    --dry-run=client -o yaml | kubectl apply -f - >/dev/null
  kubectl apply -f "$here/fake-aws.yaml" >/dev/null
  kubectl -n latchkey-e2e wait --for=condition=Ready pod/fake-aws --timeout=60s >/dev/null
}

stop_fake_aws() { # its log is kept, since that of a deleted pod is gone
  kubectl -n latchkey-e2e logs fake-aws >>"$work/earlier-cloud"
  kubectl -n latchkey-e2e delete pod fake-aws --wait=true --timeout=180s >/dev/null
}

cloud_log() { { cat "$work/earlier-cloud" 2>/dev/null || true; kubectl -n latchkey-e2e logs fake-aws; } | jq -Rc 'fromjson?'; }

# Two releases of the chart serve in turns, which is how a cluster without maxSurge upgrades without a gap. The second
# one uses the first one's account and rights.
release_of() { echo "${1%-agent}"; } # DAEMONSET

start_agent() { # DAEMONSET
  local others=()
  [[ $1 == latchkey-agent ]] || others=(--set serviceAccount.create=false --set serviceAccount.name=latchkey-agent --set rbac.create=false)
  (cd "$work/desk" && helm "$(if [[ $1 == latchkey-agent ]]; then echo upgrade; else echo install; fi)" "$(release_of "$1")" \
    deploy/helm/latchkey --namespace latchkey --values latchkey.yaml "${others[@]}") >/dev/null
  await_agent "$1"
}

await_agent() { # DAEMONSET: until it is ready; its log is kept from then on, since that of a deleted pod is gone
  kubectl -n latchkey rollout status daemonset "$1" --timeout=120s >/dev/null
  kubectl -n latchkey logs --follow "$(agent_pod "$1")" -c agent >"$(mktemp "$work/logs/$1.XXXX")" 2>/dev/null &
}

# An old kubelet may leave a container that has ended to its collection once a minute, and keeps the pod until then.
stop_agent() { # DAEMONSET: returns when it has left
  local pod
  pod=$(agent_pod "$1")
  # The account and the rights of both are the first release's, so that only its DaemonSet goes.
  if [[ $1 == latchkey-agent ]]; then
    kubectl -n latchkey delete daemonset "$1" >/dev/null
  else
    helm uninstall "$(release_of "$1")" --namespace latchkey >/dev/null
  fi
  kubectl -n latchkey wait --for=delete "pod/$pod" --timeout=150s >/dev/null
}

other_agent() { if [[ $agent == latchkey-agent ]]; then echo latchkey-next-agent; else echo latchkey-agent; fi; }

install_agent() {
  run_readme install >"$work/install" 2>&1 || { cat "$work/install"; return 1; }
  await_agent "$agent"
}

uninstall() { # the pods first: without the driver nobody could unmount their volumes
  kubectl delete --ignore-not-found --timeout=90s namespace test prod shop doctor "${made_namespaces[@]}" >/dev/null 2>&1 || true
  kubectl delete --ignore-not-found --timeout=90s namespace latchkey latchkey-e2e >/dev/null 2>&1 || true
  kubectl delete --ignore-not-found clusterrole/latchkey-agent clusterrolebinding/latchkey-agent csidriver/csi.latchkey.dev >/dev/null 2>&1 || true
}

# === pods ===

agent_pod() { # [DAEMONSET]: its pod on this node; default: of the one that serves
  kubectl -n latchkey get pods -l "app.kubernetes.io/instance=$(release_of "${1:-$agent}")" \
    --field-selector "spec.nodeName=$E2E_NODE" -o json |
    jq -r '[.items[] | select(.metadata.deletionTimestamp == null)][0].metadata.name'
}

uid_of() { kubectl -n "$1" get pod "$2" -o jsonpath='{.metadata.uid}'; } # NAMESPACE POD

pod() { # NAMESPACE NAME ACCOUNT RESTART-POLICY COMMAND...: a pod as an application would write it
  local namespace=$1 name=$2 account=$3 policy=$4
  shift 4
  jq -n --arg namespace "$namespace" --arg name "$name" --arg account "$account" --arg policy "$policy" \
    --arg node "$E2E_NODE" '{
      apiVersion: "v1", kind: "Pod", metadata: {$namespace, $name},
      spec: {
        serviceAccountName: $account, restartPolicy: $policy, terminationGracePeriodSeconds: 1,
        automountServiceAccountToken: false, enableServiceLinks: false, nodeSelector: {"kubernetes.io/hostname": $node},
        containers: [{
          name: "main", image: "docker.io/library/latchkey-client:e2e", imagePullPolicy: "Never", command: $ARGS.positional,
          volumeMounts: [{name: "latchkey", mountPath: "/run/latchkey", readOnly: true}]}],
        volumes: [{name: "latchkey", hostPath: {path: "/run/latchkey", type: "Directory"}}]}}' --args "$@" |
    kubectl apply -f - >/dev/null
}

running() { # NAMESPACE POD...
  local namespace=$1
  shift
  kubectl -n "$namespace" wait --for=condition=Ready "${@/#/pod/}" --timeout=60s >/dev/null
}

remove() { # NAMESPACE POD...
  local namespace=$1
  shift
  kubectl -n "$namespace" delete pod "$@" --wait=true >/dev/null
}

# === asking ===

ask() { # NAMESPACE/POD PATH: sets `status` and `body`
  local answer
  answer=$(kubectl exec -n "${1%/*}" "${1#*/}" -- ask "$2") || true
  status=${answer##*$'\t'} body=${answer%$'\t'*}
}

ask_from_node() { # SECRET: as a process that is in no pod; sets `body`
  body=$(curl --silent --max-time 15 --unix-socket "$socket" "http://localhost/v1/secrets/$1") || true
}

field() { jq -r ".$1 // empty" <<<"$body" 2>/dev/null || true; } # NAME, of the last answer's body

check_value() { # SENTENCE NAMESPACE/POD SECRET VALUE
  ask "$2" "secrets/$3"
  check_equal "$1" "200 $4" "$status $(field value)"
}

check_refused() { # SENTENCE NAMESPACE/POD SECRET CODE
  ask "$2" "secrets/$3"
  check_equal "$1" "403 $4" "$status $(field code)"
}

# === processes on this node ===

process_of() { # POD-UID PROGRAM: the pid of the pod's process by that name
  local file directory
  for file in $(grep -lsE "pod${1//-/[-_]}" /proc/[0-9]*/cgroup); do
    directory=${file%/cgroup}
    [[ $(<"$directory/comm") != "$2" ]] || { echo "${directory#/proc/}"; return; }
  done 2>/dev/null
  return 1
}

agent_process() { process_of "$(uid_of latchkey "$(agent_pod)")" latchkey-agent; }
