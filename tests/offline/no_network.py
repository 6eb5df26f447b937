"""Inside a network namespace of its own: switch the loopback on, check that nothing else can be reached, and run the command that follows."""

import fcntl
import os
import socket
import struct
import sys

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    flags = struct.unpack("16sh", fcntl.ioctl(s, SIOCGIFFLAGS, struct.pack("16sh", b"lo", 0)))[1]
    fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | IFF_UP))
    others = [name for _, name in socket.if_nameindex() if name != "lo"]
    for name in others:
        if struct.unpack("16sh", fcntl.ioctl(s, SIOCGIFFLAGS, struct.pack("16sh", name.encode(), 0)))[1] & IFF_UP:
            sys.exit(f"There is a network here: {name} is up.")
print("No network but the loopback.", flush=True)
os.execvp(sys.argv[1], sys.argv[1:])
