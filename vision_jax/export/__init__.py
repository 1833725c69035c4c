"""Models for programs without JAX: ONNX, StableHLO, and weights in the names of torch's libraries."""
