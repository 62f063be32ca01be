"""Whether a Ray cluster answers at an address. Ray itself waits two minutes for one, and then ends the process."""

from __future__ import annotations

import os
import socket

SECONDS = 4.0
"""Seconds that the other side has for a connection, and again for its first bytes."""

_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""The beginning of every gRPC connection: the preface of HTTP/2 (RFC 9113, section 3.4) and an empty settings frame."""

_SETTINGS = 4


def unreachable_reason(address: str) -> str:
    """The reason why no cluster can be reached at `host:port`, as half a sentence; empty where one answers."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return "an address has the form host:port"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS) as connection:
            return "" if os.environ.get("RAY_USE_TLS") == "1" or _greets(connection) else "something else listens there"
    except OSError as error:
        return (error.strerror or str(error)).lower()


def _greets(connection: socket.socket) -> bool:
    """Whether the other side speaks gRPC, as Ray's head does: it answers the greeting with settings of its own."""
    try:
        connection.sendall(_GREETING)
        frame = connection.recv(9)
    except OSError:
        return False
    return len(frame) == 9 and frame[3] == _SETTINGS
