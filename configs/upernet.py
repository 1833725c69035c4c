"""UPerNet with Swin Transformers and ConvNeXts on ADE20K.

Result:   mean IoU on the validation split, one scale, published: swin_tiny 44.51, swin_small 47.64, swin_base 48.13,
          convnext_tiny 46.0, convnext_small 48.7, convnext_base 49.1. We have not run it yet.
Source:   Xiao et al. 2018 (arXiv:1807.10221); SwinTransformer/Swin-Transformer-Semantic-Segmentation, README.md;
          open-mmlab/mmsegmentation, configs/swin and configs/_base_; facebookresearch/ConvNeXt, semantic_segmentation,
          configs/convnext. Known differences: crops may be of one class by more than three quarters; colors are changed
          as by torchvision's ColorJitter; masks are measured at the size that images have been resized to.
Command:  python -m vision_jax.main --config=configs/upernet.py:swin_tiny --config.data.dir=ADEChallengeData2016
          --config.model.pretrained=hf://timm/swin_tiny_patch4_window7_224.ms_in1k --workdir=runs/upernet_swin_tiny
"""

from ml_collections import ConfigDict

from vision_jax import recipes

# The backbone, its drop path rate, and the number of layers of its layer decay; 0: there is none.
VARIANTS: dict[str, tuple[str, float, int]] = {
    **{f"swin_{size}": (f"swin_{size}_patch4_window7_224", 0.3, 0) for size in ("tiny", "small", "base")},
    "convnext_tiny": ("convnext_tiny", 0.4, 6),
    "convnext_small": ("convnext_small", 0.3, 12),
    "convnext_base": ("convnext_base", 0.4, 12),
}


def get_config(variant: str = "swin_tiny") -> ConfigDict:
    model, drop_path_rate, layers = recipes.choose(VARIANTS, variant)
    config = recipes.dense(model, "segmentation", head="upernet", aux_weight=0.4)
    config.model.drop_path_rate = drop_path_rate
    config.model.num_classes = 150
    config.data.source = "masks"
    config.data.train_split, config.data.val_split = "training", "validation"
    config.data.image_size = 512
    dense = config.data.dense
    dense.reduce_zero_label = True
    dense.resize, dense.shorter, dense.longer, dense.canvases = "range", (256, 1024), 4096, ((512, 512),)
    dense.eval_shorter, dense.eval_longer = 512, 2048
    dense.eval_canvases = ((512, 704), (704, 512), (512, 2048), (2048, 512))
    config.augment.color_jitter = (32 / 255, 0.5, 0.5, 0.05)
    config.augment.color_jitter_prob = 0.5
    config.batch_size = 16
    config.total_steps = 160_000

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-4 if layers else 6e-5
    config.optimizer.weight_decay = 0.05 if layers else 0.01
    config.optimizer.decay_rule = "timm" if layers else "all"
    if layers:
        # By stages, with all reductions in the first layer, and the heads in the last.
        first = [(r"^(stem|stages/\d/downsample)/", 0.9 ** (layers - 1))]
        stages = [(rf"^stages/{stage}/blocks/", 0.9 ** (layers - 2 - stage)) for stage in range(4)]
        config.optimizer.multipliers = tuple(first + stages)
        # As the windows of 512 pixels that are 341 pixels apart in the source.
        with config.unlocked():
            config.evals.val.window, config.evals.val.stride = 512, 341
    else:
        config.optimizer.no_decay = ("norm", "relative_position_bias_table")
    config.schedule.name = "linear"
    config.schedule.warmup_steps = 1500
    config.schedule.warmup_factor = 1e-6
    config.schedule.overlap_warmup = True
    config.eval.every_epochs = 12.0
    return config
