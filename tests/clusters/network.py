"""Hosts with addresses of their own on one machine: namespaces of the kernel, joined by a bridge.

Each host has a network, processes and shared memory of its own. It lives as long as the process that holds it; when
that is killed the kernel ends all that runs there, and takes the links away.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

HOLD = ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
HOLD += ["sh", "-c", "mount -t tmpfs tmpfs /dev/shm && ip link set lo up && echo held && exec sleep infinity"]

SUBNET = "10.213.87"


class Host:
    """A host; commands are performed there by `command`."""

    def __init__(self, number: int) -> None:
        self.number, self.address = number, f"{SUBNET}.{number}"
        self._holder = subprocess.Popen(HOLD, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "held\n":
            raise OSError(self._holder.communicate()[1].strip() or "no namespaces")
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()
        self.pid = int(children[0])

    def command(self, *words: str) -> list[str]:
        """The words of a command that performs a command there."""
        enter = ["nsenter", "--target", str(self.pid), "--net", "--pid", "--mount", f"--wdns={Path.cwd()}"]
        return [*enter, "--", *words]

    def call(self, *words: str, env: Mapping[str, str] | None = None) -> str:
        """Perform a command there and wait for it; what it printed."""
        done = subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=120, env={**os.environ, **(env or {})}
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def end(self) -> None:
        """Switch it off: everything on it is gone."""
        self._holder.kill()
        self._holder.communicate()


class Network:
    """Hosts around a bridge, which is in a namespace of its own."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._switch = self._held(0)
        self._switch.call("ip", "link", "add", "bridge", "type", "bridge")
        self._switch.call("ip", "link", "set", "bridge", "up")

    def _held(self, number: int) -> Host:
        host = Host(number)
        self._stack.callback(host.end)
        return host

    def host(self, number: int) -> Host:
        """A new host, `10.213.87.NUMBER`."""
        host = self._held(number)
        peer = ["type", "veth", "peer", "name", "eth0", "netns", str(host.pid)]
        # Made from outside, where both namespaces are known by the numbers of their processes.
        name = f"port{number}"
        subprocess.run(["ip", "link", "add", name, "netns", str(self._switch.pid), *peer], check=True)
        self._switch.call("ip", "link", "set", name, "master", "bridge", "up")
        host.call("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        host.call("ip", "link", "set", "eth0", "up")
        return host

    def cut(self, host: Host) -> None:
        """Take a host's link down, as if its cable was pulled."""
        self._switch.call("ip", "link", "set", f"port{host.number}", "down")


@contextmanager
def network() -> Iterator[Network]:
    """A network, gone after the block with all its hosts.

    Raises:
        OSError: this machine lets nobody make one.
    """
    with ExitStack() as stack:
        yield Network(stack)


def why_not() -> str:
    """The reason why no network can be made here; empty where it can."""
    if sys.platform != "linux":
        return "namespaces are Linux's"
    try:
        with network() as made:
            made.host(1)
    except (OSError, AssertionError, subprocess.CalledProcessError) as error:
        return f"no network of its own can be made here: {error}"
    return ""
