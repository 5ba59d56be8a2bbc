"""Finds out whether nodes reach each other: which ports are open between them, and how large a packet gets through.

Stands alone (standard library): ``check_links`` runs it as a process of its own. It listens on the ports it is told, and
connects to the same ports of its peers, which run it at the same time. Prints JSON lines; ends when everybody has been
asked, or after its seconds.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

#: Linux: <linux/in.h>. PROBE sets "do not fragment" and leaves what the kernel knows of the path aside.
IP_MTU_DISCOVER, IP_PMTUDISC_PROBE = 10, 3
#: IPv4 header without options and UDP header.
HEADERS = 28
TRY_S = 0.7
#: Ethernet's usual MTU, and the least that IPv6 asks for.
USUAL = (1500, 1280, 576)
lock = threading.Lock()


def say(event: str, **facts: Any) -> None:
    with lock:
        os.write(1, (json.dumps({"event": event, **facts}) + "\n").encode())


class Listener:
    """Answers on all ports until told to stop; knows who has said that he is through."""

    def __init__(self, address: str, ports: list[int]) -> None:
        self.through: set[str] = set()
        self.stop = threading.Event()
        self.sockets: list[socket.socket] = []
        self.taken: dict[int, str] = {}
        # Datagrams first: whoever finds a port open sends one at once, and must not find this one shut.
        self.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self.datagrams.bind((address, ports[0]))
        except OSError as error:
            self.taken.setdefault(ports[0], errno.errorcode.get(error.errno or 0, str(error)))
        else:
            self.datagrams.settimeout(0.2)
            threading.Thread(target=self.echo, daemon=True).start()
        for port in ports:
            listening = socket.socket()
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listening.bind((address, port))
                listening.listen(128)
            except OSError as error:
                self.taken.setdefault(port, errno.errorcode.get(error.errno or 0, str(error)))
                listening.close()
                continue
            listening.settimeout(0.2)
            self.sockets.append(listening)
            threading.Thread(target=self.accept, args=(listening,), daemon=True).start()

    def accept(self, listening: socket.socket) -> None:
        while not self.stop.is_set():
            try:
                connection, peer = listening.accept()
            except OSError:
                continue
            with connection:
                connection.settimeout(TRY_S)
                try:
                    word = connection.recv(8)
                    connection.sendall(b"ok")
                except OSError:
                    continue
                if word == b"through":
                    self.through.add(str(peer[0]))

    def echo(self) -> None:
        """Say how long each datagram was: a short answer, so that only the way here is measured."""
        while not self.stop.is_set():
            try:
                data, peer = self.datagrams.recvfrom(65535)
                self.datagrams.sendto(str(len(data)).encode(), peer)
            except OSError:
                continue


def connect(own: str, peer: str, port: int, word: bytes) -> str:
    """One attempt: "open", or how it failed."""
    with socket.socket() as attempt:
        attempt.settimeout(TRY_S)
        try:
            attempt.bind((own, 0))
            attempt.connect((peer, port))
            attempt.sendall(word)
            return "open" if attempt.recv(8) == b"ok" else "other"
        except TimeoutError:
            return "silent"
        except ConnectionRefusedError:
            return "refused"
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, "failed")


def largest(own: str, peer: str, port: int, mtu: int) -> int | None:
    """The largest packet of those tried that gets there whole, in bytes with headers; None where none does."""
    for size in sorted({mtu, *(usual for usual in USUAL if usual < mtu)}, reverse=True):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.settimeout(0.3)
            try:
                probe.bind((own, 0))
                probe.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
                probe.connect((peer, port))
            except OSError:
                return None
            for _ in range(4):
                try:
                    probe.send(b"\0" * (size - HEADERS))
                    if probe.recv(16) == str(size - HEADERS).encode():
                        return size
                except OSError:
                    continue
    return None


def ask(options: argparse.Namespace, peer: str, end: float) -> None:
    """Try every port of one peer until it is open or the time is over: the peer may start later than we."""
    ports = options.ports
    states = dict.fromkeys(ports, "silent")
    enough = any if options.any else all
    while time.monotonic() < end and not enough(state == "open" for state in states.values()):
        for port in [port for port in ports if states[port] != "open"]:
            states[port] = connect(options.address, peer, port, b"hello")
        if not enough(state == "open" for state in states.values()):
            time.sleep(0.2)
    reached = [port for port in ports if states[port] == "open"]
    size = largest(options.address, peer, ports[0], options.mtu) if reached else None
    for port in reached[:1]:
        connect(options.address, peer, port, b"through")
    say("peer", peer=peer, ports={str(port): state for port, state in states.items()}, largest=size)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="link_worker.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--address", required=True)
    parser.add_argument("--peers", default="", help="addresses, with commas")
    parser.add_argument("--ports", required=True, help="numbers, with commas")
    parser.add_argument("--mtu", type=int, default=1500)
    parser.add_argument("--any", action="store_true", help="one open port of a peer is enough")
    parser.add_argument("--seconds", type=float, default=12.0)
    options = parser.parse_args(arguments)
    options.ports = [int(port) for port in options.ports.split(",")]
    peers = [peer for peer in options.peers.split(",") if peer]
    started = time.monotonic()
    listener = Listener(options.address, options.ports)
    say("listening", taken=listener.taken)
    with ThreadPoolExecutor(max_workers=64) as pool:
        for future in [pool.submit(ask, options, peer, started + options.seconds * 0.6) for peer in peers]:
            future.result()
    while time.monotonic() < started + options.seconds and not listener.through.issuperset(peers):
        time.sleep(0.1)
    listener.stop.set()
    say("end")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
