"""The HTTP interface: what is answered to which request, without a server. It needs the extra `serve`.

Status of an answer: 200 with classes; 400 a request that cannot be understood; 404, 405; 408 a body that comes too
slowly; 413 a body that is too large; 415 a body that is no image; 422 an image that is damaged or has too many pixels;
500 the model failed; 503 too much waits already. All but the page and the metrics are JSON; errors are
{"error": "..."}.
"""

import asyncio
import concurrent.futures
import dataclasses
import html
import importlib.resources
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import prometheus_client
from python_multipart.exceptions import FormParserError
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vision_jax.data.decode import DecodeError
from vision_jax.data.pillow import TooManyPixels, UnknownFormat
from vision_jax.serve.backends import Backend
from vision_jax.serve.batching import Batcher, Limits, Overloaded

log = logging.getLogger(__name__)

_DRAINED = 16  # of a body that is refused, so many times the limit is read, so that the client gets to read the answer
_SHOWN = 40  # characters
_PAGE_POLICY = (
    "default-src 'none'; img-src blob: data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What a server takes.

    Attributes:
        limits: of batches.
        max_bytes: of a body.
        max_seconds: that a body may take to come.
        num_threads: that decode images.
    """

    limits: Limits
    max_bytes: int = 20 << 20
    max_seconds: float = 30.0
    num_threads: int = 2


class Metrics:
    """What is counted, in a registry of its own, for Prometheus."""

    def __init__(self, waiting: Callable[[], int]):
        self.registry = prometheus_client.CollectorRegistry()
        seconds = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
        given: dict[str, Any] = {"registry": self.registry, "namespace": "vision_jax"}
        self.requests = prometheus_client.Counter("requests", "Answers of /predict, by status", ["status"], **given)
        self.latency = prometheus_client.Histogram(
            "request_seconds", "Time from a request's headers to its answer", buckets=seconds, **given
        )
        self.batches = prometheus_client.Histogram(
            "batch_images", "Images of a batch", buckets=[2**n for n in range(11)], **given
        )
        self.compute = prometheus_client.Histogram(
            "batch_seconds", "Time that a batch takes to compute", buckets=seconds, **given
        )
        prometheus_client.Gauge("waiting_images", "Images that wait for a batch", **given).set_function(waiting)

    def observe_batch(self, size: int, seconds: float) -> None:
        self.batches.observe(size)
        self.compute.observe(seconds)


class Service:
    """A model behind HTTP.

    Attributes:
        app: the ASGI application. Its lifespan starts and ends the computation.
        draining: is set when the server is about to end: what comes is answered, and connections are not kept.
        metrics: see there.
    """

    def __init__(self, backend: Backend, options: Options):
        self.draining = False
        self._backend, self._options = backend, options
        self._batcher: Batcher | None = None
        self.metrics = Metrics(lambda: 0 if self._batcher is None else self._batcher.waiting)
        self._decoders = concurrent.futures.ThreadPoolExecutor(options.num_threads, "decode")
        self._decoding = 0
        page = importlib.resources.files(__package__).joinpath("page.html").read_text()
        self._page = page.replace("MODEL", html.escape(backend.name)).encode()
        self.app = Starlette(
            routes=[
                Route("/", self._show_page, methods=["GET"]),
                Route("/predict", self._predict, methods=["POST"]),
                Route("/health", self._health, methods=["GET"]),
                Route("/metrics", self._show_metrics, methods=["GET"]),
            ],
            exception_handlers={HTTPException: _as_json},
            lifespan=self._lifespan,
        )
        self.app.router.redirect_slashes = False  # /predict/ is another path

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._batcher = Batcher(self._backend, self._options.limits, self.metrics.observe_batch)
        self._batcher.start()
        try:
            yield
        finally:
            await self._batcher.close()
            self._decoders.shutdown()

    async def _show_page(self, request: Request) -> Response:
        headers = {"Content-Security-Policy": _PAGE_POLICY, "X-Content-Type-Options": "nosniff"}
        return Response(self._page, media_type="text/html", headers=headers)

    async def _show_metrics(self, request: Request) -> Response:
        latest = prometheus_client.generate_latest(self.metrics.registry)
        return Response(latest, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    async def _health(self, request: Request) -> Response:
        if self.draining:
            return JSONResponse({"status": "ending"}, 503)
        return JSONResponse({"status": "ok", "model": self._backend.name, "classes": len(self._backend.class_names)})

    async def _predict(self, request: Request) -> Response:
        begun = time.perf_counter()
        try:
            response: Response = JSONResponse(await self._classes(request))
        except HTTPException as error:
            response = await _as_json(request, error)
        except ClientDisconnect:
            response = JSONResponse({"error": "the client has left"}, 400)
        if self.draining:
            response.headers["Connection"] = "close"
        self.metrics.requests.labels(response.status_code).inc()
        self.metrics.latency.observe(time.perf_counter() - begun)
        return response

    async def _classes(self, request: Request) -> dict[str, Any]:
        topk = self._topk(request)
        image = await self._decode(await self._image_in(request, await self._body(request)))
        assert self._batcher is not None  # the lifespan has begun
        try:
            probabilities, classes = await self._batcher.classify(image)
        except Overloaded as error:
            raise _overloaded() from error
        except RuntimeError as error:
            raise HTTPException(500, str(error)) from error
        if not np.isfinite(probabilities).all():
            raise HTTPException(500, "the model's logits are not finite")
        names = self._backend.class_names
        best = zip(classes[:topk].tolist(), probabilities[:topk].tolist(), strict=True)
        return {
            "model": self._backend.name,
            "classes": [{"class": c, "name": names[c], "probability": probability} for c, probability in best],
        }

    def _topk(self, request: Request) -> int:
        if unknown := set(request.query_params) - {"topk"}:
            raise HTTPException(400, f"{_shown(min(unknown))} is no parameter: there is topk")
        text = request.query_params.get("topk", str(self._backend.topk))
        if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= self._backend.topk):
            raise HTTPException(400, f"topk is {_shown(text)}: give 1 to {self._backend.topk}")
        return int(text)

    async def _body(self, request: Request) -> bytes:
        """Reads the body; one that is too large is read on for a while and forgotten, or the answer would be lost."""
        limit = self._options.max_bytes
        body, size = bytearray(), 0
        length = request.headers.get("Content-Length", "")
        announced = int(length) if length.isascii() and length.isdigit() else 0
        too_large = HTTPException(413, f"the body has more than {limit:,} bytes")
        if announced > _DRAINED * limit:
            raise too_large
        try:
            async with asyncio.timeout(self._options.max_seconds):
                async for chunk in request.stream():
                    size += len(chunk)
                    if max(size, announced) <= limit:
                        body += chunk
                    elif size > _DRAINED * limit:
                        break
        except TimeoutError as error:
            message = f"the body has not come in {self._options.max_seconds:g} seconds"
            raise HTTPException(408, message, {"Connection": "close"}) from error
        if max(size, announced) > limit:
            raise too_large
        return bytes(body)

    async def _image_in(self, request: Request, body: bytes) -> bytes:
        """Returns the file of a form with one, or the body as it is."""
        kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise HTTPException(415, "the body is encoded: send the image as it is")
        if kind != "multipart/form-data":
            return body

        async def stream() -> AsyncIterator[bytes]:
            yield body

        try:
            form = await MultiPartParser(request.headers, stream(), max_files=1, max_fields=8).parse()  # type: ignore[arg-type]
        except (MultiPartException, FormParserError, KeyError, UnicodeError) as error:
            message = error.message if isinstance(error, MultiPartException) else "the form cannot be read"
            raise HTTPException(400, message) from error
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if len(files) != 1:
            raise HTTPException(400, "the form has no file: send one image")
        return await files[0].read()

    async def _decode(self, data: bytes) -> np.ndarray:
        """Returns (size, size, channels) uint8."""
        if self._decoding >= self._options.limits.max_waiting:
            raise _overloaded()
        self._decoding += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._decoders, self._pixels, data)
        except DecodeError as error:
            if isinstance(cause := error.__cause__, TooManyPixels):
                size = f"{cause.width}x{cause.height}"
                raise HTTPException(422, f"the image has {size} pixels, more than {cause.limit:,}") from error
            raise HTTPException(415 if isinstance(cause, UnknownFormat) else 422, str(error)) from error
        finally:
            self._decoding -= 1

    def _pixels(self, data: bytes) -> np.ndarray:
        transform, zero = self._backend.transform, np.zeros(1, np.int64)
        out = {"image": np.zeros((1, *transform.fields()["image"].shape), np.uint8)}
        transform([{"image": data}], zero, zero, out)
        return out["image"][0]


def _shown(text: str) -> str:
    """Returns what a client has sent, as an error repeats it."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def _overloaded() -> HTTPException:
    return HTTPException(503, "too many images are waiting: try again later", {"Retry-After": "1"})


async def _as_json(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)
