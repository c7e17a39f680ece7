"""Prints a secret: python3 get_httpx.py NAME"""

import os
import sys

import httpx

agent = httpx.Client(
    transport=httpx.HTTPTransport(uds=os.environ.get("LATCHKEY_SOCKET") or "/run/latchkey/agent.sock"),
    base_url="http://localhost",
    timeout=15,
)


def get_secret(name):
    answer = agent.get(f"/v1/secrets/{name}")
    if answer.is_error:
        raise RuntimeError(f"{answer.status_code} {answer.text}")
    return answer.json()["value"]


print(get_secret(sys.argv[1]))
