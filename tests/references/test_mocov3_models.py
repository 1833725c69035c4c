"""MoCo v3 as a whole against models.npz: embeddings, loss, gradients, momentum encoder, running statistics."""

import functools
import json
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from references.common import Case, check_summaries, files, near_largest, read_cases
from test_recipes import recipe

import vision_jax
from vision_jax import build, optim, pretrained
from vision_jax import config as config_lib
from vision_jax.assembly.states import abstract_variables
from vision_jax.data.views import View
from vision_jax.objectives import Setup
from vision_jax.objectives.mocov3 import MoCoV3
from vision_jax.state import TrainState
from vision_jax.steps import make_train_step

MODELS = {name: case for name, case in read_cases("ssl", "models*.npz").items() if case.about["method"] == "moco_v3"}
GROUPS = {
    f"{path.name}:{name}": about
    for path in files("ssl", "parameter_groups*.json")
    for name, about in json.loads(path.read_text()).items()
    if about["method"].startswith("moco v3")
}
VALUES, GRADIENTS = 3e-5, 1e-4
QUICK = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # seconds less
ARCHITECTURE = "vit_small_patch16_224"
LEAVES = {"running_mean": "mean", "running_var": "var"}


class Given(MoCoV3):
    """MoCo v3 of crops that are given as they are."""

    def views(self, keys: jax.Array, rows: Any) -> Any:
        return dict(rows)


class Stem(nn.Module):
    """The backbone that has the place of a ResNet: a dense layer and a ReLU, on images of one pixel."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        return nn.relu(nn.Dense(self.width, name="stem")(images.reshape(len(images), -1)))

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        return self.features(images, train=train)


class Subject:
    """What a case is of: the objective, and the variables of the encoder and of the momentum encoder.

    Both have a predictor; nothing uses that of the latter.
    """

    def __init__(self, case: Case):
        about, config = case.about, case.about["config"]
        self.case, self.is_vit = case, "depth" in config
        self.head = "head" if self.is_vit else "fc"
        if self.is_vit:
            names = ("img_size", "patch_size", "embed_dim", "depth", "num_heads")
            self.options = {name: config[name] for name in names} | {"num_classes": 0}
            model: Any = vision_jax.create_model(ARCHITECTURE, **self.options)
            shape = (config["img_size"], config["img_size"], 3)
            self.crops = [case.seeded(name).transpose(0, 2, 3, 1) for name in ("x1", "x2")]
        else:
            model, shape = Stem(config["features"]), (1, 1, config["inputs"])
            self.crops = [case.seeded(name).reshape(-1, *shape) for name in ("x1", "x2")]
        self.objective = Given(
            setup=Setup(model, shape, (0.5,) * 3, (0.5,) * 3, inputs=(View(size=shape[0], count=2),)),
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
        return "predictor" if module == "predictor" else "projector", layer, LEAVES.get(leaf, leaf)

    def is_of_head(self, name: str) -> bool:
        return name.startswith("predictor.") or name.split(".")[1] == self.head

    def variables(self, encoder: str) -> dict[str, Any]:
        state = self.case.state()
        prefix = f"{encoder}."
        backbone = {
            name.removeprefix(prefix): value
            for name, value in state.items()
            if name.startswith(prefix) and not self.is_of_head(name)
        }
        if self.is_vit:
            params = dict(pretrained.from_torch(ARCHITECTURE, backbone, **self.options)["params"])
        else:
            params = {"stem": {"kernel": backbone["stem.weight"].T, "bias": backbone["stem.bias"]}}
        made: dict[str, Any] = {"params": params, "batch_stats": {}}
        for name, value in state.items():
            if self.is_of_head(name) and name.startswith((prefix, "predictor.")):
                module, layer, leaf = self.place(name)
                tree = made["batch_stats" if leaf in LEAVES.values() else "params"].setdefault(module, {})
                tree.setdefault(layer, {})[leaf] = value.T if leaf == "kernel" else value
        return jax.tree.map(jnp.asarray, made)

    def official(self, params: Any, encoder: str) -> dict[str, np.ndarray]:
        """Returns parameters or their gradients by the official names, those of the predictor among the encoder's."""
        heads = ("projector", "predictor")
        backbone = {key: value for key, value in params.items() if key not in heads}
        if self.is_vit:
            found = pretrained.to_torch(ARCHITECTURE, {"params": backbone})
        else:
            found = {"stem.weight": backbone["stem"]["kernel"].T, "stem.bias": backbone["stem"]["bias"]}
        found = {f"{encoder}.{name}": value for name, value in found.items()}
        for name in self.case.about["state"]:
            if self.is_of_head(name) and name.startswith((f"{encoder}.", "predictor.")):
                module, layer, leaf = self.place(name)
                if leaf not in LEAVES.values():
                    value = params[module][layer][leaf]
                    found[name] = value.T if leaf == "kernel" else value
        return found


def check_positions(case: Case) -> None:
    """A fresh model of the recipe has the table that stays fixed."""
    names = ("img_size", "patch_size", "embed_dim", "depth", "num_heads")
    options = {name: case.about["config"][name] for name in names}
    model = vision_jax.create_model(ARCHITECTURE, positions=recipe("mocov3:vit_s").model.positions, **options)
    images = jnp.zeros((1, options["img_size"], options["img_size"], 3))
    params = model.init(jax.random.key(0), images, train=False)["params"]
    near_largest(params["pos_embed"], case["pos_embed"], 1e-6)
    assert case.names() == ["pos_embed"]


@pytest.mark.parametrize("name", GROUPS)
def test_parameter_groups(name: str):
    """Those of the recipe's rules: what is trained, and that all of it decays; in the blocks that the case has."""
    about = GROUPS[name]
    config = recipe("mocov3:vit_s")
    plan = config_lib.make_plan(config, 10**6)
    rows = build.make_rules(config, plan).table(abstract_variables(build.make_objective(config, 1000, plan))["params"])

    def official(path: str) -> str:
        *modules, leaf = path.split("/")
        leaf = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
        if modules and modules[0] == "projector":
            modules[0] = "head"
        return ".".join(([] if modules and modules[0] == "predictor" else ["base_encoder"]) + [*modules, leaf])

    found = {official(row.path): [row.decays, row.multiplier] for row in rows if not row.frozen}
    blocks = {key.split(".")[2] for key in about["groups"] if ".blocks." in key}
    assert {key: x for key, x in found.items() if ".blocks." not in key or key.split(".")[2] in blocks} == about[
        "groups"
    ]
    frozen = {official(row.path) for row in rows if row.frozen}
    assert frozen == {key for key in about["frozen"] if not key.startswith("momentum_encoder.")}


@pytest.mark.parametrize("name", MODELS)
def test_model(name: str):
    case = MODELS[name]
    if case.name.endswith("_positions"):
        check_positions(case)
        return
    about, it = case.about, Subject(case)
    mine, key = it.objective, jax.random.key(0)
    online, teacher = it.variables("base_encoder"), it.variables("momentum_encoder")
    rules = optim.GroupRules(frozen=("^pos_embed$", "^patch_embed/") if it.is_vit else ())
    # It leaves parameters alone, and its state is the gradients.
    record = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, state, params=None: (jax.tree.map(jnp.zeros_like, grads), grads),
    )
    optimizer = optax.with_extra_args_support(record)
    step = QUICK(make_train_step(mine, optimizer, lambda step: 0.0, seed=0, rules=rules))
    batch = {"image": jnp.stack(it.crops, 1), "mask": jnp.ones(len(it.crops[0]))}

    @QUICK
    def embed(online: Any, teacher: Any, crop: Any) -> Any:
        return {
            "q1_eval": mine.embed(online, crop, train=False, key=key)[0],
            "k1_eval": mine.embed(teacher, crop, train=False, key=key, heads=1)[0],
            "q1": mine.embed(online, crop, train=True, key=key)[0],
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
            if of and official.rpartition(".")[2] in LEAVES:
                module, layer, leaf = it.place(official)
                found[f"running/{official}"] = stats[module][layer][leaf]
    assert found.keys() == set(case.names())
    for key_, result in found.items():
        near_largest(result, case[key_], VALUES)
    keys = {name: x for name, x in it.official(moved, "momentum_encoder").items() if not name.startswith("predictor.")}
    check_summaries(keys, about["momentum_after"], VALUES)
    grads = it.official(optim.merge(after.opt_state, untrained), "base_encoder")
    of_trained = {name: x for name, x in grads.items() if name not in about.get("frozen", ())}
    check_summaries(of_trained, about["gradients"], GRADIENTS)
