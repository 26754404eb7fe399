"""The address that a service listens at: checked before anything starts, and shown as a URL."""

from __future__ import annotations

import errno
import ipaddress
import socket

MAX_PORT = 65_535


def listen_address(host: str, port: int) -> tuple[str, int]:
    """Return the IP address and the port to listen at; for port 0, a free one.

    Raises:
        ValueError: the host is not one of this machine's, or the port is out of range, in use or reserved. The message
            begins with the option to change.
    """
    check_port(port)
    family, address = _resolve(host)
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno == errno.EADDRNOTAVAIL:
                raise ValueError(f"--host: expected an address of this machine, got {host} ({reason})") from None
            repair = "give one above 1023" if error.errno == errno.EACCES else "give another, or 0 for any free port"
            raise ValueError(f"--port: expected a free port on {host}, got {port} ({reason}): {repair}") from None
        return address, listener.getsockname()[1]


def check_port(port: int) -> None:
    """Raise ValueError if a port is out of range."""
    if not 0 <= port <= MAX_PORT:
        raise ValueError(f"--port: expected 0 to {MAX_PORT}, got {port}")


def is_loopback(host: str) -> bool:
    """Return True if a host to listen at is reached from this machine alone; False for a name that is unknown here."""
    try:
        return ipaddress.ip_address(_resolve(host)[1].partition("%")[0]).is_loopback
    except ValueError:
        return False


def url(address: str, port: int) -> str:
    """Return the URL of a service at an IP address or name; one that listens at every address is at loopback's."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return f"http://{address}:{port}"
    if ip.is_unspecified:
        ip = ipaddress.ip_address("::1" if ip.version == 6 else "127.0.0.1")
    return f"http://[{ip}]:{port}" if ip.version == 6 else f"http://{ip}:{port}"


def _resolve(host: str) -> tuple[socket.AddressFamily, str]:
    """Return the address family and the IP address of a host; IPv4 if it has both."""
    try:
        addresses = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"--host: expected an address or a name of this machine, got {host!r} ({reason})") from None
    family, _, _, _, (address, *_) = min(addresses, key=lambda entry: entry[0] != socket.AF_INET)
    return family, str(address)
