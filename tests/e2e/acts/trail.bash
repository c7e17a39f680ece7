# What is left behind: the agent's audit lines, its logs, and the cloud's own log.

agent_audit() { cat "$work"/logs/* | jq -Rc 'fromjson? | select(.target == "audit")'; }

act_trail() {
  note 'trail: audit lines, logs, and the log of the cloud'
  ask test/reader secrets/test/database-password
  ask test/reader secrets/prod/database-password
  ask_from_node test/database-password
  sleep 1 # for the last lines to be written and followed
  agent_audit >"$work/audit"
  cloud_log >"$work/cloud"
  local uid role=arn:aws:iam::111122223333:role/test
  uid=$(uid_of test reader)

  check_equal 'a read has its audit line, with every field' true "$(jq -s --arg uid "$uid" --arg role "$role" 'any(
    .namespace == "test" and .service_account == "app" and .pod == "reader" and .pod_uid == $uid
    and .backend == "aws" and .role == $role and .secret == "test/database-password" and .outcome == "ok"
    and (.container_id | type == "string" and length == 64) and .container_confirmed and .pid > 1 and .uid == 0
    and (.version | type == "string") and .code == null and .cache == "off" and has("shared_with")
    and (.cloud_request_id | type == "string") and (.request_id | type == "string")
    and (.boot_id | type == "string") and (.seq | type == "number") and (.time | endswith("Z")) and .duration_ms > 0)' "$work/audit")"
  check_equal 'so has a denied one' true "$(jq -s --arg uid "$uid" 'any(
    .pod_uid == $uid and .secret == "prod/database-password" and .outcome != "ok" and .code == "denied")' "$work/audit")"
  check_equal 'so has one of a process on the node' true "$(jq -s 'any(.code == "not_attested" and .pod == null and .reason != null)' "$work/audit")"
  check_equal 'no audit line is missing' '[]' "$(jq -sc 'group_by(.boot_id) | map(
    ([.[].seq] | unique) as $seq | select(($seq | length) != $seq[-1] - $seq[0] + 1) | {boot: .[0].boot_id, lines: ($seq | length)})' "$work/audit")"
  note "$(jq -r '.boot_id + " \(.seq)"' "$work/audit" | sort -u | wc -l) audit lines of $(jq -r .boot_id "$work/audit" | sort -u | wc -l) starts of an agent"

  check_absent 'no secret value is in any log of an agent' -F "$canary"
  check_absent 'no service account token is in any log of an agent' -E -e 'eyJ[A-Za-z0-9_-]{10,}'
  check_absent 'no session key is in any log of an agent' -F -f <(jq -r '.access_key // empty' "$work/cloud" | sort -u)

  check_equal "the cloud's log names the pod in each session" '[]' "$(jq -sc '[.[]
    | select(.operation == "AssumeRoleWithWebIdentity")
    | select(.session_name != (.token.pod[1] | gsub("-"; "")) + (.token.sub | ltrimstr("system:serviceaccount") | gsub(":"; ".")))]' "$work/cloud")"
  check_equal "the session of the reader is named after it" true "$(jq -s --arg name "${uid//-/}.test.app" \
    'any(.operation == "GetSecretValue" and .session_name == $name and .error == null)' "$work/cloud")"
  check_equal 'a subject token has one audience and lives ten minutes at most' '[]' "$(jq -sc '[.[]
    | select(.token != null)
    | select(.token.aud != ["sts.amazonaws.com"] or .token.exp - (.at | sub("\\.[0-9]+Z$"; "Z") | fromdate) > 601)]' "$work/cloud")"
  check_equal "no pod of test ever had a session of prod's role" 0 "$(jq -s '[.[]
    | select(.role == "arn:aws:iam::111122223333:role/prod" and .error == null and (.session_name | contains(".test.")))] | length' "$work/cloud")"
}

check_absent() { # SENTENCE GREP-OPTION...
  local sentence=$1 found
  shift
  found=$(grep -l "$@" "$work"/logs/* || true)
  if [[ -z $found && -s $work/audit ]]; then ok "$sentence"; else not_ok "$sentence" "${found:-there are no logs}"; fi
}
