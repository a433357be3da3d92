"""Names and addresses of machines: which can be put into a certificate and an invitation, and which need no proxy."""

import ipaddress
import re
from collections.abc import Mapping

from common.errors import ConfigError

LOOPBACK = ("localhost", "127.0.0.1", "::1")

_LONGEST = 253
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


def check_host(host: str) -> str:
    """Return a host as certificates name it: small letters, no brackets, no dot at the end, other letters as IDNA.

    >>> check_host("Confide.Example.Org."), check_host("münchen.example"), check_host("[::1]")
    ('confide.example.org', 'xn--mnchen-3ya.example', '::1')

    Raises:
        ConfigError: it is no DNS name (RFC 1123, 2.1) and no IP address that other machines could call.
    """
    bare = host.strip()
    inside = bare[1:-1] if bare.startswith("[") and bare.endswith("]") else bare
    try:
        address = ipaddress.ip_address(inside)
    except ValueError:
        return _check_name(host, bare)
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise ConfigError(f"an address must hold on other machines too, got {host}: leave out what follows the %")
    if address.is_unspecified or address.is_multicast:
        raise ConfigError(f"an address must name one machine, got {host}: give the address that hospitals connect to")
    return str(address)


def past_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that keep connections within this machine from going to a proxy.

    gRPC reads ``no_grpc_proxy`` before ``no_proxy``, Python's own clients the latter in either case. A proxy cannot
    reach what listens on the loopback interface, and gRPC would try it for ever.

    A general ``*``, which keeps every connection from a proxy, means that to Python's clients only where it stands
    alone.

    >>> past_proxies({"no_proxy": "example.org"})["no_proxy"]
    'example.org,localhost,127.0.0.1,::1'
    """
    general = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if general.strip() == "*":
        return {
            "no_proxy": "*",
            "NO_PROXY": "*",
            "no_grpc_proxy": _with_loopback(environment.get("no_grpc_proxy", "*")),
        }
    given = {"no_proxy": general, "NO_PROXY": general, "no_grpc_proxy": environment.get("no_grpc_proxy", "")}
    wanted = {name: value for name, value in given.items() if value or name != "no_grpc_proxy"}
    return {name: _with_loopback(value) for name, value in wanted.items()}


def _with_loopback(value: str) -> str:
    names = [name.strip() for name in value.split(",") if name.strip()]
    return ",".join([*names, *(name for name in LOOPBACK if name not in names)])


def _check_name(host: str, bare: str) -> str:
    name = _in_ascii(host, bare.removesuffix(".")).lower()
    labels = name.split(".")
    if "_" in name:
        raise ConfigError(f"a host's name must have no _ (RFC 1123), got {host}: give it another name in your DNS")
    if len(name) > _LONGEST or not all(map(_LABEL.fullmatch, labels)) or _NUMBER.fullmatch(labels[-1]):
        raise ConfigError(
            f"a host must be a DNS name or an IP address, got {host!r}: letters, digits, '-' and dots, no port, no URL"
        )
    return name


def _in_ascii(host: str, name: str) -> str:
    """Return a name with other letters in its ASCII form (RFC 3490), where that form stands for it alone."""
    if name.isascii():
        return name
    try:
        encoded = name.encode("idna")
        is_same = encoded.decode("idna") == name.lower()
    except UnicodeError:
        is_same = False
    if not is_same:
        raise ConfigError(f"a host's name must have an ASCII form of its own, got {host}: give that form (xn--…)")
    return encoded.decode()
