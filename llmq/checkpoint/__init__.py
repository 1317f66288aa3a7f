"""Checkpoints as bytes and files: safetensors headers, sources, the streamed writer. Knows nothing of quantization."""
