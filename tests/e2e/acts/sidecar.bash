# The agent as a sidecar: the example as it is shipped, but for its images and the cloud's address.

act_sidecar() {
  note 'sidecar: a pod brings its own agent, which has no rights in the cluster'
  sidecar_pod sidecar | kubectl apply -f - >/dev/null
  running test sidecar
  eventually 30 sidecar_answers || true
  check_value 'its application reads its own secret' test/sidecar test/database-password "$test_value"
  check_refused "it is denied prod's secret" test/sidecar prod/database-password denied
  ask test/sidecar identity
  check_equal 'it is told its own UID and account' "$(uid_of test sidecar) app" "$(field pod_uid) $(field service_account)"
  check_equal 'the sidecar has no token for the API server' '' \
    "$(kubectl -n test get pod sidecar -o json | jq -r '.spec.volumes[].projected.sources[]?.serviceAccountToken | select(. != null) | .audience // "the API server"' | grep -v '^sts.amazonaws.com$')"
  check_equal 'its account may create no tokens' no \
    "$(kubectl auth can-i create serviceaccounts/token -n test --as=system:serviceaccount:test:app || true)"
  remove test sidecar

  # The same with a directory of the node, which other pods could mount too.
  sidecar_pod shared | jq '.spec.volumes |= map(if .name == "latchkey"
    then {name, hostPath: {path: "/run/latchkey-e2e-shared", type: "DirectoryOrCreate"}} else . end)' |
    kubectl apply -f - >/dev/null
  eventually 30 sidecar_has_ended || true
  local last
  last=$(kubectl -n test logs shared -c latchkey --tail=1)
  check 'on a directory of the node it does not start, and says why' grep -q 'is no emptyDir of this pod' <<<"$last"
  kubectl -n test delete pod shared --wait=false >/dev/null
  rmdir /run/latchkey-e2e-shared 2>/dev/null || true
}

sidecar_pod() { # NAME
  kubectl patch --local -f "$here/../../deploy/examples/sidecar.yaml" -p "$(<"$here/sidecar.patch.yaml")" -o json |
    jq --arg name "$1" --arg node "$E2E_NODE" '.metadata.name = $name | .metadata.namespace = "test"
      | .spec.nodeSelector = {"kubernetes.io/hostname": $node}'
}

sidecar_answers() { ask test/sidecar identity; [[ $status == 200 ]]; }

sidecar_has_ended() {
  kubectl -n test get pod shared -o json |
    jq -e '[.status.containerStatuses[]? | select(.name == "latchkey") | .state.terminated.exitCode] == [69]' >/dev/null
}
