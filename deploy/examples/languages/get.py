"""Prints a secret: python3 get.py NAME"""

import http.client
import json
import os
import socket
import sys


class Agent(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.environ.get("LATCHKEY_SOCKET") or "/run/latchkey/agent.sock")


def get_secret(name):
    agent = Agent("localhost", timeout=15)
    try:
        agent.request("GET", f"/v1/secrets/{name}")
        answer = agent.getresponse()
        body = answer.read()
    finally:
        agent.close()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status} {body.decode()}")
    return json.loads(body)["value"]


print(get_secret(sys.argv[1]))
