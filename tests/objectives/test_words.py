"""Pairs of images and texts: their data, the objectives, and classes by their names in an evaluation."""

import csv
import io
import json
import pathlib
import tarfile
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Command, Pictures, encode, picture
from jax.sharding import NamedSharding, PartitionSpec

from vision_jax import losses, recipes
from vision_jax.assembly import inputs
from vision_jax.config import default_config, validate
from vision_jax.data.pairs import CaptionTokens, LabelTokens, PairsSource
from vision_jax.data.transforms import EvalTransform
from vision_jax.devices import sharding
from vision_jax.errors import ConfigError, DataError
from vision_jax.evaluators import Context, ZeroShot
from vision_jax.models.layers import BatchNorm, ImageModel, global_mean
from vision_jax.objectives import OBJECTIVES, Pairs, Setup
from vision_jax.objectives.pairs import from_clip, to_clip
from vision_jax.search import find_by_words
from vision_jax.text import ByteTokenizer, prompts

SIZE, CONTEXT = 8, 16
SMALL: dict[str, Any] = {"context_length": CONTEXT, "embed_dim": 8, "text_width": 8, "text_depth": 1, "text_heads": 2}
LOSSES = ("clip", "siglip")


class Backbone(ImageModel, kw_only=True):
    """A norm of pixels, and their means."""

    @nn.compact
    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        return global_mean(nn.relu(nn.Dense(6)(BatchNorm(name="bn")(images, train=train))))


def objective(name: str = "clip", **options: Any) -> Pairs:
    setup = Setup(Backbone(num_classes=0), (SIZE, SIZE, 3), (0.5,) * 3, (0.25,) * 3)
    return OBJECTIVES[name](setup=setup, **{**SMALL, **options})


def rows(seed: int, count: int) -> dict[str, jax.Array]:
    random = np.random.RandomState(seed)
    return {
        "image": jnp.asarray(random.randint(0, 256, (count, SIZE, SIZE, 3)), jnp.uint8),
        "tokens": jnp.asarray(ByteTokenizer(CONTEXT)([f"picture {random.randint(99)}" for _ in range(count)])),
        "mask": jnp.ones(count),
    }


def value(kind: str, images: jax.Array, texts: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    if kind == "clip":
        return losses.clip_loss(images, texts, jnp.float32(1.5), mask)
    return losses.siglip_loss(images, texts, jnp.float32(1.5), jnp.float32(-2), mask)


@pytest.mark.parametrize("kind", LOSSES)
def test_the_loss_is_over_the_pairs_of_all_devices(kind: str):
    images, texts = jax.random.normal(jax.random.key(0), (2, 16, 8))
    mean = jax.jit(jax.value_and_grad(lambda images, texts: value(kind, images, texts).mean(), argnums=(0, 1)))
    alone = mean(images, texts)
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, jax.devices())
    assert mesh.size == 8
    divided = NamedSharding(mesh, PartitionSpec("data"))
    together = mean(jax.device_put(images, divided), jax.device_put(texts, divided))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), alone, together)
    parts = np.mean([mean(images[i : i + 2], texts[i : i + 2])[0] for i in range(0, 16, 2)])
    assert abs(parts - alone[0]) > 0.1  # what each device would find among its own


@pytest.mark.parametrize("kind", LOSSES)
def test_padding_is_no_pair(kind: str):
    images, texts = jax.random.normal(jax.random.key(1), (2, 6, 8))
    mask = jnp.asarray([1.0, 1, 1, 1, 0, 0])
    compute = jax.jit(lambda images, texts, mask: value(kind, images, texts, mask))
    alone = compute(images[:4], texts[:4], jnp.ones(4))
    np.testing.assert_allclose(compute(images, texts, mask)[:4], alone, rtol=1e-5)
    assert not np.allclose(compute(images, texts, jnp.ones(6))[:4], alone, rtol=1e-2)


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_of_each_objective(name: str):
    each = objective(name)
    batch = rows(0, 4)
    variables = jax.jit(lambda: each.init(jax.random.key(0), batch))()
    assert {"Dense_0", "bn", "text", "image_head", "logit_scale"} <= variables["params"].keys()
    assert ("logit_bias" in variables["params"]) == (name == "siglip")
    jax.tree.map(np.testing.assert_array_equal, from_clip(to_clip(variables)), variables)
    views = {**batch, "image": batch["image"] / jnp.float32(64) - 2}
    progress = each.progress(jnp.int32(0))

    padded = {key: jnp.concatenate([array, array[:2]]) for key, array in views.items()}
    padded["mask"] = jnp.asarray([1.0, 1, 1, 1, 0, 0])

    def loss(params: Any, train: bool, views: Any) -> Any:
        out = each.loss({**variables, "params": params}, views, (), jax.random.key(2), progress, train=train)
        return out.loss / out.weight, out

    @jax.jit
    def run(params: Any) -> Any:
        """The gradients, and the validation losses: of the step, without its code, and with padding."""
        gradients, out = jax.grad(lambda params: loss(params, True, views), has_aux=True)(params)
        pairs = each.clip.apply(to_clip(variables), views["image"], views["tokens"], train=False, method="encode")
        scale, bias = jnp.log(each.initial_scale), each.initial_bias
        direct = losses.clip_loss(*pairs, scale) if bias is None else losses.siglip_loss(*pairs, scale, bias)
        return gradients, out.variables, loss(params, False, views)[0], direct.mean(), loss(params, False, padded)[0]

    gradients, updates, found, direct, of_padded = run(variables["params"])
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients["image_head"] | gradients["text"]["head"]))
    assert updates["batch_stats"]["bn"].keys() == {"mean", "var"}
    np.testing.assert_allclose([found, of_padded], [direct, direct], rtol=1e-5)


def test_the_scale_of_clip_stays_below_a_hundred():
    params = {"logit_scale": jnp.float32(5), "text": {}}
    assert np.exp(objective("clip").constrain(params)["logit_scale"]) == pytest.approx(100)
    assert objective("siglip").constrain(params)["logit_scale"] == 5


def test_zero_shot_classes_in_an_evaluation():
    each = objective(words=("ant", "bee", "cat"))
    variables = jax.jit(lambda: each.init(jax.random.key(3), rows(0, 1)))()
    source = Pictures([0, 1, 2, 0, 1, 2, 2], SIZE, 3)
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    context = Context(mesh, source, EvalTransform(SIZE, SIZE, 3), 4, (0.5,) * 3, (0.25,) * 3, num_threads=1)
    templates = ("a {}.", "the {}")
    found = ZeroShot(context=context, templates=templates)(each, {"": variables})
    texts = ByteTokenizer(CONTEXT)(prompts.prompts(each.words, templates))
    model, own = each.clip, to_clip(variables)
    pixels = np.stack([picture(SIZE, SIZE, seed=i) for i in range(7)]) / 255
    embeddings, features = jax.jit(
        lambda images, texts: (
            model.apply(own, texts, train=False, method="encode_texts"),
            model.apply(own, images, train=False, method="encode_images"),
        )
    )(jnp.asarray((pixels - 0.5) / 0.25, jnp.float32), texts)
    embeddings = np.asarray(embeddings, np.float64).reshape(3, 2, -1)

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    cosines = unit(np.asarray(features, np.float64)) @ unit(unit(embeddings).mean(1)).T
    logits = jnp.asarray(each.initial_scale * cosines)
    labels = np.array([0, 1, 2, 0, 1, 2, 2])
    assert found["count"] == 7
    assert found["top1"] == pytest.approx((cosines.argmax(1) == labels).mean())
    assert found["loss"] == pytest.approx(float(losses.softmax_cross_entropy(logits, labels).mean()), rel=0.03)  # JPEG


def test_a_search_by_words():
    """Among the backbone's features, which are projected."""
    each = objective()
    variables = jax.jit(lambda: each.init(jax.random.key(5), rows(0, 1)))()
    stored = np.random.RandomState(3).standard_normal((9, 6)).astype(np.float16)
    names = [f"{i}.jpg" for i in range(9)]
    about = SimpleNamespace(digest="same", model="", origin="")
    features = SimpleNamespace(features=stored, names=names, label_name=lambda row: None, about=about, directory="")
    trained: Any = SimpleNamespace(objective=each, variables=variables, digest="same", origin="run", name="")
    texts = ["the picture", "number 7"]
    found = list(find_by_words(trained, texts, features, topk=4))
    tokens = ByteTokenizer(CONTEXT)(texts)
    queries = jax.jit(lambda t: each.clip.apply(to_clip(variables), t, train=False, method="encode_texts"))(tokens)
    items = stored.astype(np.float64) @ np.asarray(variables["params"]["image_head"]["kernel"])
    a, b = (np.asarray(x, np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, items))
    for text, result, cosines in zip(texts, found, a @ b.T, strict=True):
        assert result.query == text
        assert [match.row for match in result.matches] == np.argsort(-cosines)[:4].tolist()
        np.testing.assert_allclose([match.cosine for match in result.matches], np.sort(cosines)[::-1][:4], rtol=1e-4)
    with pytest.raises(ConfigError, match="One of --words is empty"):
        list(find_by_words(trained, [" "], features))
    trained.objective = OBJECTIVES["simclr"](setup=each.setup)
    with pytest.raises(ConfigError, match="learned no words"):
        list(find_by_words(trained, texts, features))


@pytest.fixture
def captions(tmp_path: pathlib.Path) -> pathlib.Path:
    """The same images and captions as a table and as tar files."""
    (tmp_path / "tars").mkdir()
    members = [(f"{i:03d}", encode(picture(SIZE, SIZE, seed=i)), f"number {i}, in a picture") for i in range(5)]
    with (tmp_path / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption"])
        for key, image, caption in members:
            (tmp_path / f"{key}.jpg").write_bytes(image)
            table.writerow([f"{key}.jpg", caption])
    for number, part in enumerate((members[:2], members[2:])):
        with tarfile.open(tmp_path / "tars" / f"{number}.tar", "w") as tar:
            for key, image, caption in part:
                for suffix, data in (("jpg", image), ("txt", caption.encode()), ("json", b"{}")):
                    about = tarfile.TarInfo(f"{key}.{suffix}")
                    about.size = len(data)
                    tar.addfile(about, io.BytesIO(data))
    return tmp_path


def test_captions_of_a_table_and_of_tar_files(captions: pathlib.Path):
    table, tars = PairsSource(captions, "table"), PairsSource(captions, "tars")
    assert len(table) == len(tars) == 5
    assert [table[i] for i in range(5)] == [tars[i] for i in range(5)]
    assert table[3]["caption"] == "number 3, in a picture"
    assert table.describe(1) == f"{captions}/001.jpg"
    assert tars.describe(2) == f"{captions}/tars/1.tar/002.jpg"
    tokens = CaptionTokens(table, ByteTokenizer(32))[4]["tokens"]
    assert bytes(tokens[1:22].tolist()) == b"number 4 in a picture"


def test_sentences_about_classes():
    names, templates = ("ant", "bee"), ("a {}", "the {}.", "{}")
    table = prompts.table(ByteTokenizer(CONTEXT), names, templates)
    source = LabelTokens(Pictures([0, 1] * 20, SIZE, 2), table)
    found = [
        bytes(row["tokens"][row["tokens"] < 256].tolist()).strip(b"\0").decode()
        for row in map(source.__getitem__, range(40))
    ]
    assert all((name == "ant") == (i % 2 == 0) for i, text in enumerate(found) for name in names if name in text)
    assert set(found) == {"a ant", "the ant", "ant", "a bee", "the bee", "bee"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no image with a caption"),
        ("image,caption\n,x\n", "in its row 1"),
        ("file,text\na.jpg,x\n", "in its row 1"),
        (None, "captions are in SPLIT.csv"),
    ],
)
def test_captions_that_are_missing(tmp_path: pathlib.Path, content: str | None, message: str):
    if content is not None:
        (tmp_path / "train.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        PairsSource(tmp_path, "train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"templates": ("a photo",)}, "has {} once"),
        ({"words": ("a", "a")}, "there twice"),
        ({"words": ("a", " ")}, "is empty"),
        ({"text_heads": 3}, "does not divide"),
        ({"activation": "relu"}, "there are gelu"),
        ({"embed_dim": 0}, "must be positive"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        objective(**options)


def test_tokenizers_and_names_that_do_not_fit():
    with pytest.raises(ConfigError, match="has 258 tokens"):
        objective(vocab_size=100).open_tokenizer()
    with pytest.raises(ConfigError, match="it is bytes, clip:FILE or siglip:FILE"):
        objective(tokenizer="words").open_tokenizer()
    with pytest.raises(ConfigError, match="has 2 names, and the data has 3 classes"):
        objective(words=("ant", "bee")).class_words(("a", "b", "c"))
    with pytest.raises(ConfigError, match="have no names"):
        objective().class_words(())


def test_a_configuration_of_captions(captions: pathlib.Path):
    """From the fields of a configuration to a batch with tokens."""
    config = default_config()
    config.objective = recipes.objective("clip", **SMALL)
    config.data.source, config.data.dir = "pairs", str(captions)
    config.data.train_split, config.data.val_split = "table", "tars"
    for train in (True, False):
        source = inputs.create_source(config, train=train)
        assert source[0]["tokens"].shape == (CONTEXT,)
    assert inputs.make_eval_transform(config).fields()["tokens"].shape == (CONTEXT,)


def test_captions_are_no_labels(captions: pathlib.Path):
    config = default_config()
    config.data.source, config.data.dir = "pairs", str(captions)
    with pytest.raises(ConfigError, match="but no labels, from which classification learns"):
        validate(config, num_devices=1)
    config.objective = recipes.objective("clip", **SMALL)
    with config.unlocked():
        config.evals = {"val": {"kind": "zero_shot"}}
    with pytest.raises(ConfigError, match="no labels to measure it by"):
        validate(config, num_devices=1)
    config.objective = recipes.objective("simclr")
    with pytest.raises(ConfigError, match="the objective simclr learns no words"):
        validate(config, num_devices=1)


def test_only_the_backbone_is_locked_by_the_pattern_that_is_told():
    import re

    names = (
        "conv1/kernel",
        "blocks/0/attn/qkv/kernel",
        "text/blocks/0/norm1/scale",
        "image_head/kernel",
        "logit_scale",
    )
    found = [bool(re.search("^(?!text/|image_head/|logit_)", name)) for name in names]
    assert found == [True, True, False, False, False]


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_digits_are_learned_from_their_names(command: Command, tmp_path: pathlib.Path):
    """And classified by the command, and found by words."""
    run = f"--workdir={tmp_path}/run"
    command("--config=configs/digits_clip.py:clip", run, "--config.epochs=25.0", "--config.eval.every_epochs=25.0")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["val/top1"] for line in lines if "val/top1" in line][-1] >= 0.95
    module = "vision_jax"
    command("features", run, "--split=val", f"--output={tmp_path}/features", module=module)
    photos = tmp_path / "photos"
    source = inputs.create_source(recipes.digits("lenet5"), train=False)
    for i in range(60):
        record = source[i]
        (photos / str(record["label"])).mkdir(parents=True, exist_ok=True)
        (photos / str(record["label"]) / f"{i}.jpg").write_bytes(record["image"])
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    (tmp_path / "classes.txt").write_text("\n".join(f"{i}\t{word}" for i, word in enumerate(words)))
    flags = f"--classes={tmp_path}/classes.txt", f"--labelled={photos}", f"--json={tmp_path}/found.json"
    command("zero-shot", run, *flags, module=module)
    assert json.loads((tmp_path / "found.json").read_text())["top1"] >= 0.95
    query = "--words=a photo of the number seven."
    text = command("search", run, f"--index={tmp_path}/features", query, "--topk=5", module=module)
    assert text.count("[7]") >= 4
