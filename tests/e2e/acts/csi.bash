# Delivery by CSI, as the chart installs it: no pod has a hostPath, and the agent no right to any token.

csi_pod() { # NAMESPACE NAME COMMAND...: a pod of `app`, as an application would write it for a namespace of level restricted
  local namespace=$1 name=$2 policy=Always
  shift 2
  case $1 in ask | early) policy=Never ;; esac # they ask once
  jq -n --arg policy "$policy" --arg namespace "$namespace" --arg name "$name" --arg node "$E2E_NODE" '{
    apiVersion: "v1", kind: "Pod", metadata: {$namespace, $name, labels: {run: ($name | sub("-[0-9]+$"; ""))}},
    spec: {
      serviceAccountName: "app", restartPolicy: $policy, terminationGracePeriodSeconds: 1,
      automountServiceAccountToken: false, enableServiceLinks: false, nodeSelector: {"kubernetes.io/hostname": $node},
      securityContext: {runAsNonRoot: true, runAsUser: 10001, seccompProfile: {type: "RuntimeDefault"}},
      containers: [{
        name: "main", image: "docker.io/library/latchkey-client:e2e", imagePullPolicy: "Never", command: $ARGS.positional,
        securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: ["ALL"]}},
        volumeMounts: [{name: "latchkey", mountPath: "/run/latchkey", readOnly: true}]}],
      volumes: [{name: "latchkey", csi: {driver: "csi.latchkey.dev", readOnly: true}}]}}' --args "$@"
}

start_csi_pod() { csi_pod "$@" | kubectl apply -f - >/dev/null; } # as above

mounter_process() { process_of "$(uid_of latchkey "$(agent_pod)")" latchkey-csi; }

key_of() { # POD-UID: the name of its volume in the mounter's memory
  grep -l "\"$1\"" "$plugin"/run/v/* 2>/dev/null | head -n 1 | xargs -r basename
}

reads_by_csi() { # NAMESPACE/POD VALUE
  ask "$1" secrets/"${1%/*}"/database-password
  [[ $status == 200 && $(field value) == "$2" ]] || { echo "$1 was answered $status $body"; return 1; }
}

is_phase() { [[ $(kubectl -n test get pod "$1" -o jsonpath='{.status.phase}') == "$2" ]]; } # POD PHASE

# One mount for each of the pods that have such a volume, and no more: nothing is stacked.
one_mount_each() {
  [[ $(csi_mounts | sort | uniq -c | awk '$1 != 1') == '' && $(csi_mounts | wc -l) == "$(with_csi_volume)" ]]
}

with_csi_volume() { # how many pods have one; those that have ended are unmounted
  kubectl get pods --all-namespaces -o json | jq '[.items[]
    | select(.status.phase == "Running" or .status.phase == "Pending")
    | select(any(.spec.volumes[]?; .csi.driver == "csi.latchkey.dev"))] | length'
}

# At the level of logging that ships, as `first_request` is: what the act `csi` sets would be measured too.
act_csi_first_request() {
  note 'CSI: how soon a container has its first secret'
  local n firsts=()
  for n in {0..9}; do
    start_csi_pod test "early-$n" early secrets/test/database-password
    eventually 60 is_phase "early-$n" Succeeded || true
    firsts+=("$(kubectl -n test logs "early-$n")")
  done
  check_equal 'ten pods that ask once, as the first thing they do, all read their secret' 10 \
    "$(printf '%s\n' "${firsts[@]}" | grep -c "$test_value.*200$" || true)"
  csi_since_start=$(printf '%s\n' "${firsts[@]}" | cut -f 2 | median)
  note "$csi_since_start ms after its container's start, the median; asked and answered in $(
    printf '%s\n' "${firsts[@]}" | awk -F '\t' '{print $2 - $1}' | median) ms, with the start of curl"
  kubectl -n test delete pods -l run=early --wait=true --timeout=180s >/dev/null
}

act_csi() {
  note 'CSI: as the chart installs it'
  (cd "$work/desk" && helm upgrade latchkey deploy/helm/latchkey --namespace latchkey --values latchkey.yaml \
    --set config.log.level=trace --set config.csi.refresh=5s) >/dev/null
  await_agent "$agent"
  follow_mounter
  csi_without_rights
  csi_sub_path
  csi_foreign_socket
  csi_break_in
  csi_restarts
  csi_mid_publish
  csi_churn
  csi_recovered
  csi_files
  csi_forgotten
  csi_no_token_anywhere
  kubectl -n test delete pods --wait=true --timeout=180s -l 'run in (by-csi, files, few-files, no-files, late-files)' >/dev/null
  kubectl -n prod delete pod by-csi --wait=true --timeout=180s >/dev/null
}

follow_mounter() { kubectl -n latchkey logs --follow "$(agent_pod)" -c mounter >"$(mktemp "$work/logs/mounter.XXXX")" 2>/dev/null & }

csi_without_rights() {
  local agents_account=system:serviceaccount:latchkey:latchkey-agent
  start_csi_pod test by-csi watch secrets/test/database-password
  start_csi_pod prod by-csi sleep 86400
  running test by-csi
  running prod by-csi
  check_value 'a pod without hostPath reads its secret through its own socket' test/by-csi test/database-password "$test_value"
  check_value 'so does one of another namespace' prod/by-csi prod/database-password "$prod_value"
  check_refused "it is refused the other namespace's secret" test/by-csi prod/database-password denied
  check_equal 'kubectl auth can-i: the agent may create no token, in no namespace' 'no no no' \
    "$(for namespace in test prod latchkey; do
      kubectl auth can-i create serviceaccounts --subresource=token -n "$namespace" --as="$agents_account" 2>/dev/null || true
    done | paste -sd ' ')"
  own_token
  check_forbidden "with the agent's own token the pod's account gets none" \
    POST /api/v1/namespaces/test/serviceaccounts/app/token "$(token_request test by-csi)"
}

# The kubelet makes a subPath that is missing, as root on the node, before it starts the container.
csi_sub_path() {
  local key
  csi_pod test sub-path sleep 86400 |
    jq '.spec.containers[0].volumeMounts += [{name: "latchkey", mountPath: "/x", subPath: "evil/a/b", readOnly: true}]' |
    kubectl apply -f - >/dev/null
  check 'a subPath that is missing keeps the pod from starting, with an event that says so' \
    eventually 60 event_says sub-path 'failed to create subPath directory'
  key=$(key_of "$(uid_of test sub-path)")
  check_equal 'and nothing is written into the memory that all volumes share' agent.sock \
    "$(find "$plugin/run/p/$key" -mindepth 1 -printf '%P ' | xargs)"
  kubectl -n test delete pod sub-path --wait=true --timeout=180s >/dev/null
}

# What no API lets anybody do, done by root on the node: another pod's directory mounted into a pod.
csi_foreign_socket() {
  local key
  key=$(key_of "$(uid_of prod by-csi)")
  csi_pod test thief sleep 86400 |
    jq --arg path "$plugin/run/p/$key" '.spec.volumes = [{name: "latchkey", hostPath: {$path, type: "Directory"}}]' |
    kubectl apply -f - >/dev/null
  running test thief
  check_refused "a pod that got hold of another pod's socket is not believed to be that pod" test/thief prod/database-password not_attested
  check_refused 'nor is it believed to be itself there' test/thief test/database-password not_attested
  check 'its audit line says why' eventually 20 mismatch_is_audited
  kubectl -n test delete pod thief --wait=false >/dev/null
}

mismatch_is_audited() { agent_audit | jq -es 'any(.code == "not_attested" and .reason == "listener_mismatch")'; }

# By default the agent's account has no right to tokens; and the sockets of pods, which it made, believe nobody else.
csi_break_in() {
  note "CSI, break-in: root in the agent's container, step by step"
  twin
  check_break_in prod/by-csi
  check_equal "by a pod's own socket he is not that pod" not_attested "$(in_twin "curl --silent \
    --unix-socket $plugin/run/p/$(key_of "$(uid_of prod by-csi)")/agent.sock http://localhost/v1/secrets/prod/database-password" | jq -r .code)"
  check_forbidden 'with the token he can be no pod at all' \
    POST /api/v1/namespaces/prod/serviceaccounts/app/token "$(token_request prod by-csi)"
  remove_twin
}

# All three parts, each of them once as the first and once as the last, while one pod reads and another one starts. What is
# lost meanwhile is the kubelet's time: it waits before it starts a container again, ten seconds at first, then twenty.
csi_restarts() {
  note 'CSI: mounter, agent and kubelet are killed one after another, under load'
  local order victim number=0 orders=('mounter agent kubelet' 'agent kubelet mounter' 'kubelet mounter agent')
  if [[ -z ${E2E_KUBELET:-} ]]; then
    note 'the kubelet is not restarted, since E2E_KUBELET is not set'
    orders=('mounter agent' 'agent mounter')
  fi
  local began
  csi_before=$(newest_token) began=$(milliseconds)
  for order in "${orders[@]}"; do
    number=$((number + 1))
    for victim in $order; do kill_part "$victim"; done
    start_csi_pod test "after-$number" sleep 86400
    check "$order: a pod that is made at once runs" eventually 90 is_phase "after-$number" Running
    check 'and reads' eventually 30 reads_by_csi "test/after-$number" "$test_value"
  done
  tally_watched by-csi "$began" "$(milliseconds)"
  check_equal 'a pod that read ten times a second was never answered wrongly' 0 "$wrong"
  note "in $((($(milliseconds) - began) / 1000)) s: $right right, $unavailable unavailable, $lost lost; longest time without an answer $gap ms"
  check 'each volume is mounted once' eventually 30 one_mount_each
  kubectl -n test delete pods -l run=after --wait=true --timeout=180s >/dev/null
  follow_agent
}

# The agent that was killed had no tokens until the kubelet called again; the acts in between have given it the time.
csi_recovered() {
  check 'pods from before the restarts read again, with the tokens of a later call of the kubelet' eventually 100 both_read
  # A kubelet keeps a token for eight of its ten minutes, unless it is restarted.
  [[ -z ${E2E_KUBELET:-} ]] || check 'which are newer ones' test "$(newest_token)" -gt "$csi_before"
}

both_read() { reads_by_csi test/by-csi "$test_value" && reads_by_csi prod/by-csi "$prod_value"; }

newest_token() { # when the newest token that the cloud has seen of this pod's expires
  cloud_log | jq -s --arg uid "$(uid_of test by-csi)" '[.[] | select(.token.pod[1]? == $uid) | .token.exp] | max'
}

kill_part() { # mounter|agent|kubelet
  local pid
  case $1 in
    kubelet) $E2E_KUBELET ;;
    mounter) pid=$(mounter_process) && kill -9 "$pid" || true ;; # it may be down already
    agent) pid=$(agent_process) && kill -9 "$pid" || true ;;
  esac
}

follow_agent() { # restarted containers have logs of their own
  kubectl -n latchkey rollout status daemonset "$agent" --timeout=60s >/dev/null
  kubectl -n latchkey logs --follow "$(agent_pod)" -c agent >"$(mktemp "$work/logs/$agent.XXXX")" 2>/dev/null &
  follow_mounter
}

# A publish that is surely under way, since the agent is stopped in it.
csi_mid_publish() {
  note 'CSI: killed in the middle of a publish'
  local victim pid agent_pid
  for victim in mounter agent; do
    agent_pid=$(agent_process)
    kill -STOP "$agent_pid"
    start_csi_pod test "mid-$victim" sleep 86400
    check "a publish is under way" eventually 20 is_recorded "mid-$victim"
    if [[ $victim == mounter ]]; then pid=$(mounter_process); else pid=$agent_pid; fi
    kill -9 "$pid"
    [[ $victim == agent ]] || kill -CONT "$agent_pid"
    check "$victim killed in it: the kubelet tries again, and the pod runs" eventually 90 is_phase "mid-$victim" Running
    check 'and reads' eventually 30 reads_by_csi "test/mid-$victim" "$test_value"
    check 'from one mount, as all others' eventually 10 one_mount_each
    kubectl -n test delete pod "mid-$victim" --wait=true --timeout=180s >/dev/null
  done
  follow_agent
}

is_recorded() { [[ -n $(key_of "$(uid_of test "$1")") ]]; } # POD

csi_churn() {
  local total=${E2E_CHURN:-100} batch=25 first n right=0 began=$SECONDS
  local pods descriptors
  note "CSI: $total pods come and go"
  eventually 60 one_mount_each || true
  pods=$(with_csi_volume) descriptors=$(descriptors)
  for ((first = 0; first < total; first += batch)); do
    for ((n = first; n < first + batch; n++)); do csi_pod test "churn-$n" ask secrets/test/database-password; done | kubectl apply -f - >/dev/null
    eventually 180 none_is_left_running || true
    right=$((right + $(kubectl -n test logs -l run=churn --tail=1 | grep -c "$test_value.*200$" || true)))
    kubectl -n test delete pods -l run=churn --wait=true --timeout=180s >/dev/null
  done
  check_equal "all read as the first thing that they do (after $((SECONDS - began)) s)" "$total" "$right"
  check 'no mount is left of them' eventually 30 one_mount_each
  check_equal 'no directory, no record and no socket' "$pods $pods $pods" \
    "$(for directory in p v; do find "$plugin/run/$directory" -mindepth 1 -maxdepth 1 | wc -l; done | paste -sd ' ') $(find "$plugin/run/p" -type s | wc -l)"
  check_equal 'nothing with the kubelet' "$(csi_mounts | sort)" \
    "$(find "$kubelet_root/pods" -maxdepth 5 -path '*/kubernetes.io~csi/*/mount' | sort)"
  check 'no descriptor of agent and mounter, but for a few of connections that come and go' \
    eventually 30 descriptors_are_near "$descriptors"
}

none_is_left_running() {
  [[ -z $(kubectl -n test get pods -l run=churn -o json | jq -r '.items[]
    | select(.status.phase != "Succeeded" and .status.phase != "Failed") | .metadata.name') ]]
}

descriptors() { # how many sockets and files each of the two has open
  local pid
  for pid in "$(agent_process)" "$(mounter_process)"; do find "/proc/$pid/fd" -mindepth 1 -lname '*' | wc -l; done | paste -sd ' '
}

descriptors_are_near() { # BEFORE: some of them belong to calls under way and to connections that are kept for the next one
  local -a before now
  read -r -a before <<<"$1"
  read -r -a now <<<"$(descriptors)"
  ((now[0] < before[0] + 10 && now[1] < before[1] + 10)) || { echo "${now[*]}"; return 1; }
}

files_pod() { # NAME SECRETS: a pod of `test` whose volume holds them. Not every cluster tells a driver the pod's group.
  csi_pod test "$1" sleep 86400 |
    jq --argjson secrets "$2" '.spec.volumes[0].csi.volumeAttributes = {secrets: ($secrets | map(. + {mode: "0444"}) | tojson)}' |
    kubectl apply -f - >/dev/null
}

file_is() { [[ $(kubectl -n test exec "$1" -- busybox cat /run/latchkey/database-password) == "$2" ]]; } # POD VALUE

event_says() { # POD WORD...: an event of the pod has all the words
  kubectl -n test get events --field-selector "involvedObject.name=$1" -o json |
    jq -e '[.items[].message] | any(. as $message | all($ARGS.positional[]; . as $word | $message | contains($word)))' --args "${@:2}" >/dev/null
}

csi_files() {
  note 'CSI: secrets as files'
  local own='{"name": "test/database-password"}' foreign='{"name": "prod/database-password", "file": "other"}'
  files_pod files "[$own]"
  files_pod no-files "[$own, $foreign]"
  files_pod few-files "[$own, ${foreign%\}}, \"optional\": true}]"
  running test files few-files
  check 'a container finds its secret in a file' file_is files "$test_value"
  check_equal 'which it cannot change' 'Read-only file system' \
    "$(kubectl -n test exec files -- bash -c 'echo x >/run/latchkey/database-password' 2>&1 | grep -o 'Read-only file system' || true)"
  check_equal 'it is in memory' tmpfs "$(kubectl -n test exec files -- busybox stat -f -c %T /run/latchkey/)"
  check_value 'the socket is beside it' test/files test/database-password "$test_value"
  check "another namespace's secret fails the mount, and an event says which and why" \
    eventually 60 event_says no-files prod/database-password denied
  check 'its pod waits' is_phase no-files Pending
  check_equal 'where it may be absent it is' database-password "$(kubectl -n test exec few-files -- busybox ls /run/latchkey/ | grep -vx agent.sock | paste -sd ' ')"
  check 'the audit trail has each file' eventually 20 files_are_audited
  csi_files_rotate
}

files_are_audited() {
  agent_audit | jq -es 'any(.volume != null and .secret == "test/database-password" and .outcome == "ok")
    and any(.volume != null and .secret == "prod/database-password" and .code == "denied")'
}

csi_files_rotate() {
  local old=$test_value
  stop_fake_aws
  files_pod late-files '[{"name": "test/database-password"}]'
  check 'while the vault is away a new pod waits, with an event' eventually 60 event_says late-files test/database-password unavailable
  check 'and files that are there stay' file_is files "$old"
  test_value=$canary-of-test-renewed
  start_fake_aws
  check 'a secret that was changed is in the file soon' eventually 30 file_is files "$test_value"
  check 'the pod that waited runs' eventually 180 is_phase late-files Running
  check 'and has it' file_is late-files "$test_value"
}

# Deleted by force while its volume cannot be unpublished, and then the kubelet begins anew and does not know it. Another one
# comes to its end meanwhile: the kubelet publishes its volume anew, as it does with all that it finds, to unpublish it then.
csi_forgotten() {
  [[ -n ${E2E_KUBELET:-} ]] || return 0
  note 'CSI: a pod that the kubelet forgets'
  local uid key mounter
  files_pod forgotten '[{"name": "test/database-password"}]'
  running test forgotten
  uid=$(uid_of test forgotten) key=$(key_of "$(uid_of test forgotten)") mounter=$(mounter_process)
  kill -STOP "$mounter"
  kubectl -n test delete pod forgotten --force --grace-period=0 >/dev/null 2>&1
  $E2E_KUBELET
  check 'its files are removed by the agent alone' eventually 60 is_emptied "$key"
  kubectl -n test delete pod files --wait=false >/dev/null
  sleep 20 # in which the kubelet looks for volumes of pods that are gone, and cannot ask their driver
  kill -CONT "$mounter"
  check 'and its volume by the mounter' eventually 100 is_withdrawn "$key"
  check_equal 'nothing of it is mounted' '' "$(csi_mounts | grep "$uid" || true)"
  check 'a pod with files that came to its end meanwhile goes' eventually 150 is_deleted files
}

is_deleted() { [[ -z $(kubectl -n test get pod "$1" --ignore-not-found -o name) ]]; } # POD

is_emptied() { [[ -e $plugin/run/p/$1/..data && ! -e $plugin/run/p/$1/..data/database-password ]]; } # KEY

is_withdrawn() { [[ ! -e $plugin/run/p/$1 && ! -e $plugin/run/v/$1 ]]; } # KEY

# By the tokens' signatures, which are the part of them that nothing else has. They are known where the translator saw them.
csi_no_token_anywhere() {
  note 'CSI: no token is anywhere'
  local found pid
  check_equal 'in no log of agent and mounter, at trace level' '' "$(grep -lE 'eyJ[A-Za-z0-9_-]{10,}' "$work"/logs/* || true)"
  [[ -n ${translation:-} ]] || { note 'the tokens themselves are not known here, so that files are not searched for them'; return 0; }
  awk '{print $2}' "$work/signatures" | cut -c -40 | sort -u >"$work/canaries"
  check "the run knows $(wc -l <"$work/canaries") tokens" test -s "$work/canaries"
  found=$(grep -rlF -f "$work/canaries" "$work/logs" "$plugin" "$kubelet_root/plugins_registry" /run/latchkey /var/log/pods 2>/dev/null || true)
  for pid in "$(agent_process)" "$(mounter_process)"; do
    found+=$(find "/proc/$pid/root/" -xdev -type f -print0 2>/dev/null | xargs -0 grep -lF -f "$work/canaries" 2>/dev/null || true)
  done
  check_equal 'and in no file that either of them could have written' '' "$found"
  csi_no_token_remembered
}

# A minute after it was passed on, a token is in the mounter's memory no more. The agent has what it needs: that the search
# finds something there shows that it would find it in the mounter.
csi_no_token_remembered() {
  local counted
  counted=$("$here/remembered.py" "$(mounter_process)" "$work/signatures" 60 100000)
  check "the mounter remembers no token of a minute ago ($counted)" grep -qE '^0 of [1-9]' <<<"$counted"
  counted=$("$here/remembered.py" "$(agent_process)" "$work/signatures" 0 100)
  check "the agent has those of the pods that run ($counted)" grep -qE '^[1-9][0-9]* of ' <<<"$counted"
}
