"""Listens, and ends when all that was asked has been answered. It needs the extra `serve`."""

import asyncio
import dataclasses
import errno
import logging
import select
import signal
import socket
import time
from types import FrameType

import uvicorn

from vision_jax.errors import ConfigError
from vision_jax.serve.app import Options, Service
from vision_jax.serve.backends import Backend

log = logging.getLogger(__name__)

_BACKLOG = 2048
_SETTLE = 0.5  # seconds


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        host: a name or an address of this machine.
        port: 0: one that is free.
        drain: seconds after SIGTERM in which connections are still accepted, so that clients which keep theirs are told
            to close them, and a load balancer which asks for /health sees it.
        max_connections: more get the status 503.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    drain: float = 1.0
    max_connections: int = 1000


def serve(backend: Backend, options: Options, address: Address) -> None:
    """Serves a model until SIGTERM or SIGINT; a second signal ends it at once.

    Raises:
        ConfigError: if it cannot listen there.
    """
    with _listen(address) as listener:
        log.info("Batches of up to %d images are prepared.", options.limits.max_batch)
        backend.prepare(options.limits.max_batch)
        try:
            listener.listen(_BACKLOG)
        except OSError as error:  # another server began at the same time, and was ready before
            raise _cannot_listen(address, error) from error
        service = Service(backend, options)
        config = uvicorn.Config(
            service.app,
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=_BACKLOG,
            limit_concurrency=address.max_connections,
            timeout_keep_alive=75,
        )
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        log.info("%s: http://%s:%d/ has a page; POST images to http://%s:%d/predict.", backend.name, *(shown, port) * 2)
        _Server(config, service, address.drain).run(sockets=[listener])
    log.info("All that was asked has been answered.")


def _listen(address: Address) -> socket.socket:
    """Returns a socket that has its port. It listens when all is prepared: who connects before is refused at once."""
    try:
        family, *_, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _cannot_listen(address, error) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        return listener
    except OSError as error:
        listener.close()
        raise _cannot_listen(address, error) from error


def _cannot_listen(address: Address, error: OSError) -> ConfigError:
    where = f"--host={address.host} and --port={address.port}"
    taken = error.errno in (errno.EADDRINUSE, errno.EACCES) and address.port
    hint = ": give another port, or 0 for one that is free" if taken else ""
    return ConfigError(f"Cannot listen at {where}: {error.strerror or error}{hint}.")


class _Server(uvicorn.Server):
    """Goes on for a while after a signal, and then ends without raising it again, with the status 0."""

    def __init__(self, config: uvicorn.Config, service: Service, drain: float):
        super().__init__(config)
        self._service, self._drain = service, drain
        self._ends: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._ends is not None:
            self.should_exit = self.force_exit = True
            return
        log.info("%s: what has been asked is answered.", signal.Signals(sig).name)
        self._service.draining = True
        self._ends = time.monotonic() + self._drain

    async def on_tick(self, counter: int) -> bool:
        if self._ends is not None and time.monotonic() >= self._ends:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends, after what clients had sent before they could know: a closed socket would answer them with a reset."""
        while sockets and select.select(sockets, [], [], 0)[0] and not self.force_exit:
            await asyncio.sleep(0.01)  # in which the connections that are there are accepted
        for server in self.servers:
            server.close()
        await asyncio.sleep(0 if self.force_exit else _SETTLE)  # in which what they have sent is read
        await super().shutdown(sockets)
