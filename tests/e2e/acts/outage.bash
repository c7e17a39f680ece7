# The API server is away for a while, and a container restarts meanwhile.

act_outage() {
  note 'outage: the API server is stopped for 40 s'
  local began killed ended restarts phoenix_uid
  start_watcher phoenix
  local phoenix_uid
  phoenix_uid=$(uid_of test phoenix)
  restarts=$(agent_restarts)
  $E2E_API stop
  began=$(milliseconds)
  sleep 10
  killed=$(milliseconds)
  kill -9 "$(process_of "$phoenix_uid" watch)"
  sleep 30
  ended=$(milliseconds)
  $E2E_API start

  eventually 60 kubectl -n test logs watcher --tail=1 || true
  tally_watched watcher "$began" "$ended"
  check_equal 'without the API server a known pod reads on, and gets nothing but right answers' '0 0 0' "$wrong $unavailable $lost"
  check_less "it read all the time ($right times); longest time without an answer, in ms" "$gap" 2000
  tally_watched phoenix "$killed" "$ended"
  check_equal 'a container that restarts meanwhile reads too' '0 0 0' "$wrong $unavailable $lost"
  check_less "it read $right times; missing of 50" $((right < 50 ? 50 - right : 0)) 1
  pod test newcomer app Always sleep 86400
  running test newcomer
  began=$(milliseconds)
  check_value 'with the API server back, a new pod reads' test/newcomer test/database-password "$test_value"
  note "answered after $(($(milliseconds) - began)) ms, kubectl exec included"
  check_equal 'the agent was not restarted' "$restarts" "$(agent_restarts)"
  remove test newcomer phoenix
}

agent_restarts() { kubectl -n latchkey get pod "$(agent_pod)" -o jsonpath='{.metadata.uid} {.status.containerStatuses[0].restartCount}'; }
