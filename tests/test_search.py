"""Similar images: as sorting all cosines finds them, on pages that hold nothing foreign, and measured."""

import csv
import html.parser
import json
import pathlib
import re
import sys
import zipfile

import jax
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy
import sklearn.metrics
from conftest import picture
from stored_features import SIZE, clusters, random_model, store

from vision_jax import features, pretrained, search
from vision_jax.commands import common
from vision_jax.commands import search as command_line
from vision_jax.data.images import ImageSource
from vision_jax.errors import ConfigError, DataError
from vision_jax.features import Images, Options

COUNT = 12
ODD = "<b>&\"x'.png"  # a name that must be escaped


@pytest.fixture(scope="module")
def trained():
    return random_model()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(COUNT):
        name = ODD if i == 0 else f"{i:02d}.png"
        PIL.Image.fromarray(picture(SIZE, SIZE, seed=i)[:, :, 0]).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def stored(trained, photos: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> features.Features:
    directory = tmp_path_factory.mktemp("index")
    options = Options(dtype="float32", shard_size=5, batch_size=8)
    features.extract(trained, Images.of_paths([str(photos)]), directory, options)
    return features.read(directory)


@pytest.fixture(scope="module")
def queries(photos: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two of the photographs, and between them a damaged file."""
    folder = tmp_path_factory.mktemp("queries")
    for name in (ODD, "03.png"):
        (folder / {ODD: "0.png"}.get(name, name)).write_bytes((photos / name).read_bytes())
    (folder / "02.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    return folder


@pytest.fixture(scope="module")
def flags(trained, stored: features.Features, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The flags that name the index and its model."""
    path = tmp_path_factory.mktemp("weights") / "lenet5.safetensors"
    safetensors.numpy.save_file(pretrained.to_torch("lenet5", jax.device_get(trained.variables)), path)
    model = ["--model=lenet5", f"--pretrained={path}"]
    directory = tmp_path_factory.mktemp("of_weights")
    from vision_jax.commands import features as extraction

    photos = str(pathlib.Path(stored.names[0]).parent)
    assert extraction.main([*model, photos, f"--output={directory}", "--dtype=float32"]) == 0
    return [f"--index={directory}", *model]


def cosines(stored: features.Features) -> np.ndarray:
    rows = np.asarray(stored.features, np.float64)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit @ unit.T


@pytest.mark.parametrize("approximate", [False, True])
def test_the_most_similar_images(approximate: bool, trained, stored, queries: pathlib.Path):
    index = search.open_index(stored, approximate)
    found = list(search.find(trained, ImageSource.find([queries]), stored, index, topk=4))
    names = [pathlib.Path(each.query).name for each in found]
    assert names == ["0.png", "02.png", "03.png"]
    assert not found[1].matches
    assert found[1].error
    for each, name in ((found[0], ODD), (found[2], "03.png")):
        row = [pathlib.Path(path).name for path in stored.names].index(name)
        similarities = cosines(stored)[row]
        assert [match.row for match in each.matches] == np.argsort(-similarities)[:4].tolist()
        assert [match.name for match in each.matches] == [stored.names[match.row] for match in each.matches]
        np.testing.assert_allclose([match.cosine for match in each.matches], np.sort(similarities)[:-5:-1], atol=1e-5)
        assert each.matches[0].cosine == pytest.approx(1, abs=1e-5)
    one = next(iter(search.find(trained, ImageSource.find([queries / "0.png"]), stored, index, topk=99)))
    assert len(one.matches) == COUNT


def test_another_model_is_refused(stored, queries: pathlib.Path):
    with pytest.raises(DataError, match=r"are of lenet5, seed 0, and not of lenet5, seed 1, with this preprocessing"):
        next(search.find(random_model(1), ImageSource.find([queries]), stored, search.ExactIndex(stored)))


# ---- An approximate index


def test_an_approximate_index_finds_nearly_all_and_is_kept(tmp_path: pathlib.Path, monkeypatch):
    items = clusters(1500, 16, 20, seed=0)[0]
    stored, asked = store(tmp_path, items), clusters(60, 16, 20, seed=1)[0]
    exact_cosines, exact = search.ExactIndex(stored).search(asked, 10)
    index = search.ApproximateIndex(stored)
    found_cosines, found = index.search(asked, 10)
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), found.tolist(), strict=True)]
    assert np.mean(shared) > 0.98
    assert (np.diff(found_cosines, axis=1) <= 0).all()
    same = exact == found
    np.testing.assert_allclose(found_cosines[same], exact_cosines[same], atol=1e-6)

    built = []
    original = search.ApproximateIndex._build
    monkeypatch.setattr(search.ApproximateIndex, "_build", lambda self: (built.append(self), original(self)))
    again_cosines, again = search.ApproximateIndex(stored).search(asked, 10)
    assert not built
    np.testing.assert_array_equal(again, found)
    np.testing.assert_array_equal(again_cosines, found_cosines)
    # A file that is damaged though it has its size, and other features.
    (tmp_path / "neighbors.usearch").write_bytes(b"\0" * (tmp_path / "neighbors.usearch").stat().st_size)
    np.testing.assert_array_equal(search.ApproximateIndex(stored).search(asked[:1], 1)[1], exact[:1, :1])
    assert len(built) == 1
    for path in (*tmp_path.glob("features*"), *tmp_path.glob("names*")):
        path.unlink()
    other = store(tmp_path, items[::-1].copy())
    turned = search.ApproximateIndex(other).search(asked, 10)[1]
    assert len(built) == 2
    assert (
        np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), (1499 - turned).tolist(), strict=True)])
        > 0.98
    )


def test_which_index_is_chosen(stored, monkeypatch):
    assert isinstance(search.open_index(stored), search.ExactIndex)
    monkeypatch.setattr("vision_jax.search.index.APPROXIMATE_ABOVE", COUNT - 1)
    assert isinstance(search.open_index(stored), search.ApproximateIndex)
    assert isinstance(search.open_index(stored, False), search.ExactIndex)
    monkeypatch.setitem(sys.modules, "usearch", None)
    with pytest.raises(ConfigError, match=r"for 12 images, needs usearch: pip install 'vision_jax\[search\]'"):
        search.open_index(stored)


# ---- Measures


def test_measures_by_hand(tmp_path: pathlib.Path):
    """Five directions in the plane: at 0, 10, 20, 100 and 115 degrees, of the classes 0, 1, 0, 1 and 0."""
    angles = np.deg2rad([0, 10, 20, 100, 115])
    rows = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32) * [[1], [2], [3], [4], [5]]
    stored = store(tmp_path / "a", rows.astype(np.float32), [0, 1, 0, 1, 0])
    found = search.measure(stored, ks=(1, 2))
    # Its neighbors, by the class: 0 sees 1 0 1 0; 10 sees 0 0 1 0 (equally far: the first); 20 sees 1 0 1 0;
    # 100 sees 0 0 1 0; 115 sees 1 0 1 0.
    precision = [(1 / 2 + 2 / 4) / 2, 1 / 3, (1 / 2 + 2 / 4) / 2, 1 / 3, (1 / 2 + 2 / 4) / 2]
    assert found["map"] == pytest.approx(np.mean(precision))
    assert (found["recall@1"], found["recall@2"], found["queries"]) == (0, pytest.approx(3 / 5), 5)
    again = store(tmp_path / "again", rows.astype(np.float32), [0, 1, 0, 1, 0])
    assert search.measure(stored, again, ks=(1, 2)) == found  # not by finding itself
    # A query at 12 degrees, of class 1, sees 10, 20, 0, 100, 115: classes 1 0 0 1 0.
    query = np.array([[np.cos(np.deg2rad(12)), np.sin(np.deg2rad(12))]], np.float32)
    asked = store(tmp_path / "b", query, [1], num_classes=2)
    assert search.measure(stored, asked, ks=(1,))["map"] == pytest.approx((1 + 2 / 4) / 2)


def test_measures_against_scikit_learn(tmp_path: pathlib.Path):
    (items, labels), (asked, wanted) = clusters(90, 6, 4, seed=0), clusters(40, 6, 4, seed=1)
    index, queries = store(tmp_path / "i", items, labels), store(tmp_path / "q", asked, wanted)
    unit, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (items, asked))
    similarities = other @ unit.T
    expected = [
        sklearn.metrics.average_precision_score(labels == label, row)
        for label, row in zip(wanted, similarities, strict=True)
    ]
    found = search.measure(index, queries, ks=(1, 5))
    assert found["map"] == pytest.approx(np.mean(expected), abs=1e-5)
    best = np.argsort(-similarities, 1)[:, :5]
    assert found["recall@5"] == pytest.approx(np.mean((labels[best] == wanted[:, None]).any(1)))
    assert found["recall@1"] == pytest.approx(np.mean(labels[best[:, 0]] == wanted))
    unlabeled = store(tmp_path / "u", items)
    with pytest.raises(DataError, match="have no labels"):
        search.measure(unlabeled)
    with pytest.raises(DataError, match="of different models"):
        search.measure(index, store(tmp_path / "o", asked, wanted, digest="1"))


# ---- The command


class Page(html.parser.HTMLParser):
    """Collects what a page refers to, its text, and whether all elements are closed."""

    def __init__(self, text: str):
        super().__init__()
        self.sources: list[str] = []
        self.alts: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        self.sources += [value for name, value in attributes if name in ("src", "href", "srcset", "style", "action")]
        self.alts += [values["alt"]] if "alt" in values else []
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page(flags: list[str], queries: pathlib.Path, tmp_path: pathlib.Path, capsys):
    output = tmp_path / "found.html"
    assert command_line.main([*flags, str(queries), "--topk=3", f"--output={output}"]) == common.DAMAGED
    text = output.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    assert len(page.sources) == page.tags.count("img") == 2 + 2 * 3
    assert all(source.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for source in page.sources)
    assert not re.search(r"https?:|//|@import|url\(", re.sub(r'src="data:[^"]*"', "", text).replace(str(queries), ""))
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert any(alt.endswith(ODD) for alt in page.alts)
    assert sum(each.endswith(ODD) for each in page.texts) >= 1
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    assert any(each.startswith("damaged: ") for each in page.texts)
    assert "1 of 3 queries are damaged" in capsys.readouterr().err
    before = output.read_bytes()
    assert command_line.main([*flags, str(queries), f"--output={output}"]) == 1  # it is there already
    assert "is there already: give another name, or --overwrite" in capsys.readouterr().err
    assert output.read_bytes() == before


@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl"])
def test_files_of_results(kind: str, flags: list[str], stored, queries: pathlib.Path, tmp_path: pathlib.Path):
    output = tmp_path / f"found.{kind}"
    assert command_line.main([*flags, str(queries), "--topk=2", f"--output={output}"]) == common.DAMAGED
    row = [pathlib.Path(name).name for name in stored.names].index("03.png")
    best = [stored.names[i] for i in np.argsort(-cosines(stored)[row])[:2]]
    match kind:
        case "txt":
            lines = output.read_text().splitlines()
            assert [line for line in lines if "damaged: " in line] == [lines[3]]
            assert lines[4] == f"{queries}/03.png"
            assert [line.split()[-1] for line in lines[5:]] == best
        case "csv":
            rows = list(csv.DictReader(output.open()))
            assert [(r["rank"], r["image"]) for r in rows if r["query"].endswith("03.png")] == [
                *zip("12", best, strict=True)
            ]
            assert [r["query"] for r in rows if r["error"]] == [f"{queries}/02.png"]
        case "jsonl":
            lines = [json.loads(line) for line in output.read_text().splitlines()]
            assert [match["image"] for match in lines[2]["matches"]] == best
            assert lines[2]["matches"][0]["cosine"] == pytest.approx(1, abs=1e-5)
            assert lines[1]["error"]


def test_pictures_of_archives_and_of_splits_and_those_that_are_gone(trained, photos: pathlib.Path, tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(photos.iterdir())[:3]:
            archive.write(path, f"inner/{path.name}")
    features.extract(trained, Images.of_paths([str(tmp_path / "photos.zip")]), tmp_path / "f", Options(batch_size=8))
    stored = features.read(tmp_path / "f")
    pictures = search.Pictures(stored)
    assert [pictures.read(row) for row in range(3)] == [path.read_bytes() for path in sorted(photos.iterdir())[:3]]
    assert not pictures.missing
    (tmp_path / "photos.zip").rename(tmp_path / "elsewhere.zip")
    gone = search.Pictures(stored)
    assert [gone.read(row) for row in (0, 1, 0)] == [None] * 3
    assert gone.missing == set(stored.names[:2])

    config = trained.config.copy_and_resolve_references()
    config.data.synthetic_val_examples = 5
    images = Images.of_split(config, "validation")
    features.extract(trained, images, tmp_path / "s", Options(batch_size=8))
    synthetic = features.read(tmp_path / "s")
    assert search.Pictures(synthetic, images.source).read(4) == images.source[4]["image"]
    config.data.synthetic_val_examples = 6
    assert search.Pictures(synthetic, Images.of_split(config, "validation").source).read(4) is None


def test_the_measures_command(tmp_path: pathlib.Path, capsys):
    store(tmp_path / "i", *clusters(50, 6, 4, seed=0))
    assert command_line.main([f"--index={tmp_path / 'i'}", "--measure", "--ks=1,3", f"--json={tmp_path / 'm'}"]) == 0
    printed, found = capsys.readouterr().out, json.loads((tmp_path / "m").read_text())
    expected = search.measure(features.read(tmp_path / "i"), ks=(1, 3))
    assert {name: found[name] for name in expected} == expected
    assert f"recall@3        {expected['recall@3']:9.2%}\n" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["INDEX", "x.jpg"], "Which model?"),
        (["INDEX", "MODEL"], "Similar to what?"),
        (["INDEX", "MODEL", "x.jpg"], "There is no x.jpg"),
        (["INDEX", "MODEL", "QUERIES", "--topk=0"], "--topk is 0"),
        (["INDEX", "MODEL", "QUERIES", "--output=x.doc"], "--output is x.doc: end its name in .html"),
        (["INDEX", "MODEL", "QUERIES", "--output=nowhere/x.csv"], "there is no folder nowhere"),
        (["INDEX", "MODEL", "QUERIES", "--ks=1"], "--ks is (1,), which is for --measure alone"),
        (
            ["INDEX", "MODEL", "QUERIES", "--config.data.eval_crop=0.5"],
            "with this preprocessing (their digests differ)",
        ),
        (["--index=QUERIES", "MODEL", "QUERIES"], "holds no features"),
        (["--index=gs://x", "MODEL", "QUERIES"], "--index is 'gs://x': URLs"),
        (["INDEX", "--measure"], "have no labels, which measuring needs"),
        (["INDEX", "--measure", "--ks=0"], "--ks is 0: give numbers from 1"),
        (["INDEX", "--measure", "QUERIES"], "which is not for --measure"),
    ],
)
def test_what_is_refused(arguments, message, flags, queries: pathlib.Path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    replaced = {"INDEX": flags[:1], "MODEL": flags[1:]}
    arguments = [part for argument in arguments for part in replaced.get(argument, [argument])]
    arguments = [argument.replace("QUERIES", str(queries)) for argument in arguments]
    capsys.readouterr()
    assert command_line.main(arguments) == 1
    out, err = capsys.readouterr()
    assert message in err.splitlines()[-1]
    assert not out
    assert not list(tmp_path.iterdir())
