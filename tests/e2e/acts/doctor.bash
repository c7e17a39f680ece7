# `latchkey doctor`: each thing that can be wrong is made wrong, and it names just that.

act_doctor() {
  note 'doctor: pods with one thing wrong each, and the word for it from inside and from outside'
  mkdir "$work/reports"
  kubectl apply -f "$here/doctor.yaml" >/dev/null
  patients | kubectl apply -f - >/dev/null
  kubectl -n doctor wait --for=condition=Ready pod -l hope=ready --timeout=120s >/dev/null
  doctor_by_mount
  doctor_by_role
  doctor_by_secret
  doctor_by_host_network
  doctor_by_ephemeral_container
  doctor_by_silent_cloud
  doctor_by_agent
  check_equal 'no report holds a secret' '' "$(grep -lF "$canary" "$work"/reports/* || true)"
  kubectl delete namespace doctor --wait=false >/dev/null
}

# === pods ===

# All at once. The command comes into each as it does in the example of `exec`.
patients() {
  {
    patient well app
    patient late app
    patient greedy app
    patient no-mount app 'del(.spec.volumes[0], .spec.containers[0].volumeMounts[0])'
    patient file-mount app '.spec.volumes[0].hostPath = {path: "/run/latchkey/agent.sock", type: "Socket"}
      | .spec.containers[0].volumeMounts[0].mountPath = "/run/latchkey/agent.sock"'
    # Its second container ends, so that it is never ready.
    patient host app 'del(.metadata.labels) | .spec.hostNetwork = true | .spec.containers += [.spec.containers[0]
      | .name = "proxy" | .command = ["/opt/latchkey/latchkey", "proxy", "--listen", "127.0.0.1:18080"]]'
    local account
    for account in bare malformed other-sub other-aud other-clients no-issuer elsewhere ungranted; do patient "$account" "$account"; done
  } | jq -s '{apiVersion: "v1", kind: "List", items: .}'
}

patient() { # NAME ACCOUNT [JQ-FILTER]
  jq -n --arg name "$1" --arg account "$2" --arg node "$E2E_NODE" '
    def container($name; $image; $command; $mounts):
      {$name, image: "docker.io/library/latchkey-\($image):e2e", imagePullPolicy: "Never", $command, volumeMounts: $mounts};
    {name: "bin", mountPath: "/opt/latchkey"} as $bin
    | {name: "latchkey", mountPath: "/run/latchkey", readOnly: true} as $latchkey
    | {apiVersion: "v1", kind: "Pod", metadata: {$name, namespace: "doctor", labels: {hope: "ready"}},
      spec: {
        serviceAccountName: $account, restartPolicy: "Never", terminationGracePeriodSeconds: 1,
        automountServiceAccountToken: false, enableServiceLinks: false, nodeName: $node,
        initContainers: [container("install"; "agent"; ["/usr/bin/latchkey", "install", "/opt/latchkey"]; [$bin])],
        containers: [container("main"; "client"; ["sleep", "86400"]; [$latchkey, $bin])],
        volumes: [{name: "latchkey", hostPath: {path: "/run/latchkey", type: "Directory"}}, {name: "bin", emptyDir: {}}]}}
    | '"${3:-.}"
}

# === asking ===

in_patient() { kubectl -n doctor exec "$1" -c main -- "${@:2}"; } # POD COMMAND...

examine() { # POD [SECRET]: sets `report`
  report=$(in_patient "$1" /opt/latchkey/latchkey doctor --json "${@:2}" 2>>"$work/reports/stderr") || true
}

judge() { # SENTENCE CAUSE [WORDS]: whether `report` names that cause alone, and in words that hold these
  local seen
  seen=$(jq -r --arg words "${3:-}" '[.findings[] | select(.verdict == "fail")]
    | if . == [] then "nothing" else map("\(.step): \(.cause)") | join(", ") end
      + if all(.[]; .text | contains($words)) then "" else ", in other words" end' <<<"$report") || true
  printf '%s\n' "$report" >>"$work/reports/all"
  if [[ $seen == "$2" ]]; then ok "$1 ($2)"; else not_ok "$1 ($2)" "saw ${seen:-no report}: $report"; fi
}

names() { # SENTENCE CAUSE WORDS POD [SECRET]
  local report
  examine "${@:4}"
  judge "$1" "$2" "$3"
}

names_from_outside() { # SENTENCE CAUSE WORDS POD: sets `report`
  report=$("$work/programs/latchkey" doctor --json --pod "doctor/$4" 2>>"$work/reports/stderr") || true
  judge "from outside: $1" "$2" "$3"
}

check_noted() { # SENTENCE CAUSE: of `report`
  check_equal "$1" true "$(jq --arg cause "$2" 'any(.findings[]; .verdict == "note" and .cause == $cause)' <<<"$report")"
}

# === causes ===

doctor_by_mount() {
  local report
  names 'nothing is wrong' nothing '' well doctor/password
  names_from_outside 'nothing is wrong' nothing '' well
  names 'no mount' 'socket: no_mount' 'is not mounted' no-mount
  names_from_outside 'no mount' 'volume: no_mount' '' no-mount
  in_patient no-mount busybox mkdir -p /run/latchkey
  names "no mount, where the image has a directory by that name" 'socket: no_mount' "the image's own" no-mount
  examine file-mount doctor/password
  judge 'the file is mounted instead of the directory: it works for now' nothing
  check_noted 'and that is told' file_mount
  names_from_outside 'the file is mounted instead of the directory' 'volume: file_mount' '' file-mount
}

doctor_by_role() {
  local report
  names 'no annotation' 'role: no_role' 'names no AWS role' bare doctor/password
  names_from_outside 'no annotation' nothing '' bare
  check_noted 'and that no role is named is told' no_role
  names 'a malformed role' 'role: wrong_role' 'no ARN of an IAM role' malformed doctor/password
  names_from_outside 'a malformed role' 'role: malformed_role' 'role/doctor' malformed
  names 'a trust policy with another sub' 'exchange: role_refused' 'trust policy' other-sub doctor/password
  names 'a trust policy with another aud' 'exchange: role_refused' 'aud, which is sts.amazonaws.com' other-aud doctor/password
  names 'a provider for other clients' 'exchange: role_refused' 'does not list sts.amazonaws.com among its client ids' other-clients doctor/password
  names 'an issuer that AWS does not know' 'exchange: role_refused' "does not know this cluster's issuer" no-issuer doctor/password
  names 'a namespace that does not let the agent issue tokens' 'token: token_refused' 'may not issue tokens' ungranted doctor/password
  names_from_outside 'a namespace that does not let the agent issue tokens' 'tokens: token_forbidden' '' ungranted
}

doctor_by_secret() {
  names "a secret that is not in the role's policy" 'secret: secret_refused' 'check its policy' well prod/database-password
  names 'a secret that is not there' 'secret: no_such_secret' 'in eu-central-1' well doctor/none
  names 'another region' 'secret: no_such_secret' 'in us-west-2' elsewhere doctor/password
  names 'a vault that is asked too often' 'secret: throttled' 'slow down' well doctor/busy
}

doctor_by_host_network() {
  local report
  check 'hostNetwork: the proxy does not start, and says why' eventually 60 proxy_says_why
  examine host doctor/password
  judge 'hostNetwork: secrets are read all the same' nothing
  check_noted 'and that no proxy starts there is told' host_network
  names_from_outside 'hostNetwork with a proxy' 'network: host_network_proxy' '' host
}

proxy_says_why() { kubectl -n doctor logs host -c proxy 2>&1 | grep hostNetwork; }

doctor_by_ephemeral_container() {
  local report path=/api/v1/namespaces/doctor/pods/well/ephemeralcontainers
  if ! kubectl get --raw "$path" >"$work/ephemeral" 2>/dev/null; then
    note 'this cluster has no ephemeral containers: that cause is left to the test suite'
    return
  fi
  # The object is the pod itself, and was one of its own before Kubernetes 1.22.
  kubectl -n doctor get pod well -o json | jq --slurpfile old "$work/ephemeral" '
    .spec as $pod | ($pod.containers[0] | .name = "debug" | .command = ["/opt/latchkey/latchkey", "doctor", "--json"]) as $debug
    | $old[0] | if .kind == "Pod" then .spec.ephemeralContainers += [$debug] else .ephemeralContainers += [$debug] end' |
    kubectl replace --raw "$path" -f - >/dev/null
  eventually 30 debugged || true
  report=$(kubectl -n doctor logs well -c debug) || true
  judge 'an ephemeral container' 'attestation: ephemeral_container' 'kubectl debug'
}

debugged() { kubectl -n doctor logs well -c debug | jq -e .findings; }

# The fake stands still: its port is open, and nothing answers. Whoever has a session waits for the vault, who has none for
# the token service, and who asks for more than he may is told so.
doctor_by_silent_cloud() {
  local report fake pod flood asked=()
  fake=$(process_of "$(uid_of latchkey-e2e fake-aws)" fake-aws)
  kill -STOP "$fake"
  # As many URLs at once as one curl can ask for: what follows the # is not sent.
  in_patient greedy sh -c 'until test -e /tmp/stop; do
    ask "secrets/doctor/password#[1-60]" --parallel --parallel-immediate --parallel-max 60; done' >/dev/null 2>&1 &
  flood=$!
  for pod in well late; do
    { local report; examine "$pod" doctor/password; printf %s "$report" >"$work/reports/$pod"; } &
    asked+=($!)
  done
  wait "${asked[@]}" || true
  eventually 20 greedy_is_refused || true
  judge 'a pod over its limit' 'limits: over_limit' 'too many requests in flight'
  kill -CONT "$fake"
  in_patient greedy touch /tmp/stop
  wait "$flood" || true
  report=$(<"$work/reports/well") judge 'a vault that cannot be reached' 'secret: vault_unreachable' 'Secrets Manager in eu-central-1'
  report=$(<"$work/reports/late") judge 'a token service that cannot be reached' 'exchange: token_service_unreachable' 'the AWS token service'
  eventually 30 late_reads || true
  names 'the cloud is back: nothing is wrong' nothing '' late doctor/password
}

greedy_is_refused() { examine greedy doctor/password; grep -q over_limit <<<"$report"; }

late_reads() { in_patient late /opt/latchkey/latchkey get doctor/password; }

# An agent that may ask the API server for nothing waits; killed twice, it is kept waiting by the kubelet; then it is gone.
doctor_by_agent() {
  local binding pod
  binding=$(kubectl get clusterrolebinding latchkey-agent -o json | jq 'del(.metadata | .uid, .resourceVersion, .creationTimestamp, .managedFields)')
  kubectl delete clusterrolebinding latchkey-agent >/dev/null
  kill -9 "$(agent_process)"
  eventually 30 agent_waits || true
  names 'an agent that is not ready' 'agent: agent_not_ready' 'it waits for' well doctor/password
  names_from_outside 'an agent that is not ready' 'agent: agent_not_ready' '' well
  names 'the file is mounted, and the agent was started anew' 'socket: file_mount' 'a restarted agent makes a new one' file-mount
  kill -9 "$(agent_process)"
  names 'an agent that has died' 'socket: agent_down' 'nobody listens' well doctor/password
  names_from_outside 'an agent that has died' 'agent: agent_not_ready' '' well
  kubectl create -f - <<<"$binding" >/dev/null
  await_agent "$agent"

  pod=$(agent_pod)
  place_agent '{"latchkey-e2e": "nowhere"}'
  kubectl -n latchkey wait --for=delete "pod/$pod" --timeout=150s >/dev/null
  names 'no agent on the node' 'socket: agent_down' 'there is no socket in' well doctor/password
  names_from_outside 'no agent on the node' 'agent: agent_absent' '' well
  place_agent '{"latchkey-e2e": null}'
  eventually 30 agent_is_back || true
  await_agent "$agent"
  names 'the agent is back: nothing is wrong' nothing '' well doctor/password
}

place_agent() { # NODE-SELECTOR: what is added to that of the DaemonSet
  kubectl -n latchkey patch daemonset "$agent" --type merge --patch "{\"spec\": {\"template\": {\"spec\": {\"nodeSelector\": $1}}}}" >/dev/null
}

agent_waits() { examine well; jq -e 'any(.findings[]; .cause == "agent_not_ready")' <<<"$report"; }

agent_is_back() { [[ $(agent_pod) != null ]]; }
