"""DINO as a whole against models.npz and schedules.npz: vision transformers, gradients, one update; see README.md."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references.common import Case, check_summaries, fill, near_largest, read_cases

import vision_jax
from vision_jax import build, optim, pretrained
from vision_jax import config as config_lib
from vision_jax.data.views import View
from vision_jax.models import apply_with_intermediates
from vision_jax.objectives import Setup
from vision_jax.objectives.dino import Dino, center_and_sharpen, dino_loss, move_center
from vision_jax.state import TrainState
from vision_jax.steps import make_train_step

MODELS = {name: case for name, case in read_cases("ssl", "models*.npz").items() if case.about["method"] == "dino"}
SCHEDULES = {name: case for name, case in read_cases("ssl", "schedules*.npz").items() if case.about["method"] == "dino"}
VALUES, GRADIENTS, SCHEDULE = 3e-5, 1e-4, 1e-6
ARCHITECTURE = "vit_small_patch16_224"


class Given(Dino):
    """DINO of crops that are given as they are."""

    def views(self, keys: jax.Array, rows: Any) -> Any:
        return dict(rows)


class Subject:
    """What a case is of: the objective, the variables of student and teacher, and the crops."""

    def __init__(self, case: Case):
        about = case.about
        self.case, self.config, self.head = case, about["config"], about["config"]["head"]
        sizes = {key: self.config[key] for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")}
        self.options = {**sizes, "num_classes": 0, "interpolate_positions": True}
        size, locals_ = self.config["img_size"], self.config["locals"]
        self.crops = {
            "image": np.stack([self.crop(i) for i in range(2)], 1),
            **({"view1": np.stack([self.crop(2 + i) for i in range(locals_)], 1)} if locals_ else {}),
        }
        views = (View(size=size, count=2), View("view1", size=self.config["local_size"], count=max(1, locals_)))
        self.objective = Given(
            setup=Setup(
                vision_jax.create_model(ARCHITECTURE, **self.options),
                (size, size, 3),
                *((0.5,) * 3, (0.5,) * 3),
                inputs=views[: 1 + bool(locals_)],
                total_steps=4,
            ),
            hidden=(self.head["hidden"],) * 2,
            bottleneck=self.head["bottleneck"],
            out=self.head["out"],
            head_norm=self.config["use_bn_in_head"],
            norm_last_layer=self.config["norm_last_layer"],
            student_temperature=about["temperatures"]["student"],
            teacher_temperature=about["temperatures"]["teacher"],
            center_momentum=about["center_momentum"],
            momentum=about["step"]["teacher_momentum"],
            momentum_end=about["step"]["teacher_momentum"],
        )

    def crop(self, number: int) -> np.ndarray:
        return self.case.seeded(f"crop{number}").transpose(0, 2, 3, 1)

    def variables(self, which: str) -> dict[str, Any]:
        """The variables of "student" or "teacher", from the official state dict."""
        about, prefix = self.case.about, {"student": "student.module.", "teacher": "teacher."}[which]
        state = {}
        for name, shape in about["state"][which].items():
            constant, variance = about["constants"].get(name), about["variances"].get(name.rpartition(".")[0], 1.0)
            value = fill(name, shape, variance) if constant is None else np.full(shape, constant, np.float32)
            state[name.removeprefix(prefix)] = value
        backbone = {key.removeprefix("backbone."): x for key, x in state.items() if key.startswith("backbone.")}
        made = pretrained.from_torch(ARCHITECTURE, backbone, **self.options)
        params: dict[str, Any] = {**made["params"], "projector": {"mlp": {}, "last_layer": {}}}
        stats: dict[str, Any] = {}
        for name, value in state.items():
            match name.split("."):
                case "head", "mlp", number, leaf if leaf.startswith("running"):
                    modules = stats.setdefault("projector", {}).setdefault("mlp", {})
                    modules.setdefault(number, {})[leaf.removeprefix("running_")] = jnp.asarray(value)
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
            f"{prefix}backbone.{name}": value
            for name, value in pretrained.to_torch(ARCHITECTURE, {"params": backbone}).items()
        }
        for number, leaves in head["mlp"].items():
            for leaf, value in leaves.items():
                name = f"{prefix}head.mlp.{number}." + ("bias" if leaf == "bias" else "weight")
                found[name] = value.T if leaf == "kernel" else value
        return found | {f"{prefix}head.last_layer.{leaf}": value for leaf, value in head["last_layer"].items()}


@functools.cache
def subject(name: str) -> Subject:
    return Subject(MODELS[name])


@pytest.mark.parametrize("name", MODELS)
def test_features(name: str):
    """Also of crops of another size, for which positions are interpolated."""
    it = subject(name)
    case, model = it.case, it.objective.setup.model
    student, teacher = it.variables("student"), it.variables("teacher")
    depth = it.config["depth"]

    @jax.jit
    def compute(crop: Any, local: Any) -> Any:
        features = model.apply(teacher, crop, train=False, method="features")
        out, _ = it.objective.apply_heads(teacher["params"], teacher["batch_stats"], features, train=False)
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

    found = compute(it.crop(0), it.crop(2 if it.config["locals"] else 0))
    for key, value in found.items():
        near_largest(value, case[key], VALUES)
    assert set(case.names()) == found.keys() | {"student_out", "teacher_out", "center", "center_after", "loss"}


@pytest.mark.parametrize("name", MODELS)
def test_a_step(name: str):
    """The loss, its gradients, and one update of student, teacher and center, by the configuration's optimizer."""
    it = subject(name)
    about, case, mine = it.case.about, it.case, it.objective
    step_of, out = about["step"], it.head["out"]
    student, teacher = it.variables("student"), it.variables("teacher")
    extra, progress = {"center": jnp.asarray(case["center"])}, mine.progress(jnp.int32(0))
    rows = len(it.crops["image"])

    config = config_lib.default_config()
    config.optimizer.update({"name": "sgd", "momentum": 0.9, "learning_rate": step_of["lr"]})
    config.optimizer.update({"weight_decay": step_of["weight_decay"], "decay_rule": "all"})
    config.optimizer.no_decay = ("bias$", "scale$")
    config.optimizer.clip_parameter_norm = step_of["clip_per_tensor"]
    frozen = max(0, step_of["freeze_last_layer"] - step_of["epoch"])
    config.optimizer.frozen_until = (("^projector/last_layer/", float(frozen)),)
    config.schedule.update({"name": "constant", "warmup_epochs": 0.0})
    config.update({"batch_size": rows, "epochs": 4.0})
    plan = config_lib.make_plan(config, rows)
    optimizer = build.make_optimizer(config, plan, student["params"])
    state = TrainState(
        jnp.int32(0), student["params"], student["batch_stats"], optimizer.init(student["params"]), teacher, extra
    )

    @jax.jit
    def compute(state: TrainState, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            variables = {"params": params, "batch_stats": student["batch_stats"]}
            targets = mine.targets(variables, teacher, extra, {}, batch, jax.random.key(0), progress)
            result = mine.loss(variables, batch, targets, jax.random.key(0), progress, train=True)
            return result.loss / result.weight, targets.outputs

        after, metrics = make_train_step(mine, optimizer, build.make_schedule(config, plan), seed=0)(state, batch)
        return jax.value_and_grad(loss, has_aux=True)(state.params), after, metrics

    batch = {**it.crops, "mask": np.ones(rows, np.float32)}
    ((loss, outputs), grads), after, metrics = compute(state, batch)
    near_largest(loss, case["loss"], VALUES)
    near_largest(metrics["loss"], case["loss"], VALUES)
    near_largest(outputs, case["teacher_out"].sum(0), VALUES)
    near_largest(after.extra["center"], case["center_after"], VALUES)
    constants = {key for key in about["constants"] if key.startswith("student.")}
    check_summaries(it.official(grads, "student.module."), about["gradients"], GRADIENTS)
    students = it.official(after.params, "student.module.")
    check_summaries(students, about["student_after"], VALUES, constants)
    teachers = it.official(after.ema["params"], "teacher.")
    constants = {key for key in about["constants"] if key.startswith("teacher.")}
    check_summaries(teachers, about["teacher_after"], VALUES, constants)

    # The formulas by themselves, on the official outputs.
    crops = 2 + it.config["locals"]
    found = case["student_out"].reshape(crops, rows, out).swapaxes(0, 1)
    taught = case["teacher_out"].reshape(2, rows, out).swapaxes(0, 1)
    targets = center_and_sharpen(taught, case["center"], mine.teacher_temperature)
    near_largest(dino_loss(found, targets, mine.student_temperature).mean(), case["loss"], VALUES)
    near_largest(move_center(case["center"], taught.mean((0, 1)), 0.9), case["center_after"], VALUES)
    same = np.array_equal(
        after.params["projector"]["last_layer"]["weight_v"], state.params["projector"]["last_layer"]["weight_v"]
    )
    assert same == (frozen > 0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name: str):
    case = SCHEDULES[name]
    about, steps = case.about, case["steps"]
    per_epoch, epochs = about.get("iterations_per_epoch", 1), about["epochs"]
    setup = Setup(
        vision_jax.create_model("lenet5", num_classes=0),
        *((28, 28, 1), (0.5,), (0.5,)),
        steps_per_epoch=per_epoch,
        total_steps=epochs * per_epoch,
    )
    config = config_lib.default_config()
    config.update({"batch_size": 1, "epochs": float(epochs)})
    config.optimizer.learning_rate = config.optimizer.weight_decay = about.get("base", 1.0)
    config.schedule.update({"warmup_epochs": float(about.get("warmup_epochs", 0)), "warmup_reaches_peak": True})
    config.schedule.end_factor = about.get("final", 0.0) / about.get("base", 1.0)
    plan = config_lib.make_plan(config, per_epoch)
    if about["kind"] == "lr":
        found = build.make_schedule(config, plan)(steps)
    elif about["kind"] == "weight_decay":
        found = optim.interpolate_cosine(about["base"], about["final"], plan.total_steps)(steps)
    elif about["kind"] == "teacher_momentum":
        mine = Dino(setup=setup, momentum=about["base"], momentum_end=about["final"])
        found = [mine.ema_decay(mine.progress(jnp.int32(step + 1))) for step in steps]
    else:
        mine = Dino(
            setup=dataclasses.replace(setup, steps_per_epoch=7),
            teacher_temperature=about["final"],
            teacher_temperature_start=about["warmup"],
            teacher_temperature_epochs=about["warmup_epochs"],
        )
        found = [mine.teacher_temperature_at(mine.progress(jnp.int32(7 * epoch + 6))) for epoch in steps]
    near_largest(np.asarray(found, np.float64), case["values"], SCHEDULE)
