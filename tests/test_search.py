"""Searching among stored features: exactly and approximately, by command and by page, and measures of it."""

import csv
import html.parser
import json
import pathlib

import numpy as np
import PIL.Image
import pytest
import sklearn.metrics
import sklearn.neighbors
from conftest import picture
from stored_features import SIZE, clusters, random_model, store

from vision_jax import features, search
from vision_jax.commands import search as command_line
from vision_jax.data.images import ImageSource
from vision_jax.errors import DataError
from vision_jax.features import Images


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory):
    return store(tmp_path_factory.mktemp("index") / "x", *clusters(500, 8, 5, seed=0))


def test_neighbors_against_scikit_learn(stored):
    queries = clusters(30, 8, 5, seed=1)[0]
    cosines, numbers = search.open_index(stored).search(queries, 6)
    reference = sklearn.neighbors.NearestNeighbors(n_neighbors=6, metric="cosine", algorithm="brute")
    distances, expected = reference.fit(np.asarray(stored.features)).kneighbors(queries)
    np.testing.assert_array_equal(numbers, expected)
    np.testing.assert_allclose(1 - cosines, distances, atol=1e-5)


def test_an_approximate_index_finds_nearly_the_same_and_is_kept(stored):
    queries = clusters(30, 8, 5, seed=1)[0]
    exact = search.open_index(stored).search(queries, 10)[1]
    index = search.open_index(stored, approximate=True)
    cosines, numbers = index.search(queries, 10)
    found = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(numbers.tolist(), exact.tolist(), strict=True)])
    assert found > 0.95
    assert (np.diff(cosines, axis=1) <= 0).all()
    kept = stored.directory / "neighbors.usearch"
    before = kept.stat().st_mtime_ns
    again = search.open_index(stored, approximate=True)
    assert kept.stat().st_mtime_ns == before
    np.testing.assert_array_equal(again.search(queries, 10)[1], numbers)
    kept.write_bytes(b"damaged")
    np.testing.assert_array_equal(search.open_index(stored, approximate=True).search(queries[:1], 10)[1], numbers[:1])


def test_measures_against_scikit_learn(stored):
    x, y = np.asarray(stored.features, np.float64), np.asarray(stored.labels)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    precisions, hits = [], []
    for row in range(len(x)):
        others = np.arange(len(x)) != row
        scores, wanted = x[others] @ x[row], y[others] == y[row]
        precisions.append(sklearn.metrics.average_precision_score(wanted, scores))
        hits.append(wanted[np.argmax(scores)])
    found = search.measure(stored)
    assert found["map"] == pytest.approx(np.mean(precisions), rel=1e-4)
    assert found["recall@1"] == pytest.approx(np.mean(hits))
    assert found["queries"] == 500


def test_what_cannot_be_measured(stored, tmp_path: pathlib.Path):
    x, y = clusters(20, 8, 5, seed=2)
    with pytest.raises(DataError, match="have no labels"):
        search.measure(store(tmp_path / "unlabeled", x))
    with pytest.raises(DataError, match="are of different models"):
        search.measure(stored, store(tmp_path / "other", x, y, digest="2"))


# ---- The command, by features of a random network

NAMES = ["a.png", "b <i>&.png", "c.png", "d.png", "e.png"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed, name in enumerate(NAMES):
        PIL.Image.fromarray(picture(SIZE, SIZE, seed=seed)[:, :, 0]).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def index(photos: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("features") / "x"
    options = features.Options(dtype="float32", batch_size=8)
    features.extract(random_model(), Images.of_paths([str(photos)]), directory, options)
    return directory


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flags of a model name a random one."""
    monkeypatch.setattr(command_line.common, "check_model_arguments", lambda arguments: None)
    monkeypatch.setattr(
        command_line.common, "load_model", lambda arguments, classifier: random_model(int(arguments.step or 0))
    )


def test_an_image_is_most_similar_to_itself(index: pathlib.Path, photos: pathlib.Path, tmp_path: pathlib.Path):
    output = tmp_path / "found.jsonl"
    query = str(photos / "c.png")
    assert command_line.main([f"--index={index}", query, "--topk=3", f"--output={output}"]) == 0
    (line,) = (json.loads(line) for line in output.read_text().splitlines())
    assert line["query"] == query
    assert line["matches"][0]["image"] == query
    assert line["matches"][0]["cosine"] == pytest.approx(1, abs=1e-5)
    assert len(line["matches"]) == 3


def test_damaged_queries_are_named_and_left_out(index, photos, tmp_path: pathlib.Path, capsys):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    output = tmp_path / "found.csv"
    arguments = [f"--index={index}", str(tmp_path / "bad.png"), str(photos / "a.png"), "--topk=2"]
    assert command_line.main([*arguments, f"--output={output}"]) == 3
    rows = list(csv.DictReader(output.open()))
    assert [row["rank"] for row in rows] == ["", "1", "2"]
    assert rows[0]["error"]
    assert "1 of 2 queries are damaged" in capsys.readouterr().err
    assert command_line.main([*arguments, f"--output={output}"]) == 1  # it is there


class Page(html.parser.HTMLParser):
    """The attributes and the text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [(tag, name, value or "") for name, value in attributes]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_no_other_file_and_escapes_names(index, photos, tmp_path: pathlib.Path):
    output = tmp_path / "found.html"
    assert command_line.main([f"--index={index}", str(photos), "--topk=5", f"--output={output}"]) == 0
    page = Page(output.read_text("utf-8"))
    sources = [value for _, name, value in page.found if name in ("src", "href")]
    assert len(sources) == 30  # a query and five results, five times
    assert all(source.startswith("data:image/") for source in sources)
    assert not any(tag == "i" for tag, _, _ in page.found)
    assert page.text.count("b <i>&.png") >= 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--index=INDEX"], "Similar to what?"),
        (["--index=INDEX", "--topk=0", "PHOTOS"], "--topk is 0"),
        (["--index=PHOTOS", "PHOTOS"], "holds no features"),
        (["--index=INDEX", "--output=x.doc", "PHOTOS"], "--output is x.doc: end its name in"),
        (["--index=INDEX", "--measure", "PHOTOS"], "which is not for --measure"),
        (["--index=INDEX", "--measure"], "have no labels"),
        (["--index=INDEX", "--ks=1", "PHOTOS"], "--ks is (1,), which is for --measure alone"),
        (["--index=INDEX", "--step=7", "PHOTOS"], "give the model that made them"),
    ],
)
def test_what_cannot_be_searched(arguments: list[str], message: str, index, photos, capsys):
    replaced = {"INDEX": str(index), "PHOTOS": str(photos)}
    for name, value in replaced.items():
        arguments = [argument.replace(name, value) for argument in arguments]
    assert command_line.main(arguments) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_sources_of_queries_keep_their_order(index, photos):
    source = ImageSource.find([photos / name for name in reversed(NAMES)])
    stored = features.read(index)
    found = list(search.find(random_model(), source, stored, search.open_index(stored), topk=1))
    assert [each.matches[0].name for each in found] == [each.query for each in found]
