# The ways to an application, by the examples as they are shipped.

# A shipped example, with the images that were just loaded, on this node. Kubernetes before 1.29 has no native sidecars:
# there they become ordinary containers, as the example tells its reader.
example() { # FILE [JQ-FILTER]
  kubectl create --dry-run=client --validate=false -o json -f "$here/../../deploy/examples/$1" |
    jq -s '[.[] | .items[]? // .] | .[] | select(.kind == "Pod")' |
    jq --arg node "$E2E_NODE" --argjson native "$native" '
      def local: .imagePullPolicy = "Never" | .image =
        if .image | startswith("registry.example.com/latchkey-agent:") then "docker.io/library/latchkey-agent:e2e"
        else "docker.io/library/latchkey-client:e2e" end;
      .spec.nodeName = $node | .spec.terminationGracePeriodSeconds = 1
      | .spec.initContainers = [.spec.initContainers[]? | local] | .spec.containers |= map(local)
      | if $native then . else
          .spec.containers += [.spec.initContainers[] | select(.restartPolicy == "Always") | del(.restartPolicy, .startupProbe)]
          | .spec.initContainers |= map(select(.restartPolicy != "Always")) end
      | '"${2:-.}"
}

apply_example() { example "$@" | kubectl apply -f - >/dev/null; }

in_app() { kubectl -n shop exec "$1" -c app -- "${@:2}" 2>&1 || true; } # POD COMMAND...

said() { kubectl -n shop logs "$1" -c app | grep -qF "$2"; } # POD TEXT

failed_with() { # POD CONTAINER: its exit code
  kubectl -n shop get pod "$1" -o json | jq -r --arg name "$2" \
    '.status.initContainerStatuses[]? | select(.name == $name) | (.state.terminated // .lastState.terminated).exitCode // empty'
}

has_failed() { [[ -n $(failed_with "$@") ]]; }

act_delivery() {
  note 'delivery: the four ways to an application, by the examples'
  local native=false
  (($(minor) < 29)) || native=true
  $native || note "Kubernetes 1.$(minor) has no native sidecars: the proxy's example runs as an ordinary container"
  kubectl apply -f "$here/../../deploy/examples/pod.yaml" >/dev/null # the namespace and its account, and a pod of the same
  apply_example pod.yaml '.metadata.name = "socket"'
  apply_example proxy.yaml
  apply_example exec.yaml
  apply_example files.yaml
  delivery_by_socket
  delivery_by_proxy
  delivery_by_exec
  delivery_by_files
  check_equal 'no manifest of these holds a secret' '' "$(kubectl -n shop get pods -o yaml | grep -F "$canary" || true)"
  kubectl -n shop delete pods socket proxy exec strict files denied --wait=false >/dev/null
}

# The same by a hostPath volume, for which the namespace grants the agent its tokens.
act_hostpath() {
  note 'hostPath: the example for it'
  kubectl apply -f "$here/../../deploy/examples/hostpath.yaml" >/dev/null
  running shop reader
  check_equal 'its pod reads the secret' "$shop_value" "$(kubectl -n shop exec reader -- \
    curl --silent --unix-socket "$socket" http://localhost/v1/secrets/shop/database-password | jq -r .value)"
  kubectl delete namespace shop --wait=false >/dev/null
}

delivery_by_socket() {
  running shop socket
  check_equal 'the socket: curl reads the secret' "$shop_value" "$(kubectl -n shop exec socket -- \
    curl --silent --unix-socket "$socket" http://localhost/v1/secrets/shop/database-password | jq -r .value)"
}

delivery_by_proxy() {
  local url=http://localhost:8080/v1/secrets address
  check 'the proxy: the application has what it needs' eventually 60 said proxy 'I have what I need.'
  check_equal 'the proxy: a URL with a host and a port works as it is' "$shop_value" \
    "$(in_app proxy curl --silent "$url/shop/database-password" | jq -r .value)"
  check_equal "the proxy: another namespace's secret is denied" denied \
    "$(in_app proxy curl --silent "$url/prod/database-password" | jq -r .code)"
  check_equal 'the proxy: what a web page would send is refused' invalid_request \
    "$(in_app proxy curl --silent --header 'Host: evil.example' "$url/shop/database-password" | jq -r .code)"
  address=$(kubectl -n shop get pod proxy -o jsonpath='{.status.podIP}')
  running shop exec
  check_equal 'the proxy: no other pod reaches it' 7 \
    "$(in_app exec sh -c "curl --silent --max-time 5 http://$address:8080/health >&2; echo \$?" | tail -n 1)"
}

delivery_by_exec() {
  check 'exec: the application has what it needs' eventually 60 said exec 'I have what I need.'
  check_equal 'exec: the secret is in its environment' "$shop_value" \
    "$(in_app exec sh -c 'tr "\0" "\n" </proc/1/environ' | sed -n 's/^DATABASE_PASSWORD=//p')"
  check_equal 'exec: the application is the first process, and latchkey is gone' sleep "$(in_app exec cat /proc/1/comm)"
  check_equal 'exec: its arguments hold no secret' 'sleep 86400 ' "$(in_app exec sh -c 'tr "\0" " " </proc/1/cmdline')"
  apply_example exec.yaml '.metadata.name = "strict" | .spec.containers[0].env += [{name: "FORGOTTEN", value: "from-latchkey"}]'
  check 'exec: with a sentinel left, nothing starts' eventually 60 stopped_for_the_sentinel
}

stopped_for_the_sentinel() { # its container keeps failing, and says why
  kubectl -n shop get pod strict -o json |
    jq -e '.status.containerStatuses[0] | (.state.terminated // .lastState.terminated).exitCode == 2' &&
    kubectl -n shop logs strict -c app | grep -F 'FORGOTTEN'
}

delivery_by_files() {
  check 'files: the application has what it needs' eventually 60 said files 'I have what I need.'
  check_equal 'files: the env file holds the secret' "$shop_value" \
    "$(in_app files sh -c '. /secrets/app.env; printf %s "$DATABASE_PASSWORD"')"
  check_equal 'files: so does a file' "key-$shop_value" "$(in_app files cat /secrets/api-key)"
  check_equal 'files: they are in memory' tmpfs "$(in_app files sh -c 'grep " /secrets " /proc/mounts' | cut -d ' ' -f 3)"
  check_equal 'files: nobody but their user reads them' '600 65532' "$(in_app files busybox stat -c '%a %u' /secrets/api-key)"
  check_equal 'files: the application has no socket' gone "$(in_app files sh -c 'test -e /run/latchkey || echo gone')"

  apply_example files.yaml '.metadata.name = "denied" | .spec.restartPolicy = "Never"
    | .spec.initContainers[1].command[2] = "prod/database-password"'
  check 'files: a secret that is denied stops the pod' eventually 60 has_failed denied key-file
  check_equal 'files: with the exit code for it' 4 "$(failed_with denied key-file)"
  check 'files: and one line that says which and why' one_line_about prod/database-password
}

one_line_about() { # SECRET: what the init container said
  local text
  text=$(kubectl -n shop logs denied -c key-file)
  [[ $(wc -l <<<"$text") == 1 && $text == *"$1"*denied* ]]
}
