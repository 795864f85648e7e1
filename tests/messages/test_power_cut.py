"""Test in which the publisher's machine loses power and restarts. The subscriber receives no end of the connection.

The machines are network namespaces. The router between them can stop forwarding.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.messages.processes import Program
from vision.client import Restart

PUBLISHER, ROUTER, SUBSCRIBER = (f"vision-{name}-{os.getpid()}" for name in ("publisher", "router", "subscriber"))
ADDRESS = "tcp://192.0.2.1:5555"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def inside(machine: str, *command: str) -> Program:
    return Program(["ip", "netns", "exec", machine, *command])


def add_machine(name: str, network: str) -> None:
    """Add a network namespace with the address `network`.1, which uses `network`.2 as its router."""
    ip("netns", "add", name)
    ip("link", "add", "out", "netns", name, "type", "veth", "peer", "name", f"to-{network[:3]}", "netns", ROUTER)
    ip("-n", name, "address", "add", f"{network}.1/24", "dev", "out")
    ip("-n", name, "link", "set", "out", "up")
    ip("-n", ROUTER, "address", "add", f"{network}.2/24", "dev", f"to-{network[:3]}")
    ip("-n", ROUTER, "link", "set", f"to-{network[:3]}", "up")
    ip("-n", name, "route", "add", "default", "via", f"{network}.2")


def forward(on: bool) -> None:
    switch = f"echo {int(on)} > /proc/sys/net/ipv4/ip_forward"
    ip("netns", "exec", ROUTER, "sh", "-c", switch)


@pytest.fixture
def network() -> Iterator[None]:
    if shutil.which("ip") is None:
        pytest.skip("needs the program ip (package iproute2)")
    try:
        ip("netns", "add", ROUTER)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"needs the right to make network namespaces: {error.stderr.strip()}")
    try:
        try:
            add_machine(PUBLISHER, "192.0.2")
            add_machine(SUBSCRIBER, "198.51.100")
            forward(True)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"needs virtual networks: {error.cmd}: {error.stderr.strip()}")
        yield
    finally:
        for machine in (PUBLISHER, SUBSCRIBER, ROUTER):
            subprocess.run(["ip", "netns", "delete", machine], check=False, capture_output=True)


def test_subscriber_reconnects_after_power_cut_of_publisher(network: None) -> None:
    start_publisher = (PUBLISHER, sys.executable, "-m", "tests.messages.publisher", ADDRESS)
    command = (sys.executable, "-m", "tests.messages.subscriber", ADDRESS, "1000", "--keepalive", "1")
    with inside(SUBSCRIBER, *command) as subscriber:
        with inside(*start_publisher):
            subscriber.wait_line(lambda line: line.startswith("got"))
            forward(False)
        ip("-n", ROUTER, "link", "delete", "to-192")
        ip("netns", "delete", PUBLISHER)  # the kernel forgets its connections
        add_machine(PUBLISHER, "192.0.2")
        with inside(*start_publisher) as publisher:
            assert publisher.line() == "ready"
            subscriber.pending()
            forward(True)
            assert subscriber.line() == str(Restart("n", "", ""))
            assert subscriber.line().startswith("got")
