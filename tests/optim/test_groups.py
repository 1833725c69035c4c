"""Groups of parameters; layers and decay against timm's."""

import functools
import re
from collections.abc import Callable

import families
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vision_jax
from vision_jax.config import default_config
from vision_jax.errors import ConfigError
from vision_jax.optim import GroupRules, create_optimizer, decay_mask, format_table, layer_ids, masks, merge

# Of each layer that timm 1.0.31's param_groups_layer_decay makes, from the stem to the head: how many parameters it
# has, and of how many it lets the weights decay (with the model's no_weight_decay).
TIMM_LAYERS = {
    "vit_tiny_patch16_224": [
        *[(185664, 147456), *[(444864, 442368)] * 11],
        *[(445248, 442368), (193000, 192000)],
    ],
    "swin_tiny_patch4_window7_224": [
        *[(4896, 4608), (112347, 110592), (112347, 110592), (520374, 516096), (445878, 442368), (2072940, 2064384)],
        *[*[(1776492, 1769472)] * 5, (8274648, 8257536), (7093464, 7077888), (769000, 768000)],
    ],
    "convnext_atto": [
        *[(2040, 1920), (15120, 14760), (15120, 14760), (68800, 67920), (55840, 55120), (265600, 263840)],
        *[*[(214080, 212640)] * 5, (1043200, 1039680), (837760, 834880), (321640, 320000)],
    ],
    "resnet50": [
        *[(9536, 9408), (75008, 73728), (70400, 69632), (70400, 69632), (379392, 376832), *[(280064, 278528)] * 3],
        *[(1512448, 1507328), *[(1117184, 1114112)] * 5, (6039552, 6029312), *[(4462592, 4456448)] * 2],
        (2049000, 2048000),
    ],
}


@functools.cache
def shapes(name: str, **options: object) -> dict:
    model = vision_jax.create_model(name, **options)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)["params"]


@pytest.mark.parametrize("name", TIMM_LAYERS)
def test_layers_are_those_of_timm(name: str):
    rows = GroupRules(decay="timm", layer_decay=0.75).table(shapes(name))
    depth = len(TIMM_LAYERS[name])
    for layer, (parameters, decayed) in enumerate(TIMM_LAYERS[name]):
        inside = [row for row in rows if row.layer == layer]
        assert sum(int(np.prod(row.shape)) for row in inside) == parameters
        assert sum(int(np.prod(row.shape)) for row in inside if row.decays) == decayed
        assert {row.multiplier for row in inside} == {0.75 ** (depth - 1 - layer)}


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        # Which of timm's layers these are, by its group_matcher of each family.
        (["conv_stem/kernel", "bn1/bias", "blocks/0/0/a", "blocks/1/0/a", "blocks/1/1/a", "conv_head/a", "bn2/bias",
          "classifier/bias"], [0, 0, 1, 2, 3, 3, 3, 4]),
        (["conv_stem/kernel", "blocks/0/0/a", "blocks/1/0/a", "conv_head/kernel", "classifier/bias"], [0, 1, 2, 3, 3]),
        (["features/conv0/kernel", "features/denseblock1/denselayer1/a", "features/denseblock1/denselayer10/a",
          "features/denseblock1/denselayer2/a", "features/transition1/conv/a", "features/denseblock2/denselayer1/a",
          "features/norm5/scale", "classifier/kernel"], [0, 1, 3, 2, 3, 4, 5, 5]),
        (["features/0/kernel", "features/1/scale", "features/10/kernel", "features/4/kernel", "pre_logits/fc1/kernel"],
         [0, 1, 3, 2, 4]),
        (["stem/conv/kernel", "s1/b1/a", "s2/b1/a", "s2/b2/a", "head/fc/kernel"], [0, 1, 2, 3, 4]),
        (["stem/conv/kernel", "stages/0/blocks/0/a", "stages/1/blocks/0/a", "norm/scale", "head/fc/kernel"],
         [0, 1, 2, 2, 3]),
        (["Conv2d_1a_3x3/a", "Conv2d_2b_3x3/a", "Conv2d_3b_1x1/a", "Conv2d_4a_3x3/a", "Mixed_5b/a", "Mixed_5c/a",
          "Mixed_6a/a", "fc/kernel"], [0, 0, 1, 1, 2, 3, 4, 5]),
        # Not in timm: in the order in which they are applied.
        (["conv1/0/kernel", "stage2/0/a", "stage2/1/a", "stage3/0/a", "conv5/0/a", "fc/a"], [0, 1, 2, 3, 4, 5]),
        (["conv1/a", "conv2/a", "conv3/a", "inception3a/b", "inception3b/b", "inception4a/b", "fc/a"],
         [0, 1, 2, 3, 4, 5, 6]),
    ],
)  # fmt: skip
def test_layers_of_other_families(paths: list[str], expected: list[int]):
    assert layer_ids(paths) == expected


def test_layers_by_patterns():
    paths = ["entry/kernel", "mixer/b/kernel", "mixer/a/kernel", "exit/kernel", "logits/kernel"]
    assert layer_ids(paths, ["^entry", r"^mixer/(\w)", "^exit"]) == [0, 2, 1, 3, 4]
    with pytest.raises(ConfigError, match="pass `layers`"):
        layer_ids(paths)


@pytest.mark.parametrize("rules", [{"layer_decay": 0.7, "min_layer_factor": 0.1}, {"frozen": (r"blocks/[0-4]/",)}])
def test_stacked_blocks_have_the_multipliers_of_blocks(rules: dict):
    rules = GroupRules(decay="timm", **rules)
    apart = {row.path: row for row in rules.table(shapes("vit_tiny_patch16_224"))}
    for row in rules.table(shapes("vit_tiny_patch16_224", scan_blocks=True)):
        if not row.path.startswith("blocks/"):
            assert row == apart[row.path]
            continue
        blocks = [apart[row.path.replace("blocks", f"blocks/{i}")] for i in range(12)]
        assert row.multiplier == tuple(block.multiplier for block in blocks)
        assert row.shape == (12, *blocks[0].shape)
        assert row.decays == blocks[11].decays
        assert row.layer == (None if rules.layer_decay is None else tuple(range(1, 13)))


QUICK = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
PARAMS = {
    "patch_embed": {"proj": {"kernel": (4, 4, 3, 8), "bias": (8,)}},
    "cls_token": (1, 1, 8),
    "pos_embed": (1, 5, 8),
    "blocks": {
        str(i): {
            "norm1": {"scale": (8,), "bias": (8,)},
            "attn": {"kernel": (8, 8), "bias": (8,), "relative_position_bias_table": (9, 2)},
            "ls1": {"gamma": (8,)},
        }
        for i in range(2)
    },
    "head": {"kernel": (8, 4), "bias": (4,)},
}


def tree(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32),
        PARAMS,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def stacked(params: dict) -> dict:
    return params | {"blocks": jax.tree.map(lambda *x: jnp.stack(x), *params["blocks"].values())}


def flat(params: dict) -> dict:
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in jax.tree.leaves_with_path(params)}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("kernels", {"kernel"}),
        ("all", {"kernel", "bias", "scale", "gamma", "cls_token", "pos_embed", "relative_position_bias_table"}),
        ("timm", {"kernel"}),
        # The biases of the dense layers decay, those of the norms do not.
        ("not_norms", {"kernel", "bias", "gamma", "cls_token", "pos_embed", "relative_position_bias_table"}),
    ],
)
def test_decay_rules(rule: str, expected: set[str]):
    for params in (tree(0), stacked(tree(0))):
        mask = flat(decay_mask(params, rule))
        assert {path.split("/")[-1] for path, decays in mask.items() if decays} == expected
        norms = [decays for path, decays in mask.items() if "norm1" in path]
        assert any(norms) == (rule == "all")
    excluded = flat(decay_mask(tree(0), rule, exclude=["^head/"]))
    assert not excluded["head/kernel"]
    assert excluded["patch_embed/proj/kernel"]


def test_multipliers_freezing_and_decay_in_one_step():
    """SGD without momentum: p -= lr * factor * (g + wd * p), and what is frozen stays."""
    rules = GroupRules(
        no_decay=(r"^head/",), multipliers=(("^head", 10.0), ("bias$", 0.5)), frozen=("^patch_embed", "pos_embed")
    )
    for layout in (lambda x: x, stacked):
        params, grads = layout(tree(0)), layout(tree(1))
        optimizer = rules.wrap(create_optimizer("sgd", 0.1, weight_decay=0.2, decay_mask=rules.decay_mask), params)
        (params, frozen), (grads, _) = rules.split(params), rules.split(grads)
        assert set(frozen) == {"patch_embed", "pos_embed"}
        updates, _ = QUICK(optimizer.update)(grads, optimizer.init(params), params)
        for (path, u), g, p in zip(flat(updates).items(), jax.tree.leaves(grads), jax.tree.leaves(params), strict=True):
            factor = (10.0 if path.startswith("head") else 1.0) * (0.5 if path.endswith("bias") else 1.0)
            decay = 0.2 * (path.endswith("kernel") and not path.startswith("head"))
            np.testing.assert_allclose(u, -0.1 * factor * (g + decay * p), rtol=1e-5, atol=1e-7)


def test_layer_decay_of_stacked_blocks_in_one_step():
    """Stem, two blocks, head: factors 0.5 ** (3, 2, 1, 0)."""
    rules = GroupRules(layer_decay=0.5)
    params, grads = stacked(tree(0)), stacked(tree(1))
    optimizer = rules.wrap(create_optimizer("sgd", 1.0), params)
    updates, _ = QUICK(optimizer.update)(grads, optimizer.init(params), params)
    factors = {"patch_embed": 0.125, "cls_token": 0.125, "pos_embed": 0.125, "head": 1.0}
    for path, u in flat(updates).items():
        factor = factors.get(path.split("/")[0], np.asarray([0.25, 0.5]))
        g = np.asarray(flat(grads)[path])
        np.testing.assert_allclose(u, -np.reshape(factor, (-1,) + (1,) * (g.ndim - 1)) * g, rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_frozen_parameters_have_no_state_and_do_not_count(name: str):
    """Training with parts frozen is training the others alone, also where gradients are clipped by their norm.

    In the state, optax's MaskedNode is in place of what is frozen: checkpoints have it, and restore for no other tree.
    """
    rules = GroupRules(decay="timm", frozen=("^patch_embed", r"blocks/0/"))
    (params, frozen), (grads, _) = rules.split(tree(0)), rules.split(tree(1))
    create = functools.partial(create_optimizer, name, 0.1, weight_decay=0.1, clip_global_norm=1.0)
    optimizer = rules.wrap(create(decay_mask=rules.decay_mask), tree(0))
    alone = create(decay_mask=functools.partial(decay_mask, rule="timm"))
    state, other = QUICK(optimizer.init)(params), QUICK(alone.init)(params)
    masked = merge(params, jax.tree.map(lambda _: optax.MaskedNode(), frozen))
    assert jax.tree.structure(state) == jax.tree.structure(QUICK(create(decay_mask=rules.decay_mask).init)(masked))
    assert flat(state).keys() == flat(other).keys()
    update, update_alone = QUICK(optimizer.update), QUICK(alone.update)
    for _ in range(2):
        updates, state = update(grads, state, params)
        expected, other = update_alone(grads, other, params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        for path, x in flat(updates).items():
            np.testing.assert_allclose(x, flat(expected)[path], rtol=1e-6, atol=1e-7)


def test_split_and_merge():
    """What is trained and what is frozen are apart, without empty dicts in place of the other, and together all."""
    params = tree(0) | {"projector": {"0": {"kernel": jnp.ones((8, 2))}}, "nothing": {}}
    trained, frozen = GroupRules(frozen=("^patch_embed", r"blocks/0/", "bias$")).split(params)
    assert set(flat(frozen)) == {path for path in flat(params) if re.search("^patch_embed|blocks/0/|bias$", path)}
    assert set(flat(trained)) == set(flat(params)) - set(flat(frozen))
    assert set(trained) == {"cls_token", "pos_embed", "blocks", "head", "projector", "nothing"}
    assert set(trained["blocks"]) == {"1"}
    merged = merge(trained, frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    assert all(one is other for one, other in zip(jax.tree.leaves(merged), jax.tree.leaves(params), strict=True))
    assert GroupRules().split(params)[1] == {}
    with pytest.raises(
        ConfigError, match=r"optimizer.frozen: the pattern '\^stem' matches no parameter; there are such"
    ):
        GroupRules(frozen=("^stem",)).split(params)
    with pytest.raises(ValueError, match="a leaf at 'kernel'"):
        merge(params, trained)


def test_of_stacked_blocks_all_are_frozen_or_they_are_trained():
    """An array of which a part is frozen is trained, with factors of zero."""
    params = jax.eval_shape(lambda: stacked(tree(0)))
    rules = GroupRules(frozen=("blocks/0/", "blocks/./norm1"))
    frozen = rules.split(params)[1]
    assert set(flat(frozen)) == {"blocks/norm1/bias", "blocks/norm1/scale"}
    assert {row.path for row in rules.table(params) if row.frozen} == set(flat(frozen))
    assert {row.multiplier for row in rules.table(params) if row.path == "blocks/attn/kernel"} == {(0.0, 1.0)}


def test_without_rules_the_optimizer_is_as_it_was():
    optimizer = optax.sgd(0.1)
    assert GroupRules().wrap(optimizer, tree(0)) is optimizer


def test_table():
    rows = GroupRules(layer_decay=0.5, frozen=("^head",), multipliers=(("kernel", 3.0),)).table(stacked(tree(0)))
    lines = format_table(rows).splitlines()
    assert lines[0].split() == ["parameter", "shape", "decay", "learning", "rate", "layer"]
    table = {line.split()[0]: line.split()[1:] for line in lines[1:-1]}
    assert table["blocks/attn/kernel"] == ["2x8x8", "yes", "x", "0.75", "to", "x", "1.5", "1", "to", "2"]
    assert table["patch_embed/proj/kernel"] == ["4x4x3x8", "yes", "x", "0.375", "0"]
    assert table["head/kernel"] == ["8x4", "no", "frozen", "3"]
    # 392 of the patches, 8 and 40 of tokens and positions, 2 * 114 of blocks; the head has 36.
    assert lines[-1] == "668 of 704 parameters are trained, and 512 decay."


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"frozen": ("^stem",)},
            r"optimizer.frozen: the pattern '\^stem' matches no parameter; there are such as blocks/0/attn/bias",
        ),
        ({"no_decay": ("bn1",)}, "optimizer.no_decay: the pattern 'bn1' matches no parameter"),
        ({"multipliers": (("^head", 2.0), ("^fc", 2.0))}, r"optimizer.multipliers: the pattern '\^fc' matches no"),
        ({"no_clip_adaptive": ("^fc/",)}, "optimizer.no_clip_adaptive: the pattern '.fc/' matches no parameter"),
        ({"layers": ("patch", "norm2", "ls1")}, "layers: the pattern 'norm2' matches no parameter"),
        ({"multipliers": (("(", 1.0),)}, "not a regular expression"),
        ({"decay": "kernel"}, "no rule 'kernel'.*did you mean kernels"),
        ({"layer_decay": 1.5}, "above 0 and at most 1"),
        ({"multipliers": (("head", -1.0),)}, "must not be negative"),
    ],
)
def test_wrong_rules(rules: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        GroupRules(**rules).wrap(create_optimizer("sgd", 0.1), tree(0))


def test_decay_cannot_differ_among_stacked_blocks():
    rules = GroupRules(no_decay=("blocks/0/",))
    assert not flat(rules.decay_mask(tree(0)))["blocks/0/attn/kernel"]
    with pytest.raises(ConfigError, match="stacked in blocks/attn/kernel"):
        rules.table(stacked(tree(0)))


def test_the_classifier_need_not_be_there_to_be_spared_by_adaptive_clipping():
    """A model of features has none; the default pattern is for all families."""
    rules, params = GroupRules(), tree(0)
    assert not any(flat(rules.clip_adaptive_mask(params))[f"head/{name}"] for name in ("kernel", "bias"))
    assert sum(flat(rules.clip_adaptive_mask(params)).values()) == len(jax.tree.leaves(params)) - 2
    del params["head"]
    rules.check(params)
    assert tuple(default_config().optimizer.no_clip_adaptive) == rules.no_clip_adaptive


@pytest.mark.parametrize("layout", [lambda x: x, stacked])
def test_rules_hold_with_heads_beside_the_backbone(layout: Callable[[dict], dict]):
    """What holds for the backbone's parameters stays, and a head's blocks are as the backbone's are."""
    backbone = layout(tree(0))
    decoder = {"blocks": backbone["blocks"], "embed": {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}}
    params = {**backbone, "projector": {"0": {"kernel": jnp.ones((8, 4))}}, "decoder": decoder}
    rules = GroupRules(decay="timm", layer_decay=0.5, multipliers=(("attn", 3.0),), frozen=("^patch_embed",))
    alone = {row.path: row for row in rules.table(backbone)}
    table = {row.path: row for row in rules.table(params)}
    assert {path: table[path] for path in alone} == alone
    head = alone["head/kernel"]
    for path in set(table) - set(alone):
        last = table[path].layer if isinstance(table[path].layer, tuple) else (table[path].layer,)
        assert set(last) == {head.layer}  # all of the learning rate
        assert table[path].multiplier == (3.0 if "attn" in path else 1.0)
        assert table[path].decays == path.endswith("kernel")
    assert masks.is_stacked("decoder/blocks/attn/kernel")
    assert not masks.is_stacked("decoder/blocks/0/attn/kernel")
    assert not masks.is_stacked("stages/0/blocks/0/norm/scale")
    assert rules.split(params)[0].keys() == params.keys() - {"patch_embed"}


@pytest.mark.parametrize("name", families.names())
def test_every_family_has_layers(name: str):
    """The stem is the first; the last has the classifier, dense layers before it and what else comes after the blocks.

    A module of which nothing is known would be in the last one too, with all of the learning rate.
    """
    params = families.shapes(name)[0]["params"]
    rows = GroupRules(layer_decay=0.9).table(params)
    layers = sorted({row.layer for row in rows})
    assert layers == list(range(len(layers)))
    last = {row.path for row in rows if row.layer == layers[-1]}
    known = re.compile(r"(head|head_dist|fc\d?|classifier|pre_logits|conv_head|features/norm5)/")
    assert not [path for path in last if not known.match(path)]
    stem = re.compile(r"(stem|patch_embed|embed|conv_stem|conv1|prep|features/(0|conv0)|Conv2d_1a_3x3)/")
    assert {row.layer for row in rows if stem.match(row.path)} == {0}
