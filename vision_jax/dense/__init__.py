"""Detection and semantic segmentation: networks, boxes, losses and measures, which know no configuration."""
