import ipaddress
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from common.hosts import LOOPBACK, check_host, past_proxies
from common.identity.invitation import Invitation
from deploy import cli

KEPT = ("confide.example.org", "server", "192.0.2.7", "2001:db8::1", "::1", "a-b.example", "xn--mnchen-3ya.example")
CHANGED = {
    "confide.example.org.": "confide.example.org",
    "Confide.Example.ORG": "confide.example.org",
    "münchen.example": "xn--mnchen-3ya.example",
    "MÜNCHEN.example.": "xn--mnchen-3ya.example",
    "[2001:db8::1]": "2001:db8::1",
    "2001:0DB8:0::1": "2001:db8::1",
    " server ": "server",
}
REFUSED = {
    "srv_1.klinik.local": "no _",
    "_confide.example": "no _",
    "fe80::1%eth0": "leave out what follows the %",
    "[fe80::1%2]": "leave out what follows the %",
    "0.0.0.0": "must name one machine",  # noqa: S104 - refused
    "::": "must name one machine",
    ":": "DNS name or an IP address",
    "": "DNS name or an IP address",
    ".": "DNS name or an IP address",
    "a..b": "DNS name or an IP address",
    "-a.example": "DNS name or an IP address",
    "a-.example": "DNS name or an IP address",
    "server:9092": "no port",
    "https://server": "no URL",
    "two words": "DNS name or an IP address",
    "1.2.3": "DNS name or an IP address",
    "256.1.1.1": "DNS name or an IP address",
    "x" * 64: "DNS name or an IP address",
    ".".join(["x" * 60] * 5): "DNS name or an IP address",
    "straße.example": "ASCII form of its own",
    "\u2603\u200d.example": "ASCII form|DNS name",
}


@pytest.mark.parametrize("host", KEPT)
def test_a_host_that_certificates_can_name_stays_as_it_is(host: str) -> None:
    assert check_host(host) == host


@pytest.mark.parametrize(("host", "expected"), CHANGED.items())
def test_other_ways_to_write_it_become_the_one_that_certificates_have(host: str, expected: str) -> None:
    assert check_host(host) == expected


@pytest.mark.parametrize(("host", "reason"), REFUSED.items())
def test_what_enrolment_would_refuse_is_refused_at_once(host: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_host(host)


@given(st.text(max_size=30))
def test_what_is_accepted_survives_a_certificate_and_an_invitation(host: str) -> None:
    try:
        checked = check_host(host)
    except ConfigError:
        return
    assert check_host(checked) == checked
    invitation = Invitation(checked, 9093, bytes(32), bytes(32), 0, "north")
    assert Invitation.decode(invitation.encode()).host == checked
    try:
        x509.IPAddress(ipaddress.ip_address(checked))
    except ValueError:
        x509.DNSName(checked)


@pytest.mark.parametrize("address", ["srv_1.klinik.local", "fe80::1%eth0", ":", "server:9092", "straße.example"])
def test_the_server_refuses_an_address_by_name_before_it_prepares_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    assert cli.main(["server", "--state", str(tmp_path / "state"), "--address", address, "--no-start"]) == 2
    assert address in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"http_proxy": "http://127.0.0.1:9"},
        {"no_proxy": "example.org"},
        {"NO_PROXY": "example.org"},
        {"no_proxy": "localhost, 127.0.0.1"},
        {"no_grpc_proxy": "example.org"},
        {"ALL_PROXY": "socks5://127.0.0.1:9", "all_proxy": "socks5://127.0.0.1:9"},
        {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": ".example.org,10.0.0.0/8"},
    ],
    ids=str,
)
def test_connections_within_the_machine_go_past_every_proxy(environment: dict[str, str]) -> None:
    merged = {**environment, **past_proxies(environment)}
    for name in ("no_proxy", "NO_PROXY", *(["no_grpc_proxy"] if "no_grpc_proxy" in environment else [])):
        assert set(LOOPBACK) <= set(merged[name].split(","))
    assert all("example.org" in merged[name] for name in merged if environment.get(name) == "example.org")
    assert past_proxies(merged) == past_proxies(environment)


def test_a_star_that_keeps_everything_from_proxies_keeps_its_meaning() -> None:
    merged = past_proxies({"no_proxy": " * ", "http_proxy": "http://127.0.0.1:9"})
    assert merged["no_proxy"] == merged["NO_PROXY"] == "*"
    assert set(LOOPBACK) <= set(merged["no_grpc_proxy"].split(","))
    assert past_proxies(merged) == merged
