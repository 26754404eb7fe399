"""Who sent a request: the address of the client, and whether its connection is encrypted."""

from __future__ import annotations

import ipaddress

from starlette.datastructures import Headers
from starlette.types import Scope

IPV6_NETWORK = 64  # bits: one client has all addresses of such a network
UNKNOWN = "unknown"


def client_address(scope: Scope, trust_proxy: bool) -> str:
    """Return the address of the client that sent a request; of IPv6, its network.

    Args:
        trust_proxy: take the last address of X-Forwarded-For, which the proxy in front has added: any client can send
            those before it. Without the header, or with one that is no address, it is the connection's.
    """
    if trust_proxy:
        *_, last = ",".join(Headers(scope=scope).getlist("x-forwarded-for")).split(",")
        if address := _network(last.strip()):
            return address
    client = scope.get("client")
    return _network(client[0]) or UNKNOWN if client else UNKNOWN


def is_secure(scope: Scope, trust_proxy: bool) -> bool:
    """Return True if the client's connection is encrypted, also if it is so as far as a trusted proxy."""
    if trust_proxy and (scheme := Headers(scope=scope).get("x-forwarded-proto")):
        return scheme.rpartition(",")[2].strip().lower() == "https"
    return scope.get("scheme") == "https"


def _network(text: str) -> str | None:
    """Return an IPv4 address, or the network of an IPv6 address; None if a text is neither."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), IPV6_NETWORK), strict=False))
