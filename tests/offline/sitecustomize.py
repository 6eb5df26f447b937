"""Loaded by every Python that is started with PYTHONPATH=tests/offline: refuses connections that leave this machine.

`make test` runs with it, kernels of the notebooks included, so a lesson that needs the network fails there.
"""

import socket
import sys

_HERE = {None, "", "localhost", "::1", "0.0.0.0", "::", socket.gethostname()}


def _is_local(host) -> bool:
    host = host.decode() if isinstance(host, bytes) else host
    return host in _HERE or str(host).startswith("127.")


def _refuse(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
    elif event in ("socket.connect", "socket.sendto"):
        if not isinstance(args[1], tuple):  # a Unix socket
            return
        host = args[1][0]
    else:
        return
    if not _is_local(host):
        raise OSError(f"The network is off in the tests: something asked for {host}.")


sys.addaudithook(_refuse)
