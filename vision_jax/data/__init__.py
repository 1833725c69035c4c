"""From files to batches on the devices: sources, order, decoding, loading."""
