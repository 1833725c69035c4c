"""Which status each request gets, that batches fill, and that nothing that was asked is lost."""

import asyncio
import collections
import concurrent.futures
import contextlib
import io
import json
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import jax
import numpy as np
import PIL.Image
import pytest
from conftest import REPOSITORY, encode
from served import Gray, options
from starlette.testclient import TestClient

import vision_jax
from vision_jax import predict
from vision_jax.commands import serve as command_line
from vision_jax.serve import backends, batching, program
from vision_jax.serve.app import Service


def gray(level: int, size: int = 12, image_format: str = "PNG") -> bytes:
    return encode(np.full((size, size), level, np.uint8), image_format)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(Service(Gray(), options(max_seconds=0.3)).app, raise_server_exceptions=False) as client:
        yield client


def bomb() -> bytes:
    """A PNG of 400 bytes and a hundred million pixels."""
    file = io.BytesIO()
    PIL.Image.new("1", (10_000, 10_000)).save(file, "PNG", compress_level=9)
    return file.getvalue()[:2000]


def form(*parts: tuple[str, str | None, bytes]) -> dict[str, Any]:
    lines = b""
    for name, filename, content in parts:
        file = "" if filename is None else f'; filename="{filename}"'
        lines += f'--edge\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"
    return {"content": lines + b"--edge--\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=edge"}}


def test_an_image_is_classified(client: TestClient):
    for level in (0, 7, 254):
        answer = client.post("/predict", content=gray(level))
        assert answer.status_code == 200
        assert answer.json() == {
            "model": "gray <level>",
            "classes": [
                {"class": level, "name": f"gray {level}", "probability": 0.75},
                {"class": level + 1, "name": f"gray {level + 1}", "probability": 0.25},
            ],
        }
    for image_format in ("JPEG", "BMP", "GIF", "TIFF", "WEBP"):
        (found,) = client.post("/predict?topk=1", content=gray(200, image_format=image_format)).json()["classes"]
        assert abs(found["class"] - 200) <= 1
    answer = client.post("/predict", **form(("image", "a.png", gray(9))))
    assert answer.json()["classes"][0]["class"] == 9


REFUSED: dict[str, tuple[int, str, dict[str, Any]]] = {
    "nothing": (415, "it is empty", {"content": b""}),
    "a text": (415, "not an image of a known format", {"content": b"hello"}),
    "JSON": (415, "not an image", {"json": {"image": "cat.jpg"}}),
    "a page": (415, "not an image", {"content": b"<html></html>", "headers": {"Content-Type": "text/html"}}),
    "a zip file": (415, "not an image", {"content": b"PK\3\4" + bytes(100)}),
    "a compressed body": (415, "is encoded", {"content": gray(3), "headers": {"Content-Encoding": "gzip"}}),
    "a JPEG cut off": (422, "", {"content": gray(3, 64, "JPEG")[:200]}),
    "a PNG cut off": (422, "", {"content": gray(3)[:50]}),
    "JPEG's first bytes alone": (422, "", {"content": b"\xff\xd8\xff"}),
    "a bomb": (422, "the image has 10000x10000 pixels, more than 10,000", {"content": bomb()}),
    "a large image": (422, "the image has 101x101 pixels", {"content": gray(3, 101)}),
    "a large body": (413, "more than 20,000 bytes", {"content": bytes(20_001)}),
    "a large body in chunks": (413, "more than 20,000 bytes", {"content": iter([bytes(3000)] * 10)}),
    "a very large body": (413, "more than 20,000 bytes", {"content": bytes(400_000)}),
    "a very large body in chunks": (413, "more than 20,000 bytes", {"content": iter([bytes(10_000)] * 40)}),
    "a form without a file": (400, "the form has no file", form(("image", None, b"cat.jpg"))),
    "a form with two files": (400, "Too many files", form(("a", "a.png", gray(1)), ("b", "b.png", gray(1)))),
    "a form without a boundary": (
        400,
        "boundary",
        {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
    ),
    "a form that is none": (
        *(400, ""),
        {"content": b"no form", "headers": {"Content-Type": "multipart/form-data; boundary=edge"}},
    ),
    "a form with a text file": (415, "not an image", form(("image", "a.png", b"hello"))),
    "too many classes": (400, "topk is '3': give 1 to 2", {"content": gray(3), "params": {"topk": "3"}}),
    "no number of classes": (400, "topk is '-1'", {"content": gray(3), "params": {"topk": "-1"}}),
    "an unknown parameter": (400, "'top_k' is no parameter", {"content": gray(3), "params": {"top_k": "1"}}),
    "what the model fails at": (500, "the model failed: FloatingPointError", {"content": gray(13)}),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(client: TestClient, what: str):
    status, message, request = REFUSED[what]
    if hasattr(request.get("content"), "__next__"):
        request = {**request, "content": iter(list(request["content"]))}
    answer = client.post("/predict", **request)
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/json")
    assert list(answer.json()) == ["error"]
    assert message in answer.json()["error"]
    assert client.post("/predict", content=gray(5)).status_code == 200


def test_other_paths_and_methods(client: TestClient):
    assert client.get("/predict").status_code == 405
    assert client.get("/predict").json() == {"error": "Method Not Allowed"}
    assert client.get("/predictions").status_code == 404
    assert client.post("/predict/", content=gray(3), follow_redirects=False).status_code == 404
    answer = client.post("/predict", content=gray(3), params={"x" * 10_000: "1"})
    assert answer.json()["error"] == f"'{'x' * 40}...' is no parameter: there is topk"
    assert client.get("/health").json() == {"status": "ok", "model": "gray <level>", "classes": 256}
    page = client.get("/")
    assert "<h1>gray &lt;level&gt;</h1>" in page.text
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]


def test_metrics_count_what_was_answered():
    backend = Gray()
    with TestClient(Service(backend, options()).app) as client:
        for content, times in ((gray(3), 3), (b"", 2)):
            for _ in range(times):
                client.post("/predict", content=content)
        lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
    assert lines['vision_jax_requests_total{status="200"}'] == "3.0"
    assert lines['vision_jax_requests_total{status="415"}'] == "2.0"
    assert lines["vision_jax_request_seconds_count"] == "5.0"
    assert lines["vision_jax_batch_images_sum"] == "3.0"
    assert lines["vision_jax_waiting_images"] == "0.0"


def test_what_comes_together_is_computed_together():
    """And what is beyond the bound is refused, while all that was taken is answered, each with its own classes."""
    backend = Gray(seconds=0.05)
    levels = list(range(100, 160))

    async def ask() -> list[Any]:
        batcher = batching.Batcher(backend, batching.Limits(max_batch=8, max_delay=0.05, max_waiting=40))
        batcher.start()
        images = [np.full((8, 8, 1), level, np.uint8) for level in levels]
        answers = await asyncio.gather(*(batcher.classify(image) for image in images), return_exceptions=True)
        await batcher.close()
        return answers

    answers = asyncio.run(ask())
    taken = [answer for answer in answers if not isinstance(answer, Exception)]
    assert len(taken) == 40
    assert [answer[1].tolist() for answer in taken] == [[n, n + 1] for n in levels[:40]]
    assert all(isinstance(answer, batching.Overloaded) for answer in answers[40:])
    assert backend.sizes == [8] * 5


def test_an_image_alone_waits_no_longer_than_it_may():
    async def ask() -> float:
        batcher = batching.Batcher(Gray(), batching.Limits(max_batch=8, max_delay=0.1))
        batcher.start()
        begun = time.perf_counter()
        await batcher.classify(np.zeros((8, 8, 1), np.uint8))
        taken = time.perf_counter() - begun
        await batcher.close()
        return taken

    assert asyncio.run(ask()) >= 0.1


def test_a_model_in_jax_answers_as_it_predicts(tmp_path: pathlib.Path):
    model = vision_jax.create_model("lenet5", num_classes=10, in_channels=1)
    variables = model.init(jax.random.key(0), np.zeros((1, 28, 28, 1), np.float32), train=False)
    predictor = predict.Predictor(model, variables, topk=3)
    backend = backends.JaxBackend("lenet5", predictor, max_pixels=10_000)
    paths = []
    for index in range(5):
        pixels = np.random.default_rng(index).integers(0, 256, (28, 28), np.uint8)
        paths.append(tmp_path / f"{index}.png")
        paths[-1].write_bytes(encode(pixels, "PNG"))
    expected = predictor.predict(paths)
    with TestClient(Service(backend, options()).app) as client:
        for path, prediction in zip(paths, expected, strict=True):
            found = client.post("/predict", content=path.read_bytes()).json()["classes"]
            assert [c["class"] for c in found] == [c.number for c in prediction.classes]
            assert [c["probability"] for c in found] == pytest.approx([c.probability for c in prediction.classes])
    rows = np.stack([np.asarray(PIL.Image.open(path))[..., None] for path in paths])
    together = backend(rows)
    assert together.classes.tolist() == [[c.number for c in prediction.classes] for prediction in expected]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "Which model? Give --workdir=DIR"),
        (("--workdir=/nowhere",), "not the workdir of a run"),
        (("--model=resnet50", "--pretrained=x", "--port=70000"), "--port is 70000: give 0 to 65535"),
        (("--model=resnet50", "--pretrained=x", "--max_batch=0"), "--max_batch is 0: give 1 or more"),
        (("--model=resnet50", "--pretrained=x", "--max_delay_ms=nan"), "--max_delay_ms is nan"),
        (("--model=resnet50", "--pretrained=x", "--max_seconds=0"), "--max_seconds is 0"),
    ],
)
def test_flags_that_cannot_work(capsys: pytest.CaptureFixture, flags: tuple[str, ...], message: str):
    assert command_line.main(flags) == 1
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(program.ConfigError, match=f"--port={port}: .*: give another port, or 0"):
            program.serve(Gray(), options(), program.Address(port=port))


def test_two_servers_that_begin_at_once():
    """Both get the port, as none listens while its model is compiled; the second one to be ready says what is wrong."""

    class Slow(Gray):
        def prepare(self, max_batch: int) -> None:
            self.other = socket.socket()
            self.other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.other.bind(("127.0.0.1", port))
            self.other.listen()

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    slow = Slow()
    with pytest.raises(program.ConfigError, match=f"--port={port}: Address already in use: give another port, or 0"):
        program.serve(slow, options(), program.Address(port=port))
    slow.other.close()


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[tuple[subprocess.Popen, int]]:
    """A process that serves, with so many seconds a batch, and its port."""
    file = tmp_path / "port"
    process = subprocess.Popen(
        [sys.executable, REPOSITORY / "tests" / "serve" / "served.py", file, str(getattr(request, "param", 0.01))],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None:
        time.sleep(0.02)
        with contextlib.suppress(OSError, httpx.HTTPError):
            port = json.loads(file.read_text())
            if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                break
    yield process, port
    process.kill()
    process.communicate()


def raw(port: int, data: bytes, timeout: float = 10.0) -> bytes:
    """Sends bytes and returns what comes back until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        connection.sendall(data)
        received = b""
        while part := connection.recv(65536):
            received += part
        return received


def test_requests_that_are_no_http_or_too_slow(server: tuple[subprocess.Popen, int]):
    process, port = server
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    for data, status in (
        (b"hello\r\n\r\n", b"400"),
        (b"POST /predict HTTP/1.1\r\n\r\n", b"400"),  # of no host
        (head + b"Content-Length: many\r\n\r\n", b"400"),
        (head + b"Content-Length: 5\r\n\r\nhel", b"408"),  # and the rest never comes
        (head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (head + b"Content-Length: 3\r\n\r\nabc", b"415"),
        (head + b"Content-Length: 100000000000\r\n\r\nabc", b"413"),
    ):
        answer = raw(port, data)
        assert answer.startswith(b"HTTP/1.1 " + status), (data, answer)
    with socket.create_connection(("127.0.0.1", port)) as connection:  # one that leaves in the middle
        connection.sendall(head + b"Content-Length: 5\r\n\r\nhel")
    assert httpx.post(f"http://127.0.0.1:{port}/predict", content=gray(5)).status_code == 200
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def hammer(port: int, clients: int, stop: threading.Event) -> collections.Counter:
    """Asks from many clients until told to stop or the server no longer listens; counts answers by status.

    An answer that is another image's, and a request that was sent and not answered, count as errors.
    """

    def one(number: int) -> collections.Counter:
        found: collections.Counter = collections.Counter()
        with httpx.Client(timeout=30) as client:
            for turn in range(10**9):
                level = 20 + (7 * number + turn) % 200
                if stop.is_set():
                    break
                try:
                    answer = client.post(f"http://127.0.0.1:{port}/predict", content=gray(level))
                except httpx.ConnectError:
                    found["gone"] += 1
                    break
                except httpx.HTTPError as error:
                    found[f"lost: {error!r}"] += 1
                    break
                right = answer.status_code != 200 or answer.json()["classes"][0]["class"] == level
                found[answer.status_code if right else "wrong"] += 1
        return found

    with concurrent.futures.ThreadPoolExecutor(clients) as threads:
        return sum(threads.map(one, range(clients)), collections.Counter())


@pytest.mark.parametrize(
    ("server", "clients", "seconds"),
    [(0.02, 12, 1.0), pytest.param(0.1, 50, 30.0, marks=pytest.mark.exhaustive)],
    indirect=["server"],
)
def test_nothing_is_lost_under_load_and_at_sigterm(server: tuple[subprocess.Popen, int], clients: int, seconds: float):
    process, port = server
    stop = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        found = thread.submit(hammer, port, clients, stop)
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM)
        status = process.wait(30)
        stop.set()
        counts = found.result()
    assert status == 0
    assert set(counts) <= {200, 503, "gone"}, counts
    assert counts[200] > clients
    assert "All that was asked has been answered" in process.stderr.read()
