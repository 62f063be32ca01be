"""Facts about a client that the server knows before any contact."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClientSpec:
    """Facts about a client that the server knows before any contact.

    Attributes:
        id: number from 0.
        net: name of the client's network.
        width: fraction in (0, 1] of that network's hidden channels which the client can hold.
    """

    id: int
    net: str
    width: float = 1.0
