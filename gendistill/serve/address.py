"""The address of a server."""

from __future__ import annotations

import ipaddress
import socket


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; port 0 selects a free port.

    Raises:
        ValueError: the port is in use, or the host is not an address of this machine.
    """
    try:
        return socket.create_server((host, port))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ValueError(
            f"--host {host} --port {port}: {reason}; expects an address of this machine and a free port, or --port 0"
        ) from error


def is_this_machine(host: str) -> bool:
    """Whether `host` is reachable from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
