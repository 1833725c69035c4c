"""What decays, at what rate each parameter learns, and what is never trained: by the rules of the recipes."""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict
from references.selfsupervised.models import autoencoder
from test_recipes import recipe

from vision_jax import build, pretrained
from vision_jax import config as config_lib
from vision_jax.assembly.states import abstract_variables

# By the official name of each trained parameter, whether it decays, its factor, and its layer where there are any; and
# what is not trained.
Groups = tuple[dict[str, list[Any]], set[str]]


def groups_of(config: ConfigDict, params: Any, official: Callable[[str], str]) -> Groups:
    """Returns the groups that the rules of a recipe make; `official` is a name's, given that of torch's counterpart."""
    rules = build.make_rules(config, config_lib.make_plan(config, 1_281_167))
    found, frozen = {}, set()
    tensors = pretrained.tensors.tensors_of({"params": params})
    for row, tensor in zip(rules.table(params), tensors, strict=True):
        if row.frozen:
            frozen.add(official(tensor.name))
        else:
            layer = [] if row.layer is None else [row.layer]
            found[official(tensor.name)] = [row.decays, row.multiplier, *layer]
    return found, frozen


def objective_of(config: ConfigDict) -> Any:
    return build.make_objective(config, 1000, config_lib.make_plan(config, 1_281_167))


def mae_fine_tuning(about: dict[str, Any]) -> Groups:
    config = recipe("finetune_mae:vit_b" if "base" in about["arch"] else "finetune_mae:vit_l")
    config.model.name = f"{about['arch']}_224"
    config.model.global_pool = "avg" if about["global_pool"] else "token"
    config.optimizer.layer_decay = about["layer_decay"]
    params = build.variable_shapes(config, build.build_model(config, 1000))["params"]
    return groups_of(config, params, lambda name: name)


def mae_pretraining(about: dict[str, Any]) -> Groups:
    mine = autoencoder({"mask_ratio": 0.75, **about["config"]})
    return groups_of(
        recipe("mae:vit_b"),
        abstract_variables(mine)["params"],
        lambda name: mine.official.name_of(name) if "decoder" in name else name,
    )


def dino(about: dict[str, Any]) -> Groups:
    config = recipe("dino:vit_s16" if about["arch"].startswith("vit") else "dino:r50")
    config.model.name = f"{about['arch']}_patch16_224" if about["arch"].startswith("vit") else about["arch"]
    config.objective.norm_last_layer = about["norm_last_layer"]
    config.objective.head_norm = about["use_bn_in_head"]

    def official(name: str) -> str:
        head = name.startswith("projector.")
        return name.replace("projector.", "head.", 1) if head else f"backbone.{name}"

    found, frozen = groups_of(config, abstract_variables(objective_of(config))["params"], official)
    # What is always 1 is no parameter here.
    return found, frozen | ({"head.last_layer.weight_g"} if about["norm_last_layer"] else set())


def moco_v3(about: dict[str, Any]) -> Groups:
    """The recipe's network has more blocks than a case: those that it has are compared."""
    config = recipe("mocov3:vit_s")
    if not about["stop_grad_conv1"]:
        config.optimizer.frozen = tuple(name for name in config.optimizer.frozen if "patch_embed" not in name)

    def official(name: str) -> str:
        part, _, rest = name.partition(".")
        return {"predictor": name, "projector": f"base_encoder.head.{rest}"}.get(part, f"base_encoder.{name}")

    found, frozen = groups_of(config, abstract_variables(objective_of(config))["params"], official)
    depth = 1 + max(int(name.split(".")[2]) for name in about["groups"] if ".blocks." in name)

    def is_there(name: str) -> bool:
        return ".blocks." not in name or int(name.split(".")[2]) < depth

    found = {name: group for name, group in found.items() if is_there(name)}
    # The momentum encoder has what the encoder has, and is no part of `params`.
    encoder = {name for name in (*found, *filter(is_there, frozen)) if name.startswith("base_encoder.")}
    return found, frozen | {name.replace("base_encoder.", "momentum_encoder.", 1) for name in encoder}


METHODS: dict[str, Callable[[dict[str, Any]], Groups]] = {
    "dino pre-training (student)": dino,
    "mae fine-tuning": mae_fine_tuning,
    "mae pre-training": mae_pretraining,
    "moco v3 ViT pre-training": moco_v3,
}


def check(about: dict[str, Any]) -> None:
    assert about["method"] in METHODS, f"There is no reader for groups of {about['method']}."
    found, frozen = METHODS[about["method"]](about)
    assert found.keys() == about["groups"].keys()
    assert frozen == set(about.get("frozen", []))
    for name, (decays, scale, *layer) in about["groups"].items():
        assert found[name][0] == decays, name
        assert abs(found[name][1] - scale) <= 1e-9 * scale, name
        assert found[name][2:] == layer, name
