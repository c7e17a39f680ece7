# Checks: each prints a line `ok - SENTENCE` or `not ok - SENTENCE`, and the run goes on.

passed=0 failed=0

ok() { passed=$((passed + 1)); printf 'ok - %s\n' "$1"; }

not_ok() { # SENTENCE [WHAT-WAS-SEEN]
  failed=$((failed + 1))
  printf 'not ok - %s\n' "$1"
  [[ -z ${2:-} ]] || sed 's/^/#   /' <<<"$2"
}

note() { printf '# %s\n' "$*"; }

check() { # SENTENCE COMMAND...: holds if the command succeeds
  local sentence=$1 seen
  shift
  if seen=$("$@" 2>&1); then ok "$sentence"; else not_ok "$sentence" "$* failed: $seen"; fi
}

check_equal() { # SENTENCE WANTED SEEN
  if [[ $2 == "$3" ]]; then ok "$1"; else not_ok "$1" "wanted $2, saw $3"; fi
}

check_less() { # SENTENCE SEEN BOUND: whole numbers; the sentence is followed by what was seen
  if [[ $2 =~ ^[0-9]+$ ]] && (($2 < $3)); then ok "$1 ($2)"; else not_ok "$1" "wanted less than $3, saw $2"; fi
}

eventually() { # SECONDS COMMAND...: until the command succeeds; else prints what it printed last
  local end=$((SECONDS + $1))
  shift
  until "$@" >"$work/last" 2>&1; do
    ((SECONDS < end)) || { cat "$work/last"; return 1; }
    sleep 0.2
  done
}

milliseconds() { local now=${EPOCHREALTIME/[.,]/}; echo $((now / 1000)); }

summary() { # the last line; fails unless all held
  printf '%d passed, %d failed\n' "$passed" "$failed"
  ((failed == 0 && passed > 0))
}
