"""Whether the process of this container is ready, as an exit code: the image's health check.

`python ready.py [PORT PATH]`; without them it asks the port of OPS_LISTEN for /readyz. It speaks through a bare socket:
an HTTP client would take longer to import than to ask.
"""

import os
import socket
import sys

SECONDS = 2.0


def is_ready(port: int, path: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            return connection.makefile("rb").readline().split()[1:2] == [b"200"]
    except OSError:
        return False


if __name__ == "__main__":
    asked = sys.argv[1:] or [os.environ["OPS_LISTEN"].rpartition(":")[2], "/readyz"]
    sys.exit(not is_ready(int(asked[0]), asked[1]))
