# The README's own lines: what a reader is told to type is what this run types, at a desk where his values lie.

set_up_desk() {
  mkdir "$work/desk" "$work/bin"
  ln -s "$root/deploy" "$work/desk/deploy"
  sed "s,KUBELET_ROOT,$kubelet_root," "$here/latchkey.yaml" >"$work/desk/latchkey.yaml"
  # By Helm's own library, if there is no helm here.
  command -v helm >/dev/null || ln -s "$root/tests/helm/helm" "$work/bin/helm"
  PATH=$work/bin:$PATH
}

readme() { # NAME: the block of the README that is marked with it
  awk -v mark="<!-- run: $1 -->" '
    $0 == mark {found = 1; next}
    found && /^```/ {if (inside) exit; inside = 1; next}
    inside' "$root/README.md"
}

run_readme() { # NAME: types its lines until one fails
  local lines
  lines=$(readme "$1")
  [[ -n $lines ]] || { echo "the README has no block $1"; return 1; }
  (cd "$work/desk" && bash -euo pipefail -c "$lines")
}

act_readme() {
  note 'README: the lines under "Install on a cluster", as they stand there'
  check 'the installed agent finds everything that it needs' grep -q '^ok ' "$work/install"
  check_equal 'and misses nothing' '' "$(grep '^missing' "$work/install" || true)"
  check 'it says that it has no right to tokens' grep -q 'level of rights to tokens: none' "$work/install"
  local said
  if said=$(run_readme use 2>&1); then
    check_equal 'the example is applied, and its pod reads its secret' "$shop_value" \
      "$(tail -n 1 <<<"$said" | jq -r .value)"
  else
    not_ok 'the example is applied, and its pod reads its secret' "$said"
  fi
  own_token
  as_agent POST /api/v1/namespaces/shop/serviceaccounts/web/token "$(token_request shop reader)"
  check_equal "with the agent's own token not even that pod's token can be had" '403 Forbidden' "$status $(field reason)"
  check_forbidden 'and none of any other account' POST /api/v1/namespaces/test/serviceaccounts/app/token "$(token_request shop reader)"
}

# The rest of the run is by the other delivery and the level of rights `namespace`: an upgrade of what the README's lines
# installed. A pod that still had a volume of the driver could not be unmounted any more.
change_delivery() {
  kubectl delete namespace shop --ignore-not-found --timeout=180s >/dev/null
  printf 'delivery: hostPath\nrbac:\n  tokens: namespace\n' >>"$work/desk/latchkey.yaml"
  kubectl apply -f "$here/tokens.yaml" >/dev/null
  start_agent latchkey-agent
  remove_plugin
  delivery=hostPath
}
