# What the agent's container can do, which is little.

act_confinement() {
  note 'confinement: the container of the agent, seen from the node'
  local pid pod
  pod=$(agent_pod)
  pid=$(agent_process)
  check_equal 'the agent has no capability, in any set' 0000000000000000 \
    "$(awk '/^Cap/ {print $2}' "/proc/$pid/status" | sort -u)"
  check_equal 'it cannot gain privileges, and is under a seccomp filter' '1 2' \
    "$(awk '/^(NoNewPrivs|Seccomp):/ {print $2}' "/proc/$pid/status" | paste -sd ' ')"
  check_equal 'its root filesystem is read-only' ro \
    "$(awk '$5 == "/" {split($6, option, ","); print option[1]}' "/proc/$pid/mountinfo")"
  check_equal 'it leaves no core dump' '0 0' "$(awk '/^Max core file size/ {print $5, $6}' "/proc/$pid/limits")"
  check_equal 'the only place it can write to is the directory of the socket' /run/latchkey \
    "$(awk '$6 ~ /^rw/ && $5 !~ "^/(proc|dev|sys)(/|$)" && $5 !~ "/termination-log$" {print $5}' "/proc/$pid/mountinfo" |
      grep -vE '^/(etc/(hosts|hostname|resolv.conf)|(var/)?run/secrets/kubernetes.io/serviceaccount)$' | paste -sd ' ')"
  check_equal 'the directory of the socket is for root alone to write in' 'root 755' "$(stat -c '%U %a' "${socket%/*}")"
  check_equal 'the socket is for everybody to connect to' 'root 666 socket' "$(stat -c '%U %a %F' "$socket")"
  if kubectl -n latchkey exec "$pod" -- sh -c true >/dev/null 2>&1; then
    not_ok 'the image holds no shell'
  else
    ok 'the image holds no shell'
  fi
}

# By the agent's own clock, which starts with its first instruction; the node is busy, so the fastest start counts.
act_start() {
  note 'start: from the first instruction to ready, of each agent so far'
  local starts
  starts=$(cat "$work"/logs/* | jq -Rr 'fromjson? | select(.message == "ready") | .took_ms | floor' | sort -n)
  check_less 'the fastest start in a container, in ms' "${starts%%$'\n'*}" 200
  note "all of them: $(paste -sd ' ' <<<"$starts") ms"
}
