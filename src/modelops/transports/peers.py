"""The connections of a ZMQ socket: who there is, and what each has sent without bringing a message to its end.

The library bounds a frame, not a message, and hands out whole ones only: what it holds of those that are unfinished is
seen from outside. It names each connection by the number of its file.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct

#: Where Linux's tcp_info has tcpi_bytes_received (include/uapi/linux/tcp.h).
_BYTES_RECEIVED = 128


class Peers:
    """Connections to `port`, at most `most`; of unfinished messages `most_bytes` of each, and `all_bytes` together."""

    def __init__(self, port: int, most: int, most_bytes: int, all_bytes: int) -> None:
        self._port = port
        self._most = most
        self._most_bytes = most_bytes
        self._all_bytes = all_bytes
        self._received: dict[int, int] = {}  # bytes, when it was last looked at after a whole message
        self._heard: set[int] = set()  # whole messages since then

    def __contains__(self, number: int) -> bool:
        return number in self._received

    def accepted(self, number: int) -> None:
        """There is one more; too many are hung up on at once."""
        if len(self._received) >= self._most:
            self.hang_up(number)
        self._received[number] = 0
        self._heard.discard(number)

    def closed(self, number: int) -> None:
        """It is gone."""
        self._received.pop(number, None)
        self._heard.discard(number)

    def heard(self, number: int) -> None:
        """A whole message of it has come."""
        self._heard.add(number)

    def look(self) -> None:
        """Hang up on whoever has sent too much of an unfinished message; and, of all together, on the largest."""
        unfinished: dict[int, int] = {}
        for number, before in self._received.items():
            if (received := self._bytes_received(number)) is None:
                continue
            if number in self._heard:
                self._received[number] = before = received
            unfinished[number] = received - before
        self._heard.clear()
        together = sum(unfinished.values())
        for number, size in sorted(unfinished.items(), key=lambda found: -found[1]):
            if size <= self._most_bytes and together <= self._all_bytes:
                return
            self.hang_up(number)
            together -= size

    def hang_up(self, number: int) -> None:
        """End a connection."""
        if file := self._file(number):
            with file, contextlib.suppress(OSError):
                file.shutdown(socket.SHUT_RDWR)

    def _bytes_received(self, number: int) -> int | None:
        if file := self._file(number):
            # An old kernel's answer is too short: then nothing is known.
            with file, contextlib.suppress(OSError, struct.error):
                info = file.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED + 8)
                return int(struct.unpack_from("Q", info, _BYTES_RECEIVED)[0])
        return None

    def _file(self, number: int) -> socket.socket | None:
        """The connection's file, to be closed; None where the number is another's by now, or nobody's."""
        try:
            copy = os.dup(number)
        except OSError:
            return None
        try:
            file = socket.socket(fileno=copy)
        except OSError:
            os.close(copy)
            return None
        with contextlib.suppress(OSError):
            if file.family in (socket.AF_INET, socket.AF_INET6) and file.getsockname()[1] == self._port:
                return file
        file.close()
        return None
