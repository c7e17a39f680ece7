# Delivery by CSI: a pod without hostPath reads through its own socket, and the agent may ask for no token.

plugin_directory() { echo "${E2E_KUBELET_ROOT:-/var/lib/kubelet}/plugins/csi.latchkey.dev"; }

csi_daemonset() { # the serving DaemonSet with the mounter beside the agent
  local patch
  patch=$(sed "s,/var/lib/kubelet,${E2E_KUBELET_ROOT:-/var/lib/kubelet},g" "$here/../../deploy/csi/daemonset.patch.yaml")
  daemonset "$agent" | kubectl patch --local -f - -p "$patch" -o json |
    jq '(.spec.template.spec.containers[] | select(.name == "mounter"))
      |= (.image = "docker.io/library/latchkey-agent:e2e" | .imagePullPolicy = "Never")'
}

install_csi() {
  kubectl apply -f "$here/../../deploy/csi/csidriver.yaml" >/dev/null
  stop_agent "$agent"
  csi_daemonset | kubectl apply -f - >/dev/null
  await_agent "$agent"
  kubectl -n latchkey logs --follow "$(agent_pod)" -c mounter >"$(mktemp "$work/logs/mounter.XXXX")" 2>/dev/null &
}

uninstall_csi() {
  kubectl delete --ignore-not-found -f "$here/../../deploy/csi/csidriver.yaml" >/dev/null
  local directory
  directory=$(plugin_directory)
  umount --lazy "$directory/run" 2>/dev/null || true
  rm -rf "$directory" "${E2E_KUBELET_ROOT:-/var/lib/kubelet}/plugins_registry/csi.latchkey.dev-reg.sock"
}

csi_pod() { # NAMESPACE NAME ACCOUNT COMMAND...: as an application would write it, for a namespace of level restricted
  local namespace=$1 name=$2 account=$3
  shift 3
  jq -n --arg namespace "$namespace" --arg name "$name" --arg account "$account" --arg node "$E2E_NODE" '{
      apiVersion: "v1", kind: "Pod", metadata: {$namespace, $name, labels: {run: "csi"}},
      spec: {
        serviceAccountName: $account, restartPolicy: "Never", terminationGracePeriodSeconds: 1,
        automountServiceAccountToken: false, enableServiceLinks: false, nodeSelector: {"kubernetes.io/hostname": $node},
        securityContext: {runAsNonRoot: true, runAsUser: 10001},
        containers: [{
          name: "main", image: "docker.io/library/latchkey-client:e2e", imagePullPolicy: "Never", command: $ARGS.positional,
          securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: ["ALL"]}},
          volumeMounts: [{name: "latchkey", mountPath: "/run/latchkey", readOnly: true}]}],
        volumes: [{name: "latchkey", csi: {driver: "csi.latchkey.dev", readOnly: true}}]}}' --args "$@"
}

published() { # how often the kubelet has published so far
  curl --silent --max-time 5 "http://$(kubectl -n latchkey get pod "$(agent_pod)" -o jsonpath='{.status.podIP}'):9642/metrics" |
    awk '$1 == "latchkey_csi_publishes_total{outcome=\"ok\"}" {print $2; found = 1} END {if (!found) print 0}'
}

csi_mounts() { grep -c "kubernetes.io~csi" /proc/self/mountinfo || true; }

published_since() { (($(published) > $1)); }

reads_by_csi() { # NAMESPACE/POD VALUE
  ask "$1" secrets/"${1%/*}"/database-password
  [[ $status == 200 && $(field value) == "$2" ]]
}

act_csi() {
  note 'CSI: the kubelet brings the socket and the tokens'
  local before count start
  remove test reader stranger
  remove prod reader
  kubectl -n test delete rolebinding,role latchkey-tokens >/dev/null
  kubectl -n prod delete rolebinding,role latchkey-tokens >/dev/null
  before=$(csi_mounts)
  install_csi
  check_cannot 'the agent may create no token in the namespace' -n test create serviceaccounts/app --subresource=token
  csi_pod test by-csi app sleep 86400 | kubectl apply -f - >/dev/null
  csi_pod prod by-csi app sleep 86400 | kubectl apply -f - >/dev/null
  running test by-csi
  running prod by-csi
  check_value 'a pod without hostPath reads its secret through its own socket' test/by-csi test/database-password "$test_value"
  check_value 'and so does one of the other namespace' prod/by-csi prod/database-password "$prod_value"
  check_refused 'it is refused the other namespace'\''s' test/by-csi prod/database-password denied
  count=$(published)
  check 'the kubelet publishes again within 100 s, with tokens' eventually 100 published_since "$count"
  check 'a second mount has not come of that' test "$(csi_mounts)" -eq $((before + 2))

  note 'CSI: restarts'
  kill -9 "$(process_of "$(uid_of latchkey "$(agent_pod)")" latchkey-csi)"
  check 'a pod reads on while the mounter is away' reads_by_csi test/by-csi "$test_value"
  kubectl -n latchkey wait --for=condition=Ready "pod/$(agent_pod)" --timeout=60s >/dev/null
  csi_pod test after-mounter app sleep 86400 | kubectl apply -f - >/dev/null
  running test after-mounter
  check_value 'a pod that starts after the mounter was killed reads' test/after-mounter test/database-password "$test_value"
  kill -9 "$(agent_process)"
  check 'after the agent was killed a pod reads again, with the tokens of the kubelet'\''s next call' \
    eventually 130 reads_by_csi test/by-csi "$test_value"
  if [[ -n ${E2E_KUBELET:-} ]]; then
    $E2E_KUBELET
    check 'a pod reads on while the kubelet starts again' reads_by_csi test/by-csi "$test_value"
    csi_pod test after-kubelet app sleep 86400 | kubectl apply -f - >/dev/null
    check 'a pod starts after the kubelet was restarted' \
      kubectl -n test wait --for=condition=Ready pod/after-kubelet --timeout=100s
    check_value 'and reads' test/after-kubelet test/database-password "$test_value"
  else
    note 'the kubelet is not restarted, since E2E_KUBELET is not set'
  fi

  note "CSI: ${E2E_CHURN:-100} pods come and go"
  start=$SECONDS
  for count in $(seq "${E2E_CHURN:-100}"); do
    csi_pod test "churn-$count" app ask secrets/test/database-password
  done | kubectl apply -f - >/dev/null
  check 'all of them read as the first thing that they do' eventually 300 churn_is_over
  check_equal 'and got the value' "${E2E_CHURN:-100}" "$(churn_values)"
  kubectl delete pods --namespace test --selector run=csi --wait=true --timeout=180s >/dev/null
  kubectl delete pods --namespace prod --selector run=csi --wait=true --timeout=60s >/dev/null
  note "after $((SECONDS - start)) s"
  check 'no mount is left' eventually 30 test_no_mounts "$before"
  check_equal 'no directory and no record of a volume is left' '' "$(ls "$(plugin_directory)"/run/p "$(plugin_directory)"/run/v | grep -v : || true)"
  check_equal 'no directory of a pod is left with the kubelet' '' \
    "$(find "${E2E_KUBELET_ROOT:-/var/lib/kubelet}/pods" -maxdepth 3 -name 'kubernetes.io~csi' | head -3)"
  check_equal 'no token is in a log' 0 "$(cat "$work"/logs/* | grep -c 'eyJhbGciOi' || true)"
  uninstall_csi
}

churn_is_over() {
  [[ $(kubectl -n test get pods -l run=csi -o json |
    jq '[.items[] | select(.metadata.name | startswith("churn-")) | select(.status.phase == "Succeeded" or .status.phase == "Failed")] | length') == "${E2E_CHURN:-100}" ]]
}

churn_values() {
  local count right=0
  for count in $(seq "${E2E_CHURN:-100}"); do
    [[ $(kubectl -n test logs "churn-$count") != *"$test_value"* ]] || right=$((right + 1))
  done
  echo "$right"
}

test_no_mounts() { [[ $(csi_mounts) == "$1" ]]; }
