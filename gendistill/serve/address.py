"""Where a server listens, and who reaches it there."""

from __future__ import annotations

import ipaddress
import socket


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 for any that is free.

    Raises:
        ValueError: the port is taken, or the host is not this machine's.
    """
    try:
        return socket.create_server((host, port))
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ValueError(
            f"--host {host} --port {port}: {why}; expects an address of this machine, and --port 0 for any that is free"
        ) from error


def is_this_machine(host: str) -> bool:
    """Whether only this machine reaches what listens at `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
