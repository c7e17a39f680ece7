# What the agent's account may do at the API server, tried with the agent's own token; and what whoever takes the
# agent's container over has.

own_token() { # takes the token out of the agent's container, and the API server's address from the kubeconfig
  local directory
  directory=/proc/$(agent_process)/root/var/run/secrets/kubernetes.io/serviceaccount
  agent_token=$(<"$directory/token")
  cp "$directory/ca.crt" "$work/ca.crt"
  api=$(kubectl config view --raw --minify -o jsonpath='{.clusters[0].cluster.server}')
}

as_agent() { # METHOD PATH [BODY [CURL-OPTION]...]: sets `status` and `body`
  local answer
  answer=$(curl --silent --show-error --max-time 15 --cacert "$work/ca.crt" --request "$1" \
    --header "Authorization: Bearer $agent_token" --header 'Content-Type: application/json' \
    ${3:+--data "$3"} "${@:4}" --write-out '\t%{http_code}' "$api$2" | tr -d '\n') || true
  status=${answer##*$'\t'} body=${answer%$'\t'*}
}

token_request() { # NAMESPACE POD [AUDIENCE]: as the agent asks
  jq -nc --arg name "$2" --arg uid "$(uid_of "$1" "$2")" --arg audience "${3:-sts.amazonaws.com}" '{
    apiVersion: "authentication.k8s.io/v1", kind: "TokenRequest",
    spec: {audiences: [$audience], expirationSeconds: 600, boundObjectRef: {apiVersion: "v1", kind: "Pod", $name, $uid}}}'
}

check_forbidden() { # SENTENCE METHOD PATH [BODY [CURL-OPTION]...]
  as_agent "${@:2}"
  check_equal "$1" '403 Forbidden' "$status $(field reason)"
}

act_rights() {
  note "rights: what the API server lets the agent's own token do"
  own_token
  as_agent GET /apis/authentication.k8s.io/v1
  check_equal 'the token from its container is taken' 200 "$status"
  check_token_rights
  check_forbidden 'it may not read Secrets' GET /api/v1/namespaces/test/secrets
  check_forbidden 'nor those of its own namespace' GET /api/v1/namespaces/latchkey/secrets
  check_forbidden 'it may not read ConfigMaps' GET /api/v1/namespaces/kube-system/configmaps
  check_forbidden 'it may not exec into pods' POST '/api/v1/namespaces/test/pods/reader/exec?command=id&stdout=true'
  check_forbidden 'it may not create pods' POST /api/v1/namespaces/latchkey/pods \
    '{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"},"spec":{"containers":[{"name":"x","image":"x"}]}}'
  check_forbidden 'it may not reach the kubelet through the API server' GET "/api/v1/nodes/$E2E_NODE/proxy/pods"
  check_forbidden 'it may not look at nodes' GET "/api/v1/nodes/$E2E_NODE"
  check_forbidden 'it may not change an annotation of a service account' PATCH /api/v1/namespaces/test/serviceaccounts/app \
    '{"metadata":{"annotations":{"a":"b"}}}' --header 'Content-Type: application/merge-patch+json'
  check_forbidden 'it may not give itself a right' POST /apis/rbac.authorization.k8s.io/v1/clusterrolebindings \
    '{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRoleBinding","metadata":{"name":"x"},
      "roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"cluster-admin"},"subjects":[]}'
  check_forbidden 'it may not act as another user' GET /api/v1/namespaces/test/secrets '' --header 'Impersonate-User: admin'
  check_forbidden 'nor as its node' GET /api/v1/pods '' --header "Impersonate-User: system:node:$E2E_NODE"
  # (The review of all its rules at once makes the API server of 1.20 fail, so they are looked up.)
  check_equal 'one ClusterRole is bound to it, beside the Roles by which namespaces name accounts' \
    'ClusterRoleBinding latchkey-agent,RoleBinding latchkey-tokens' "$(
      kubectl get clusterrolebindings,rolebindings --all-namespaces -o json | jq -r '
        [.items[] | select(any(.subjects[]?; .kind == "ServiceAccount" and .name == "latchkey-agent"))
        | "\(.kind) \(.metadata.name)"] | unique | join(",")')"
  check_equal 'and that is all it says' 'get,list,watch pods; get serviceaccounts,namespaces' "$(
    kubectl get clusterrole latchkey-agent -o json | jq -r '
      [.rules[] | (.verbs | join(",")) + " " + (.resources | join(","))] | join("; ")')"
}

# What a namespace has granted, and nothing beyond it.
check_token_rights() {
  as_agent POST /api/v1/namespaces/test/serviceaccounts/app/token "$(token_request test reader)"
  check_equal 'it gets a token for an account that its namespace has named' 201 "$status"
  check_forbidden 'it gets none for an account of that namespace that was not named' \
    POST /api/v1/namespaces/test/serviceaccounts/default/token "$(token_request test stranger)"
  check_forbidden 'it gets none for an account of a namespace that has named none' \
    POST /api/v1/namespaces/kube-system/serviceaccounts/default/token "$(token_request test stranger)"
  check_forbidden 'it gets none for its own account' \
    POST /api/v1/namespaces/latchkey/serviceaccounts/latchkey-agent/token "$(token_request test reader)"
  as_agent POST /api/v1/namespaces/test/serviceaccounts/app/token "$(token_request test stranger)"
  check_equal "it gets none for a named account, bound to another account's pod" 400 "$status"

  kubectl -n test create serviceaccount unnamed >/dev/null
  kubectl -n test annotate serviceaccount unnamed latchkey.dev/aws-role-arn=arn:aws:iam::111122223333:role/test >/dev/null
  pod test unnamed unnamed Always sleep 86400
  running test unnamed
  check_refused 'a pod whose account its namespace has not named is denied' test/unnamed test/database-password denied
  check_equal 'and told why' "the agent may not issue tokens for this pod's service account: the namespace has to allow it" \
    "$(field error)"
  remove test unnamed
}

# A pod with everything that the agent's own pod has, but for the program: a shell stands where an attacker would.
twin() {
  kubectl -n latchkey get daemonset "$agent" -o json | jq --arg node "$E2E_NODE" '{
    apiVersion: "v1", kind: "Pod", metadata: {name: "twin", namespace: "latchkey"},
    spec: (.spec.template.spec | .nodeName = $node | .terminationGracePeriodSeconds = 0 | .containers |= map(
      select(.name == "agent") | .image = "docker.io/library/latchkey-client:e2e" | .command = ["sleep", "86400"]
      | del(.args, .readinessProbe, .livenessProbe, .ports)))}' | kubectl apply -f - >/dev/null
  running latchkey twin
}

in_twin() { kubectl -n latchkey exec twin -- bash -c "$1" 2>&1; } # SCRIPT: as root in a container like the agent's

check_not_there() { # SENTENCE SCRIPT: the script must fail, and say so as the kernel does
  local said
  if said=$(in_twin "$2"); then
    not_ok "$1" "$2 succeeded: ${said:0:200}"
  elif grep -qiE 'permission denied|not permitted|read-only file system|no such file' <<<"$said"; then
    ok "$1"
  else
    not_ok "$1" "${said:0:300}"
  fi
}

act_break_in() {
  note "break-in: root in the agent's container, step by step"
  twin
  check_break_in prod/reader
  check_break_in_tokens
  remove_twin
}

check_break_in() { # NAMESPACE/POD: one that runs `sleep`
  local victim node_daemon serving
  victim=$(process_of "$(uid_of "${1%/*}" "${1#*/}")" sleep)
  node_daemon=$(pgrep -o -x kubelet || pgrep -o -x containerd)
  serving=$(agent_process)
  check_equal 'he is root' 0 "$(in_twin 'busybox id -u')"
  check_equal 'without any capability' 0000000000000000 "$(in_twin "busybox awk '/^Cap/ {print \$2}' /proc/self/status | busybox sort -u")"
  check_equal "he finds one credential: the token of the agent's account" /var/run/secrets/kubernetes.io/serviceaccount/token \
    "$(in_twin 'busybox find / -xdev -type f -name "*token*" ; busybox find /var/run/secrets /etc/latchkey -type f' |
      xargs -n 1 | sed 's,/\.\.[^/]*/,/,' | grep -E '/token$' | sort -u | paste -sd ' ')"
  check_equal 'and no credential in the environment' '' \
    "$(in_twin 'busybox env' | grep -iE '(secret|password|token|access_key)[a-z_]*=' || true)"
  check_not_there "he cannot look into a pod's files" "busybox ls /proc/$victim/root/"
  check_not_there "nor into a pod's environment" "busybox cat /proc/$victim/environ"
  check_not_there "nor into a pod's memory" "busybox head -c 1 /proc/$victim/mem"
  check_not_there "nor into the serving agent's memory" "busybox head -c 1 /proc/$serving/mem"
  check_not_there "nor into that of the node's own daemons" "busybox head -c 1 /proc/$node_daemon/mem"
  check_not_there "nor into the node's files through them" "busybox ls /proc/1/root/ /proc/$node_daemon/root/"
  check_not_there "nor into a pod's open files" "busybox head -c 1 /proc/$victim/fd/0"
  check_not_there "he cannot enter a pod's namespaces" "busybox nsenter -t $victim -m busybox true"
  check_not_there 'he cannot mount' 'busybox mount -t tmpfs none /tmp'
  check_not_there 'he cannot write anywhere but in the directory of the socket' 'busybox touch /usr/bin/x'
  check_not_there 'he cannot make a device' 'busybox mknod /run/latchkey/disk b 8 0'
  check_equal 'by the socket he is his own pod, which has no role' no_role \
    "$(in_twin 'curl --silent --unix-socket /run/latchkey/agent.sock http://localhost/v1/secrets/prod/database-password' | jq -r .code)"
  agent_token=$(in_twin 'busybox cat /var/run/secrets/kubernetes.io/serviceaccount/token')
}

# With that token: tokens of this node's pods, as far as a namespace has named their accounts; `act_rights` has the refusals.
check_break_in_tokens() {
  as_agent POST /api/v1/namespaces/prod/serviceaccounts/app/token "$(token_request prod reader)"
  check_equal "with the token he can be those pods' accounts that a namespace has named" 201 "$status"
  check_forbidden 'and no other' POST /api/v1/namespaces/latchkey-e2e/serviceaccounts/default/token "$(token_request latchkey-e2e fake-aws)"
}

remove_twin() {
  kubectl -n latchkey delete pod twin >/dev/null
  eventually 30 token_has_ended || true
  check_equal 'when the pod is deleted its token is worth nothing' 401 "$status"
}

token_has_ended() { as_agent GET /apis/authentication.k8s.io/v1; [[ $status == 401 ]]; }
