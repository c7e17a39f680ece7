# Who may read what.

act_reads() {
  note 'reads: each pod gets what its own role may read'
  check_value 'a pod in test reads its own secret' test/reader test/database-password "$test_value"
  check_refused 'a pod in test is denied prod/database-password' test/reader prod/database-password denied
  check_value 'a pod in prod reads its own secret' prod/reader prod/database-password "$prod_value"
  check_refused 'a pod in prod is denied test/database-password' prod/reader test/database-password denied
  check_refused 'a pod whose service account has no annotation has no role' test/stranger test/database-password no_role

  ask_from_node test/database-password
  check_equal 'a process on the node is not attested' not_attested "$(field code)"
}

# A pod that asks as the first thing it does is answered at once: nothing in it asks a second time.
act_first_request() {
  note 'first request: ten pods and more, one after the other, that ask once as soon as they start'
  local n asked answered answer status slowest=0 right=0 early=0 since_start=()
  # On a node that is busy none of ten may be so quick.
  for ((n = 0; n < 10 || (n < 40 && early == 0); n++)); do
    pod test "early-$n" app Never early secrets/test/database-password
    eventually 60 ended "early-$n" || note "early-$n did not end"
    IFS=$'\t' read -r asked answered answer status < <(kubectl -n test logs "early-$n") || true
    since_start+=("$answered")
    ((asked >= 100)) || early=$((early + 1))
    ((answered - asked <= slowest)) || slowest=$((answered - asked))
    [[ $status != 200 || $(jq -r .value <<<"$answer") != "$test_value" ]] || right=$((right + 1))
  done
  check_equal 'pods that ask once, as the first thing they do, all read their secret' "$n" "$right"
  check 'some of them asked within the first 100 ms of their container' test "$early" -gt 0
  note "$early did; the slowest answer took $slowest ms with the start of curl; the agent says $(agent_audit |
    jq -rs '[.[] | select(.pod | tostring | startswith("early-")) | .duration_ms | round] | sort | map(tostring) | join(", ")') ms"
  note "from the container's start to its secret: $(printf '%s\n' "${since_start[@]}" | median) ms by hostPath, ${csi_since_start:-?} ms by CSI (medians)"
  kubectl -n test delete pod --ignore-not-found early-{0..39} --wait=false >/dev/null
}

median() { sort -n | awk '{all[NR] = $1} END {print all[int((NR + 1) / 2)]}'; } # of numbers, one a line

ended() { [[ $(kubectl -n test get pod "$1" -o jsonpath='{.status.phase}') == Succeeded ]]; } # POD
