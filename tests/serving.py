"""A server of a test's own on this machine: a port for it, and waiting until it answers."""

import socket
import subprocess
import time
import urllib.request

SECONDS = 240


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_until_it_answers(address: str, server: "subprocess.Popen[bytes]") -> None:
    """Return when `address` can be read; it fails where the server ends before, or takes too long."""
    for _ in range(SECONDS):
        try:
            urllib.request.urlopen(address, timeout=1)
            return
        except OSError:
            assert server.poll() is None, "the server ended before it was ready"
            time.sleep(1)
    raise AssertionError(f"the server did not answer in {SECONDS} seconds")
