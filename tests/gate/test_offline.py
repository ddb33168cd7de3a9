"""The gate's processes reach no other machine.

The tests raise the audit events that Python raises before it connects. They never
try to connect. `test_gate.py` does the same inside a Jupyter kernel.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gate import ROOT, SITE, environment

import rl_notes

REFUSED = [
    ("socket.connect", None, ("192.0.2.1", 443)),
    ("socket.connect", None, ("2001:db8::1", 443, 0, 0)),
    ("socket.sendto", None, ("192.0.2.1", 53)),
    ("socket.sendmsg", None, ("192.0.2.1", 53)),
    ("socket.getaddrinfo", "example.org", 443, 0, 0, 0),
    ("socket.getaddrinfo", b"example.org", 443, 0, 0, 0),
    ("socket.gethostbyname", "localhost.example.org"),
    ("socket.gethostbyaddr", "192.0.2.1"),
]
ALLOWED = [
    ("socket.connect", None, ("127.0.0.1", 8888)),
    ("socket.connect", None, ("::1", 8888, 0, 0)),
    ("socket.connect", None, "a/unix/socket"),
    ("socket.sendmsg", None, None),
    ("socket.getaddrinfo", "localhost", 8888, 0, 0, 0),
    ("socket.getaddrinfo", None, 8888, 0, 0, 0),
    ("socket.bind", None, ("192.0.2.1", 8888)),
]
TRY_EACH = """
import sys
for event in {events!r}:
    try:
        sys.audit(*event)
        print("allowed")
    except ConnectionRefusedError as error:
        assert "runs without a network" in str(error)
        print("refused")
"""
under_make = pytest.mark.skipif(
    "RL_NOTES_LIBRARY" not in os.environ, reason="only `make test` sets the guard"
)


@under_make
@pytest.mark.parametrize("event", REFUSED)
def test_pytest_itself_refuses(event: tuple):
    with pytest.raises(ConnectionRefusedError, match="runs without a network"):
        sys.audit(*event)


@under_make
@pytest.mark.parametrize("event", ALLOWED)
def test_pytest_itself_allows_this_machine(event: tuple):
    sys.audit(*event)


@pytest.mark.parametrize(
    ("answer", "events"), [("refused", REFUSED), ("allowed", ALLOWED)]
)
def test_a_process_of_the_gate(answer: str, events: list[tuple]):
    done = subprocess.run(
        [sys.executable, "-c", TRY_EACH.format(events=events)],
        env=environment(ROOT),
        capture_output=True,
        check=True,
        encoding="utf-8",
    )
    assert done.stdout.split() == [answer] * len(events)


@under_make
def test_this_process_imports_the_wheel():
    assert Path(rl_notes.__file__).parents[1] == SITE
