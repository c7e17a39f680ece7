# Traffic while something is done to the agent: streams count requests, a watcher times them.

declare -A streams=()

start_stream() { # NAMESPACE/POD SECRET [CURL-OPTION]...: a hundred requests a second
  local caller=$1 secret=$2
  shift 2
  kubectl exec -n "${caller%/*}" "${caller#*/}" -- stream "secrets/$secret" 100 "$@" >"$work/stream-${caller/\//-}" &
  streams[$caller]=$!
}

start_streams() { # one that keeps its connection, and one with a new connection for each request
  start_stream test/reader test/database-password
  start_stream prod/reader prod/database-password -H 'Connection: close'
}

stop_streams() { # sets `right`, `wrong`, `unavailable` and `lost` to the sums of all streams
  local caller value
  for caller in "${!streams[@]}"; do
    kubectl exec -n "${caller%/*}" "${caller#*/}" -- touch /tmp/stop
    wait "${streams[$caller]}" || true
  done
  right=0 wrong=0 unavailable=0 lost=0
  for caller in "${!streams[@]}"; do
    value=${caller%/*}_value
    add_tally "$work/stream-${caller/\//-}" "${!value}"
  done
  streams=()
}

add_tally() { # FILE VALUE: of lines that end in an answer, as `ask` prints it
  local counts
  # An answer is right, or says that it cannot be given now (503, 504), or is none (000): all else is wrong.
  counts=$(awk -F '\t' -v value="\"value\":\"$2\"" '
    {status = $NF; body = $(NF - 1)}
    status == "200" && index(body, value) {right++; next}
    status == "000" {lost++; next}
    (status == "503" || status == "504") && index(body, "\"code\":") {unavailable++; next}
    {wrong++; print "# wrong: " $0 >"/dev/stderr"}
    END {print right + 0, wrong + 0, unavailable + 0, lost + 0}' "$1")
  local -a count
  read -r -a count <<<"$counts"
  right=$((right + count[0])) wrong=$((wrong + count[1]))
  unavailable=$((unavailable + count[2])) lost=$((lost + count[3]))
}

start_watcher() { # NAME: a pod of test that asks ten times a second, for ever
  pod test "$1" app Always watch secrets/test/database-password
  running test "$1"
}

watched() { # NAME FROM TO [LOGS-OPTION]: what a watcher saw between two times in milliseconds
  kubectl -n test logs "$1" "${@:4}" | awk -F '\t' -v from="$2" -v to="$3" '$1 * 1000 >= from && $1 * 1000 <= to'
}

tally_watched() { # as `watched`; sets the sums, and `gap`, the longest time between two right answers in milliseconds
  watched "$@" >"$work/watched"
  right=0 wrong=0 unavailable=0 lost=0
  add_tally "$work/watched" "$test_value"
  gap=$(awk -F '\t' -v last="$2" -v to="$3" '
    $NF == "200" {if ($1 * 1000 - last > longest) longest = $1 * 1000 - last; last = $1 * 1000}
    END {if (to - last > longest) longest = to - last; printf "%d\n", longest}' "$work/watched")
}
