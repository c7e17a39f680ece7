# An identity is the pod's own, whatever it is called and whatever its service account asks for.

act_annotation() {
  note "annotation: test's service account asks for prod's role"
  local account=(-n test annotate serviceaccount app --overwrite)
  local began leaked=0 code=
  kubectl "${account[@]}" latchkey.dev/aws-role-arn=arn:aws:iam::111122223333:role/prod >/dev/null
  began=$SECONDS
  while ((SECONDS - began < 35)); do
    ask test/reader secrets/prod/database-password
    [[ $status == 403 ]] || leaked=$((leaked + 1))
    ask test/reader secrets/test/database-password
    # With the role of prod the pod would be refused its own secret too: that is how the change shows.
    [[ $status == 200 ]] || { code="$status $(field code)"; break; }
    sleep 0.5
  done
  check_equal 'after the annotation took effect, STS refuses the role' '403 denied' "$code"
  check_less 'the annotation took effect within 30 s; in seconds' $((SECONDS - began)) 31
  check_refused "prod's secret stays out of reach of test" test/reader prod/database-password denied
  check_equal "prod's secret was never answered meanwhile" 0 "$leaked"

  kubectl "${account[@]}" latchkey.dev/aws-role-arn=arn:aws:iam::111122223333:role/test >/dev/null
  began=$SECONDS
  eventually 35 test_reads_again || true
  check_value "with its own annotation back, test reads its own secret (after $((SECONDS - began)) s)" \
    test/reader test/database-password "$test_value"
}

test_reads_again() { ask test/reader secrets/test/database-password; [[ $status == 200 ]]; }

act_same_name() {
  note 'same name: a pod is deleted and made again with another service account'
  local first second
  pod prod worker app Always sleep 86400
  running prod worker
  ask prod/worker identity
  first=$(field pod_uid)
  check_equal 'the first worker is told its own UID' "$(uid_of prod worker)" "$first"
  check_value "the first worker reads app's secret" prod/worker prod/database-password "$prod_value"
  check_refused "the first worker is denied batch's secret" prod/worker batch/report-key denied
  remove prod worker

  pod prod worker batch Always sleep 86400
  running prod worker
  ask prod/worker identity
  second=$(field pod_uid)
  check_equal 'the second worker is told its own UID and account' "$(uid_of prod worker) batch" "$second $(field service_account)"
  check_refused "the second worker is denied app's secret" prod/worker prod/database-password denied
  check_value "the second worker reads batch's secret" prod/worker batch/report-key "$batch_value"
  remove prod worker
}
