"""Whole models, from their official weights: masked autoencoders, and DINO and MoCo v3 with a step of training."""

import dataclasses
import functools
import operator
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from references.common import Case, check_summaries, near_largest
from test_recipes import recipe

import vision_jax
from vision_jax import build, optim, pretrained
from vision_jax import config as config_lib
from vision_jax.assembly.states import abstract_variables, heads_alone
from vision_jax.data.views import View
from vision_jax.models import apply_with_intermediates
from vision_jax.objectives import OBJECTIVES, Setup
from vision_jax.objectives.dino import center_and_sharpen, dino_loss, move_center
from vision_jax.state import TrainState
from vision_jax.steps import make_train_step

VALUES, GRADIENTS, POSITIONS = 3e-5, 1e-4, 1e-6
KEY = jax.random.key(0)
BASE = "vit_base_patch16_224"  # whose sizes are those of a case
STATISTICS = {"running_mean": "mean", "running_var": "var"}


def sizes(config: dict[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")}


def image(case: Case, name: str) -> np.ndarray:
    return case.seeded(name).transpose(0, 2, 3, 1)


def setup(model: nn.Module, shape: tuple[int, int, int], **others: Any) -> Setup:
    return Setup(model, shape, (0.5,) * 3, (0.5,) * 3, **others)


def of_given_crops(name: str, **options: Any) -> Any:
    """An objective whose rows of a batch are its crops as they are, in floating point."""
    return type("Given", (OBJECTIVES[name],), {"views": lambda self, keys, rows: dict(rows)})(**options)


def compare(found: dict[str, Any], case: Case, compared: tuple[str, ...] = ()) -> None:
    """Compares all arrays of a case, but for those that have been."""
    assert found.keys() | set(compared) == set(case.names())
    for name, value in found.items():
        near_largest(value, case[name], VALUES)


def recording(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer whose state is (its own, the gradients)."""

    def update(grads: Any, state: Any, params: Any = None, **others: Any) -> Any:
        updates, inner = optimizer.update(grads, state[0], params, **others)
        return updates, (inner, grads)

    return optax.GradientTransformationExtraArgs(lambda params: (optimizer.init(params), params), update)


# ---------------------------------------------------------------------------------------------- masked autoencoders
def autoencoder(config: dict[str, Any], **options: Any) -> Any:
    model = vision_jax.create_model(BASE, num_classes=0, positions="mae", **sizes(config))
    for name, official in (("width", "embed_dim"), ("depth", "depth"), ("heads", "num_heads")):
        options[f"decoder_{name}"] = config[f"decoder_{official}"]
    shape = (config["img_size"], config["img_size"], 3)
    return OBJECTIVES["mae"](setup=setup(model, shape), mask_ratio=config["mask_ratio"], **options)


def check_positions(case: Case) -> None:
    """A fresh model of the recipe has the tables that are fixed in pre-training."""
    config, of_mae = case.about["config"], case.about["method"] == "mae"
    positions = recipe("mae:vit_b" if of_mae else "mocov3:vit_s").model.positions
    model = vision_jax.create_model(BASE, **{**sizes(config), "depth": 1, "num_classes": 0, "positions": positions})
    images = jnp.zeros((1, config["img_size"], config["img_size"], 3))

    @jax.jit
    def tables() -> dict[str, Any]:
        made = {"pos_embed": model.init(KEY, images, train=False)["params"]["pos_embed"]}
        if of_mae:
            decoder = autoencoder({**config, "depth": 1, "decoder_depth": 1}).init(KEY, {})["params"]["decoder"]
            made["decoder_pos_embed"] = decoder["pos_embed"]
        return made

    found = tables()
    assert found.keys() == set(case.names())
    for name, table in found.items():
        near_largest(table, case[name], POSITIONS)


def check_classifier(case: Case) -> None:
    """The network that is fine-tuned or probed after pre-training."""
    config = case.about["config"]
    options = sizes(config) | {"num_classes": config["num_classes"]}
    options["global_pool"] = "avg" if config["global_pool"] else "token"
    model = vision_jax.create_model(BASE, **options)
    variables = pretrained.from_torch(BASE, case.state(), **options)

    @jax.jit
    def run(variables: Any, images: Any) -> dict[str, Any]:
        features = model.apply(variables, images, train=False, method="features")
        return {"features": features, "logits": model.apply(variables, images, train=False)}

    compare(run(variables, image(case, "image")), case)


def check_autoencoder(case: Case) -> None:
    """Both losses, what leads to them, and their gradients, from a file of the official weights."""
    about, config = case.about, case.about["config"]
    mine = {name: autoencoder(config, normalize_pixels=name == "loss_norm_pix") for name in ("loss", "loss_norm_pix")}
    one = mine["loss"]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "mae.npz"
        np.savez(path, **case.state())
        backbone = pretrained.load(BASE, path, num_classes=0, **sizes(config))
        decoder = pretrained.load_heads(path, heads_alone(one), one.official).heads
    params = {**backbone["params"], **decoder["params"]}
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, abstract_variables(one)["params"])
    images, order = jnp.asarray(image(case, "image")), jnp.argsort(case["noise"], axis=1)
    views = {"image": images, "order": order, "mask": jnp.ones(len(images))}

    @jax.jit
    def run(params: Any) -> Any:
        variables = {"params": params, "batch_stats": {}}
        model, kept = one.setup.model, order[:, : one.kept]
        latent = jnp.concatenate(model.apply(variables, images, train=False, kept=kept, method="encode"), 1)

        def reconstruct(params: Any) -> Any:
            return one.reconstruct({"params": params}, images, order, KEY, train=True)[:2]

        (predictions, removed), pull = jax.vjp(reconstruct, params)
        values, slopes = [], []
        for it in mine.values():  # each makes its loss of the same predictions
            value, slope = jax.value_and_grad(functools.partial(loss_of, it, views, removed))(predictions)
            values.append(value)
            slopes.append(slope)
        grads = jax.vmap(lambda slope: pull((slope, jnp.zeros_like(removed)))[0])(jnp.stack(slopes))
        found = {"pred": predictions, "mask": removed, "ids_restore": jnp.argsort(order, axis=1), "latent": latent}
        return {**found, **dict(zip(mine, values, strict=True))}, grads

    found, grads = run(params)
    for name in ("mask", "ids_restore"):
        np.testing.assert_array_equal(found[name], case[name])
    compare(found, case, ("noise",))
    for number, name in enumerate(("gradients", "gradients_norm_pix")):
        official = official_autoencoder(jax.tree.map(operator.itemgetter(number), grads), one)
        trained = {key: value for key, value in official.items() if key not in about["frozen"]}
        assert official.keys() == trained.keys() | set(about["frozen"])
        check_summaries(trained, about[name], GRADIENTS)


def loss_of(mine: Any, views: Any, removed: jax.Array, predictions: jax.Array) -> jax.Array:
    """The loss of an objective that has reconstructed this."""
    said = {"reconstruct": lambda self, *args, **options: (predictions, removed, {})}
    fields = {field.name: getattr(mine, field.name) for field in dataclasses.fields(mine)}
    given = type("Given", (type(mine),), said)(**fields)
    out = given.loss({"params": {}}, views, (), KEY, mine.progress(0), train=True)
    return out.loss / out.weight


def official_autoencoder(params: Any, mine: Any) -> dict[str, np.ndarray]:
    """Parameters, or their gradients, under the official names."""
    rest = {key: value for key, value in params.items() if key != "decoder"}
    found = pretrained.to_torch(BASE, {"params": rest})
    for tensor in pretrained.tensors.tensors_of({"params": {"decoder": params["decoder"]}}):
        leaf: Any = {"params": params}
        for part in tensor.path:
            leaf = leaf[part]
        found[mine.official.name_of(tensor.name)] = tensor.to_torch(leaf)
    return found


# ------------------------------------------------------------------------------------------------------------- DINO
class Distilled:
    """What a case of DINO is of: the objective, the variables of student and teacher, and the crops."""

    def __init__(self, case: Case):
        about = case.about
        self.case, self.config, self.head = case, about["config"], about["config"]["head"]
        self.options = {**sizes(self.config), "num_classes": 0, "interpolate_positions": True}
        size, locals_ = self.config["img_size"], self.config["locals"]
        self.crops = [image(case, f"crop{number}") for number in range(2 + locals_)]
        self.batch = {"image": np.stack(self.crops[:2], 1)}
        if locals_:
            self.batch["view1"] = np.stack(self.crops[2:], 1)
        views = (View(size=size, count=2), View("view1", size=self.config["local_size"], count=max(1, locals_)))
        model = vision_jax.create_model(BASE, **self.options)
        self.objective = of_given_crops(
            "dino",
            setup=setup(model, (size, size, 3), inputs=views[: len(self.batch)], total_steps=4),
            hidden=(self.head["hidden"],) * 2,
            bottleneck=self.head["bottleneck"],
            out=self.head["out"],
            head_norm=self.config["use_bn_in_head"],
            norm_last_layer=self.config["norm_last_layer"],
            student_temperature=about["temperatures"]["student"],
            teacher_temperature=about["temperatures"]["teacher"],
            teacher_temperature_start=about["temperatures"]["teacher"],
            center_momentum=about["center_momentum"],
            momentum=about["step"]["teacher_momentum"],
            momentum_end=about["step"]["teacher_momentum"],
        )

    def variables(self, which: str, prefix: str) -> dict[str, Any]:
        """The variables of "student" or "teacher", from the official state dict."""
        state = {name.removeprefix(prefix): value for name, value in self.case.state(which).items()}
        backbone = {key.removeprefix("backbone."): x for key, x in state.items() if key.startswith("backbone.")}
        made = pretrained.from_torch(BASE, backbone, **self.options)
        params: dict[str, Any] = {**made["params"], "projector": {"mlp": {}, "last_layer": {}}}
        stats: dict[str, Any] = {}
        for name, value in state.items():
            match name.split("."):
                case "head", "mlp", number, leaf if leaf in STATISTICS:
                    modules = stats.setdefault("projector", {}).setdefault("mlp", {})
                    modules.setdefault(number, {})[STATISTICS[leaf]] = jnp.asarray(value)
                case "head", "mlp", number, leaf:
                    leaf = leaf if leaf == "bias" else "kernel" if value.ndim == 2 else "scale"
                    value = value.T if leaf == "kernel" else value
                    params["projector"]["mlp"].setdefault(number, {})[leaf] = jnp.asarray(value)
                case "head", "last_layer", leaf if leaf == "weight_v" or not self.config["norm_last_layer"]:
                    params["projector"]["last_layer"][leaf] = jnp.asarray(value)
        return {"params": params, "batch_stats": stats}

    def official(self, params: Any, prefix: str) -> dict[str, np.ndarray]:
        """The official state dict of parameters, or of their gradients."""
        head = params["projector"]
        backbone = {key: x for key, x in params.items() if key != "projector"}
        found = {
            f"{prefix}backbone.{name}": value for name, value in pretrained.to_torch(BASE, {"params": backbone}).items()
        }
        for number, leaves in head["mlp"].items():
            for leaf, value in leaves.items():
                name = f"{prefix}head.mlp.{number}." + ("bias" if leaf == "bias" else "weight")
                found[name] = value.T if leaf == "kernel" else value
        return found | {f"{prefix}head.last_layer.{leaf}": value for leaf, value in head["last_layer"].items()}

    def features(self, student: Any, teacher: Any, crop: Any, local: Any) -> dict[str, Any]:
        """What the networks make of a crop in evaluation, and of one of another size: positions are interpolated."""
        model, depth = self.objective.setup.model, self.config["depth"]
        features = model.apply(teacher, crop, train=False, method="features")
        out, _ = self.objective.apply_heads(teacher["params"], teacher["batch_stats"], features, train=False)
        names = [f"blocks/{depth - 2}", f"blocks/{depth - 1}", f"blocks/{depth - 1}/attn"]
        _, found = apply_with_intermediates(model, teacher, crop, names)
        norm = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False)
        tokens = [norm.apply({"params": teacher["params"]["norm"]}, found[name][:, 0]) for name in names[:2]]
        return {
            "teacher_eval_features": features,
            "teacher_eval_out": out,
            "intermediate_cls": jnp.concatenate(tokens, -1),
            "last_attention_image0": found[names[2]][0],
            "student_eval_local_features": model.apply(student, local, train=False, method="features"),
        }

    def training(self, params: Any) -> tuple[Any, Any, int]:
        """The optimizer and the learning rate of the step of the case; and for how many epochs the last layer waits.

        What decays, and that the last layer is frozen at first, are the recipe's.
        """
        step, rows = self.case.about["step"], len(self.crops[0])
        assert step["optimizer"].startswith("SGD, momentum 0.9")
        config = recipe("dino:vit_s16")
        config.optimizer.update({"name": "sgd", "momentum": 0.9, "learning_rate": step["lr"]})
        config.optimizer.update({"learning_rate_batch_size": None, "weight_decay_end": None})
        config.optimizer.weight_decay = step["weight_decay"]
        config.optimizer.clip_parameter_norm = step["clip_per_tensor"] or None
        frozen = max(0, step["freeze_last_layer"] - step["epoch"])
        ((pattern, _),) = config.optimizer.frozen_until
        config.optimizer.frozen_until = ((pattern, float(frozen)),)
        config.schedule.update({"name": "constant", "warmup_epochs": 0.0, "end_factor": 0.0})
        config.schedule.warmup_reaches_peak = False
        config.update({"batch_size": rows, "epochs": 4.0})
        plan = config_lib.make_plan(config, rows)
        return build.make_optimizer(config, plan, params), build.make_schedule(config, plan), frozen


def check_dino(case: Case) -> None:
    """Features; the loss, its gradients, and one update of student, teacher and center."""
    about, it = case.about, Distilled(case)
    mine, rows, locals_ = it.objective, len(it.crops[0]), it.config["locals"]
    student, teacher = it.variables("student", "student.module."), it.variables("teacher", "teacher.")
    # A checkpoint with these weights gives the heads that the numbers below are of.
    checkpoint = {**case.state("student"), **case.state("teacher"), "dino_loss.center": case["center"].reshape(1, -1)}
    heads = [
        {kind: {"projector": part["projector"]} if "projector" in part else {} for kind, part in variables.items()}
        for variables in (student, teacher)
    ]
    read = pretrained.load_heads(pretrained.files.from_content(checkpoint), heads[0], mine.official, "dino")
    jax.tree.map(np.testing.assert_array_equal, [read.heads, read.teacher], heads)
    extra = {"center": jnp.asarray(case["center"])}
    optimizer, learning_rate, frozen = it.training(student["params"])
    optimizer = recording(optimizer)
    first = optimizer.init(student["params"])
    state = TrainState(jnp.int32(0), student["params"], student["batch_stats"], first, teacher, extra)
    step = make_train_step(mine, optimizer, learning_rate, seed=0)

    @jax.jit
    def run(state: TrainState, batch: Any) -> Any:
        after, metrics = step(state, batch)
        return it.features(student, teacher, it.crops[0], it.crops[2 if locals_ else 0]), after, metrics

    found, after, metrics = run(state, {**it.batch, "mask": np.ones(rows, np.float32)})
    _, grads = after.opt_state
    compare(
        {**found, "loss": metrics["loss"], "center_after": after.extra["center"]},
        case,
        ("student_out", "teacher_out", "center"),
    )
    constants = set(about["constants"])
    check_summaries(it.official(grads, "student.module."), about["gradients"], GRADIENTS)
    students, teachers = it.official(after.params, "student.module."), it.official(after.ema["params"], "teacher.")
    for official, expected in ((students, about["student_after"]), (teachers, about["teacher_after"])):
        check_summaries(official, expected, VALUES, constants)
    last = "projector", "last_layer", "weight_v"
    before_, after_ = (optax.tree_utils.tree_get(tree, last[-1]) for tree in (state.params, after.params))
    assert np.array_equal(before_, after_) == (frozen > 0)

    # The formulas by themselves, on the official outputs of all crops.
    said = case["student_out"].reshape(2 + locals_, rows, -1).swapaxes(0, 1)
    taught = case["teacher_out"].reshape(2, rows, -1).swapaxes(0, 1)
    targets = center_and_sharpen(taught, case["center"], mine.teacher_temperature)
    near_largest(dino_loss(said, targets, mine.student_temperature).mean(), case["loss"], VALUES)
    center = move_center(case["center"], taught.mean((0, 1)), mine.center_momentum)
    near_largest(center, case["center_after"], VALUES)


# ---------------------------------------------------------------------------------------------------------- MoCo v3
class Stem(nn.Module):
    """The backbone that has the place of a ResNet: a dense layer and a ReLU, on images of one pixel."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        return nn.relu(nn.Dense(self.width, name="stem")(images.reshape(len(images), -1)))

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        return self.features(images, train=train)


class Contrasted:
    """What a case of MoCo v3 is of: the objective, and the variables of the encoder and of the momentum encoder.

    Both have a predictor; nothing uses that of the latter.
    """

    def __init__(self, case: Case):
        about, config = case.about, case.about["config"]
        self.case, self.is_vit = case, "patch_size" in config
        self.head = "head" if self.is_vit else "fc"
        if self.is_vit:
            self.options = sizes(config) | {"num_classes": 0}
            model: Any = vision_jax.create_model(BASE, **self.options)
            shape = (config["img_size"], config["img_size"], 3)
            self.crops = [image(case, name) for name in ("x1", "x2")]
        else:
            model, shape = Stem(config["features"]), (1, 1, config["inputs"])
            self.crops = [case.seeded(name).reshape(-1, *shape) for name in ("x1", "x2")]
        self.objective = of_given_crops(
            "mocov3",
            setup=setup(model, shape, inputs=(View(size=shape[0], count=2),)),
            hidden=(config["mlp_dim"],) * (2 if self.is_vit else 1),
            predictor_hidden=config["mlp_dim"],
            out=config["dim"],
            predictor_norm=self.is_vit,
            temperature=about["temperature"],
            momentum=about["momentum"],
            momentum_end=about["momentum"],
        )

    def place(self, name: str) -> tuple[str, str, str]:
        """Returns the module, layer and leaf of an official name of a head."""
        *_, module, layer, leaf = name.split(".")
        if leaf == "weight":
            leaf = "kernel" if len(self.case.about["state"][name]) == 2 else "scale"
        return "predictor" if module == "predictor" else "projector", layer, STATISTICS.get(leaf, leaf)

    def is_of_head(self, name: str) -> bool:
        return name.startswith("predictor.") or name.split(".")[1] == self.head

    def variables(self, encoder: str) -> dict[str, Any]:
        state, prefix = self.case.state(), f"{encoder}."
        backbone = {
            name.removeprefix(prefix): value
            for name, value in state.items()
            if name.startswith(prefix) and not self.is_of_head(name)
        }
        if self.is_vit:
            params = dict(pretrained.from_torch(BASE, backbone, **self.options)["params"])
        else:
            params = {"stem": {"kernel": backbone["stem.weight"].T, "bias": backbone["stem.bias"]}}
        made: dict[str, Any] = {"params": params, "batch_stats": {}}
        for name, value in state.items():
            if self.is_of_head(name) and name.startswith((prefix, "predictor.")):
                module, layer, leaf = self.place(name)
                tree = made["batch_stats" if leaf in STATISTICS.values() else "params"].setdefault(module, {})
                tree.setdefault(layer, {})[leaf] = value.T if leaf == "kernel" else value
        return jax.tree.map(jnp.asarray, made)

    def official(self, params: Any, encoder: str) -> dict[str, np.ndarray]:
        """Returns parameters or their gradients by the official names, those of the predictor among the encoder's."""
        heads = ("projector", "predictor")
        backbone = {key: value for key, value in params.items() if key not in heads}
        if self.is_vit:
            found = pretrained.to_torch(BASE, {"params": backbone})
        else:
            found = {"stem.weight": backbone["stem"]["kernel"].T, "stem.bias": backbone["stem"]["bias"]}
        found = {f"{encoder}.{name}": value for name, value in found.items()}
        for name in self.case.about["state"]:
            if self.is_of_head(name) and name.startswith((f"{encoder}.", "predictor.")):
                module, layer, leaf = self.place(name)
                if leaf not in STATISTICS.values():
                    value = params[module][layer][leaf]
                    found[name] = value.T if leaf == "kernel" else value
        return found


def check_moco_v3(case: Case) -> None:
    """Embeddings, and the loss, gradients, momentum encoder and running statistics of a step."""
    about, it = case.about, Contrasted(case)
    mine = it.objective
    online, teacher = it.variables("base_encoder"), it.variables("momentum_encoder")
    frozen = recipe("mocov3:vit_s").optimizer.frozen if it.is_vit else ()
    if not about["config"].get("stop_grad_conv1", True):
        frozen = tuple(pattern for pattern in frozen if "patch_embed" not in pattern)
    rules = optim.GroupRules(frozen=tuple(frozen))
    optimizer = recording(optax.with_extra_args_support(optax.set_to_zero()))
    step = jax.jit(make_train_step(mine, optimizer, lambda step: 0.0, seed=0, rules=rules))
    batch = {"image": jnp.stack(it.crops, 1), "mask": jnp.ones(len(it.crops[0]))}

    @jax.jit
    def embed(online: Any, teacher: Any, crop: Any) -> Any:
        return {
            "q1_eval": mine.embed(online, crop, train=False, key=KEY)[0],
            "k1_eval": mine.embed(teacher, crop, train=False, key=KEY, heads=1)[0],
            "q1": mine.embed(online, crop, train=True, key=KEY)[0],
        }

    found = embed(online, teacher, it.crops[0])
    trained, untrained = rules.split(online["params"])
    state = TrainState(jnp.int32(0), online["params"], online["batch_stats"], optimizer.init(trained), teacher, {})
    # Such a step moves the momentum encoder as the official one does at its beginning.
    moved = step(state, batch, {})[0].ema["params"]
    after, metrics = step(state.replace(ema={**teacher, "params": moved}), batch, {})
    found["loss"] = metrics["loss"]
    for encoder, stats in (("base_encoder", after.batch_stats), ("momentum_encoder", after.ema["batch_stats"])):
        for official in about["state"]:
            of = official.startswith(f"{encoder}.") or (encoder == "base_encoder" and official.startswith("predictor."))
            if of and official.rpartition(".")[2] in STATISTICS:
                module, layer, leaf = it.place(official)
                found[f"running/{official}"] = stats[module][layer][leaf]
    compare(found, case)
    keys = {name: x for name, x in it.official(moved, "momentum_encoder").items() if not name.startswith("predictor.")}
    check_summaries(keys, about["momentum_after"], VALUES)
    grads = it.official(optim.merge(after.opt_state[1], untrained), "base_encoder")
    of_trained = {name: x for name, x in grads.items() if name not in about.get("frozen", ())}
    check_summaries(of_trained, about["gradients"], GRADIENTS)


METHODS: dict[str, Callable[[Case], None]] = {"dino": check_dino, "mae": check_autoencoder, "moco_v3": check_moco_v3}


def check(case: Case) -> None:
    method, config = case.about["method"], case.about["config"]
    assert method in METHODS, f"There is no reader for models of {method}."
    if "pos_embed" in case.names():
        check_positions(case)
    elif "global_pool" in config:
        check_classifier(case)
    else:
        METHODS[method](case)
