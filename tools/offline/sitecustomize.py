"""Refuse every network connection that leaves this machine.

Python imports a module of this name by itself when it starts. The gate puts this
folder on PYTHONPATH, so pytest, its workers, the Jupyter kernels and every other
Python that they start run without a network.
"""

import sys

# Where the address stands among the arguments of the event; a look-up's comes first.
ADDRESSES = {"socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1}
LOOKUPS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}


def is_loopback(host: object) -> bool:
    """Tell whether a host name or number means this very machine."""
    from ipaddress import ip_address  # most processes never need it

    name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return True
    try:
        number = ip_address(str(name).split("%")[0])
    except ValueError:
        return False
    return number.is_loopback or number.is_unspecified


def refuse_network(event: str, arguments: tuple[object, ...]) -> None:
    """Raise when an audit event asks for a host other than this machine."""
    if event in ADDRESSES:
        address = arguments[ADDRESSES[event]]
        if not isinstance(address, tuple):  # a Unix socket, or already connected
            return
        host = address[0]
    elif event in LOOKUPS:
        host = arguments[0]
    else:
        return
    if not is_loopback(host):
        raise ConnectionRefusedError(
            f"The gate runs without a network, and {event} asked for {host!r}. "
            "Ship the data with the package, or leave this step out of the tests."
        )


sys.addaudithook(refuse_network)
