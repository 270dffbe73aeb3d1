"""Which requests are taken for those of our own page."""

from __future__ import annotations

import pytest

from minigpt4.local_web import allowed_hosts, known_host, same_site

OURS = allowed_hosts("127.0.0.1")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:80", "localhost:7860", "LocalHost", "[::1]", "[::1]:1"])
def test_the_names_of_this_machine_are_ours(host: str) -> None:
    assert known_host({"host": host}, OURS)
    assert known_host({"host": host}, None)


@pytest.mark.parametrize(
    "host",
    [
        "evil.com", "127.0.0.1.evil.com", "localhost.evil.com", "[::1].evil.com", "[::1]evil.com:80", "::1",
        "localhost@evil.com", "evil.com#localhost", "localhost ", "127.0.0.1, evil.com", "2130706433", "localhost.",
    ],
)  # fmt: skip
def test_other_names_are_not(host: str) -> None:
    assert not known_host({"host": host}, OURS)
    assert not same_site({"host": host, "sec-fetch-site": "same-origin"}, OURS)


@pytest.mark.parametrize("host", ["", ":80", "localhost:", "localhost:x", "localhost:8\u0663", "a b", "[::1", "a\n"])
def test_a_malformed_name_is_never_taken(host: str) -> None:
    assert not known_host({"host": host}, OURS)
    assert not known_host({"host": host}, None)
    assert not known_host({}, None)


def test_a_server_for_others_goes_by_any_name() -> None:
    assert allowed_hosts("0.0.0.0") is None
    assert known_host({"host": "models.example.org"}, None)


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({}, True),
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none", "origin": "http://evil.com"}, True),
        ({"sec-fetch-site": "same-site", "origin": "http://localhost:1"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": ""}, False),
        ({"sec-fetch-site": "same-origin, cross-site"}, False),
        ({"origin": "http://localhost:1"}, True),
        ({"origin": "HTTPS://LOCALHOST:1"}, True),
        ({"origin": "http://localhost:2"}, False),
        ({"origin": "http://localhost"}, False),
        ({"origin": "http://evil.com"}, False),
        ({"origin": "http://localhost:1@evil.com"}, False),
        ({"origin": "null"}, False),
        ({"origin": ""}, False),
        ({"origin": "file://"}, False),
        ({"origin": "chrome-extension://localhost:1"}, False),
    ],
)
def test_a_request_of_another_site_is_known(headers: dict[str, str], passes: bool) -> None:
    assert same_site({"host": "localhost:1", **headers}, OURS) is passes
