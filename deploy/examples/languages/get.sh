#!/bin/sh
# Prints a secret's bare value: ./get.sh NAME
exec curl --fail-with-body --silent --show-error --max-time 15 --header 'Accept: text/plain' \
  --unix-socket "${LATCHKEY_SOCKET:-/run/latchkey/agent.sock}" "http://localhost/v1/secrets/$1"
