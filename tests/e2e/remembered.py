#!/usr/bin/env python3
"""remembered.py PID SIGNATURES FROM TO: of the tokens that last came by between FROM and TO seconds ago, how many the
process has in its memory. SIGNATURES is what old_kubelet.py wrote."""

import re
import sys
import time


def main(pid, file, first, last):
    seen = {}
    with open(file, encoding="ascii") as lines:
        for line in lines:
            at, signature = line.split()
            seen[signature.encode()[:40]] = int(at)
    ages = {signature: time.time() - at for signature, at in seen.items()}
    wanted = {signature for signature, age in ages.items() if first <= age <= last}
    found = set()
    with open(f"/proc/{pid}/maps", encoding="ascii") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            start, end, mode = re.match(r"(\w+)-(\w+) (\S+)", line).groups()
            if "r" in mode and "w" in mode:
                try:
                    memory.seek(int(start, 16))
                    block = memory.read(int(end, 16) - int(start, 16))
                except OSError:
                    continue
                found |= {signature for signature in wanted if signature in block}
    print(f"{len(found)} of {len(wanted)}")


main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
