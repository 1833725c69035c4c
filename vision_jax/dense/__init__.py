"""Detection and semantic segmentation: pure, compiled functions, and networks on the backbones of `models`.

`boxes`, `anchors`, `matching` and `losses` are what a training needs, `postprocess` makes detections of what a network
gives, and `average_precision` and `iou_metrics` measure them. `resizing` prepares float images as torchvision does.
"""
