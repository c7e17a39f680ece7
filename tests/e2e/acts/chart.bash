# The chart: its objects before the API server, an upgrade, and what is left when it is gone.

# Kinds that not every cluster knows; they are left out where this one does not, and the run says so.
optional_kinds='ValidatingAdmissionPolicy|ValidatingAdmissionPolicyBinding|PodMonitor|ServiceMonitor|PrometheusRule'

act_dry_run() {
  note "dry run: every manifest, by the API server's own validation"
  local file namespace
  helm template latchkey "$root/deploy/helm/latchkey" --namespace latchkey --values "$work/desk/latchkey.yaml" \
    --values "$here/everything.yaml" >"$work/everything.yaml"
  helm template latchkey "$root/deploy/helm/latchkey" --namespace latchkey --values "$work/desk/latchkey.yaml" \
    --set rbac.tokens=node --set kubeVersion=1.36.0 --set metrics.serviceMonitor.enabled=true >"$work/node.yaml"
  # The act before left it to end in its own time, which is long on an old kubelet.
  kubectl wait --for=delete namespace/shop --timeout=180s >/dev/null 2>&1 || true
  for namespace in $(cat "$root"/deploy/examples/*.yaml "$root"/deploy/examples/*/*.yaml 2>/dev/null |
    awk '$1 == "namespace:" {print $2}' | sort -u); do
    if kubectl create namespace "$namespace" >/dev/null 2>&1; then made_namespaces+=("$namespace"); fi
  done
  # A pod is only admitted where its account is: those of the examples are made for good, as their namespaces are.
  # Only those that are not there yet: another example's annotations are not for the accounts that this run reads as.
  for file in "$root"/deploy/examples/*.yaml "$root"/deploy/examples/*/*.yaml; do
    kubectl create --dry-run=client --validate=false -o json -f "$file" 2>/dev/null |
      jq -s '{apiVersion: "v1", kind: "List", items: [.[] | if .kind == "List" then .items[] else . end
        | select(.kind == "ServiceAccount")]}' | kubectl create -f - >/dev/null 2>&1 || true # there are none in some
  done
  for file in "$work"/{everything,node}.yaml "$root"/deploy/manifests/*.yaml "$root"/deploy/examples/*.yaml "$root"/deploy/examples/*/*.yaml; do
    [[ ! -e $file ]] || dry_run "$file"
  done
}

dry_run() { # FILE
  local name=${1#"$root/"} said left_out
  name=${name#"$work/"}
  # The DaemonSet and pods as this cluster can take them: before 1.22 it has no maxSurge, before 1.28 no native sidecars.
  kubectl create --dry-run=client --validate=false -o json -f "$1" >"$work/objects" 2>"$work/refused" || true
  left_out=$(sed -nE "s/.*no matches for kind \"($optional_kinds)\".*/\1/p" "$work/refused" | sort -u | paste -sd ' ')
  jq -s '[.[] | if .kind == "List" then .items[] else . end | if .kind == "DaemonSet" and .metadata.name == "latchkey-agent"
    then .spec.updateStrategy.rollingUpdate = {maxUnavailable: 1} else . end
    | if .kind == "Pod" then del(.spec.initContainers[]?.restartPolicy, .spec.initContainers[]?.startupProbe) else . end]
    | {apiVersion: "v1", kind: "List", items: .}' "$work/objects" >"$work/list.json"
  [[ -z $left_out ]] || note "${name##*/}: this cluster does not know $left_out"
  if grep -vE "no matches for kind \"($optional_kinds)\"|^ensure CRDs are installed first$" "$work/refused" | grep -q .; then
    not_ok "$name passes" "$(<"$work/refused")"
  elif [[ $(jq '.items | length' "$work/list.json") == 0 ]]; then
    [[ -n $left_out ]] || not_ok "$name passes" 'there is nothing in it'
  elif said=$(kubectl apply --dry-run=server -f "$work/list.json" 2>&1); then
    ok "$name passes ($(jq '.items | length' "$work/list.json") objects)"
  else
    not_ok "$name passes" "$said"
  fi
}

# What is left when the chart is uninstalled; the last act.
act_uninstall() {
  note 'uninstall: nothing is left'
  helm uninstall latchkey --namespace latchkey --wait >/dev/null
  kubectl -n latchkey wait --for=delete pod -l app.kubernetes.io/part-of=latchkey --timeout=150s >/dev/null 2>&1 || true
  eventually 60 no_agent_pod || true
  check_equal 'no object of the chart' '' "$(
    kubectl get daemonsets,pods,serviceaccounts,configmaps,secrets --all-namespaces -l helm.sh/chart -o name
    kubectl get clusterroles,clusterrolebindings,csidrivers -l helm.sh/chart -o name)"
  check_equal 'no process' '' "$(pgrep -x latchkey-agent || true)"
  check_equal 'on the node, the empty directory of the socket' '/run/latchkey' "$(find /run/latchkey)"
  check_equal 'and no mount' '' "$(awk '$2 ~ "/run/latchkey" {print $2}' /proc/mounts)"
}

no_agent_pod() { [[ -z $(kubectl -n latchkey get pods -l app.kubernetes.io/component=agent -o name) ]]; }
