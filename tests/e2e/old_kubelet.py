#!/usr/bin/env python3
"""old_kubelet.py KUBELET_ROOT DRIVER SIGNATURES: stands between a kubelet before 1.26 and a CSI driver, in the run on a cluster.

Such a kubelet names a socket's path as the host of its gRPC requests (`:authority`), which HTTP/2 does not allow, and
the driver refuses it (https://github.com/kubernetes/kubernetes/pull/112597). This registers with the kubelet in the
driver's stead, as a driver at a socket of its own, writes a host that is allowed in the path's place, and passes on
all the rest as it is. It is no part of the product: the run needs it where the cluster is older than latchkey supports.

It adds the signature of each token that comes by to the file SIGNATURES, after the time, so that the run can look for
what must be nowhere.
"""

import asyncio
import os
import pathlib
import re
import signal
import sys
import time

HOST = b"localhost"
PREFACE = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
DATA, HEADERS, PADDED, PRIORITY = 0, 1, 0x08, 0x20
TOKEN = re.compile(rb"eyJ[\w-]+\.[\w-]+\.([\w-]{64,})")
AUTHORITY = 1  # its index in HPACK's static table


def integer(block, at, bits):
    """An HPACK integer (RFC 7541, 5.1): its value, and where the next thing begins."""
    limit = (1 << bits) - 1
    value = block[at] & limit
    at += 1
    if value < limit:
        return value, at
    shift = 0
    while True:
        value += (block[at] & 0x7F) << shift
        shift += 7
        at += 1
        if not block[at - 1] & 0x80:
            return value, at


def with_a_host(block):
    """A header block in which every literal `:authority` says HOST. (RFC 7541, 6.)

    Whether it is to be remembered stays as it was. An entry that is remembered gets shorter, so that whoever reads keeps
    at least the entries that the writer counts on.
    """
    out, at = bytearray(), 0
    while at < len(block):
        start, first = at, block[at]
        if first & 0x80:  # indexed
            _, at = integer(block, at, 7)
            out += block[start:at]
            continue
        if first & 0xE0 == 0x20:  # the table's size
            _, at = integer(block, at, 5)
            out += block[start:at]
            continue
        name, at = integer(block, at, 6 if first & 0x40 else 4)
        if name == 0:
            length, at = integer(block, at, 7)
            at += length
        value = at
        length, at = integer(block, at, 7)
        at += length
        if name == AUTHORITY:
            assert length >= len(HOST)
            out += block[start:value] + bytes([len(HOST)]) + HOST
        else:
            out += block[start:at]
    return bytes(out)


def note_tokens(body, file):
    for signature in TOKEN.findall(body):
        file.write(f"{int(time.time())} {signature.decode()}\n")
        file.flush()


async def frames_with_a_host(reader, writer, signatures):
    writer.write(await reader.readexactly(PREFACE))
    while True:
        head = await reader.readexactly(9)
        body = await reader.readexactly(int.from_bytes(head[:3], "big"))
        kind, flags = head[3], head[4]
        if kind == HEADERS:
            assert not flags & (PADDED | PRIORITY), "gRPC in Go sends neither"
            body = with_a_host(body)
            head = len(body).to_bytes(3, "big") + head[3:]
        elif kind == DATA:
            note_tokens(body, signatures)
        writer.write(head + body)
        await writer.drain()


async def as_it_is(reader, writer, replace=None):
    """A text is replaced only where it comes whole, and by one as long."""
    while data := await reader.read(1 << 16):
        writer.write(data.replace(*replace) if replace else data)
        await writer.drain()


def passing_on(path, signatures, replace=None):
    async def one(reader, writer):
        directions = []
        try:
            driver_reader, driver_writer = await asyncio.open_unix_connection(path)
            directions = [
                asyncio.create_task(frames_with_a_host(reader, driver_writer, signatures)),
                asyncio.create_task(as_it_is(driver_reader, writer, replace)),
            ]
            done, _ = await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            driver_writer.close()
            for direction in done:
                direction.result()
        except (OSError, asyncio.IncompleteReadError):
            pass  # one side is away: the other sees its connection close, and the kubelet tries again
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            writer.close()

    return one


async def main(kubelet, driver, signatures):
    signatures = open(signatures, "a", encoding="ascii")
    kubelet = pathlib.Path(kubelet)
    directory = kubelet / "plugins" / driver
    directory.mkdir(parents=True, exist_ok=True)
    registry = kubelet / "plugins_registry"
    # As long as the driver's own, so that it can take its place in what the driver answers.
    own, drivers = directory / "old.sock", directory / "csi.sock"
    registration = registry / f"{driver}-old.sock"
    for path in (own, registration):
        path.unlink(missing_ok=True)
    os.umask(0o177)
    services = await asyncio.start_unix_server(passing_on(drivers, signatures), own)
    # The kubelet asks as soon as it sees this one, and asks again after longer and longer times.
    while not (registry / f"{driver}-reg.sock").exists() or not drivers.exists():
        await asyncio.sleep(0.1)
    replace = (bytes(drivers), bytes(own))
    registrations = await asyncio.start_unix_server(passing_on(registry / f"{driver}-reg.sock", signatures, replace), registration)
    try:
        async with services, registrations:
            await asyncio.gather(services.serve_forever(), registrations.serve_forever())
    finally:
        for path in (own, registration):
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    asyncio.run(main(*sys.argv[1:]))
