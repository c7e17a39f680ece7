# One agent after another, by all the ways in which it happens, with requests going on all the time.

act_handover() {
  note 'hand-over: a second release takes the socket, the DaemonSet of the first is deleted'
  local old=$agent
  start_streams
  sleep 2
  agent=$(other_agent)
  start_agent "$agent"
  sleep 2
  stop_agent "$old"
  sleep 2
  stop_streams
  check_equal 'over a hand-over no request is lost, refused or answered wrongly' '0 0 0' "$lost $unavailable $wrong"
  check 'at least 1,000 requests were made' test "$right" -ge 1000
  note "$right requests, half of them each on a new connection"
}

act_crash_in_handover() {
  note 'hand-over with a crash: the new agent is killed after it took the socket'
  local old=$agent began
  start_streams
  agent=$(other_agent)
  start_agent "$agent"
  sleep 1
  began=$(milliseconds)
  kill -9 "$(agent_process)"
  sleep 8 # the old agent notices and binds again; then kubelet starts the new one again, which takes over
  tally_watched watcher "$began" "$(milliseconds)"
  check_equal 'after the crash of one of two agents nothing is answered wrongly' 0 "$wrong"
  check_less 'the other one serves within 2 s; longest time without an answer, in ms' "$gap" 2200
  await_agent "$agent"
  stop_agent "$old"
  sleep 2
  stop_streams
  check_equal 'over the whole hand-over no request is answered wrongly' 0 "$wrong"
  note "$right right, $unavailable unavailable, $lost lost"
}

act_kill() {
  note 'kill -9 of the only agent'
  local began
  start_streams
  sleep 1
  began=$(milliseconds)
  kill -9 "$(agent_process)"
  sleep 8
  stop_streams
  check_equal 'over a kill -9 no request is answered wrongly' 0 "$wrong"
  note "$right right, $unavailable unavailable, $lost lost"
  tally_watched watcher "$began" "$(milliseconds)"
  check_less "kubelet's restart included, it serves again in less than 5 s; in ms" "$gap" 5000
  await_agent "$agent"
}

# A rollout that stops the old agent before it starts the new one, as clusters without maxSurge do it. The new
# one logs at the most talkative level: the last act looks for secrets in what it wrote.
act_rollout() {
  note 'helm upgrade without surge, to an agent that logs at trace level'
  local began
  began=$(milliseconds)
  start_streams
  (cd "$work/desk" && helm upgrade latchkey deploy/helm/latchkey --namespace latchkey --values latchkey.yaml --set config.log.level=trace) >/dev/null
  await_agent "$agent"
  sleep 2
  stop_streams
  check_equal 'over a rollout no request is answered wrongly' 0 "$wrong"
  note "$right right, $unavailable unavailable, $lost lost"
  tally_watched watcher "$began" "$(milliseconds)"
  note "longest time without an answer: $gap ms, between the end of the old pod and the start of the new one"
  check_value 'the new agent serves' test/reader test/database-password "$test_value"
  ask test/reader secrets/test/no-such-secret
  check_equal 'a secret that is not there is not found' '404 not_found' "$status $(field code)"
  check 'the new agent says more than others do' eventually 5 grep -q '"level":"DEBUG"' --recursive "$work/logs"
}
