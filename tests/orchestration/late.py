"""A server that is late: what is asked of it, and what it answers, goes through here and takes its time."""

import socket
import threading
import time
from contextlib import suppress


class Late:
    """Before a server on loopback, at an address of its own; `asking` and `answering` are seconds that each takes."""

    def __init__(self, port: int, asking: float = 0.0, answering: float = 0.0) -> None:
        self.asking, self.answering = asking, answering
        self._server, self._listening = port, socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._server))
                except OSError:  # it is down
                    client.close()
                    continue
                for source, sink, way in ((client, server, "asking"), (server, client, "answering")):
                    threading.Thread(target=self._pass_on, args=(source, sink, way), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        last = 0.0
        with suppress(OSError):
            while data := source.recv(2**20):
                if time.monotonic() - last > 0.05:  # what follows at once is of the same message
                    time.sleep(getattr(self, way))
                sink.sendall(data)
                last = time.monotonic()
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
