"""Measuring models: perplexity and divergence, the error of quantized tensors, and what a checkpoint holds.

Import from the modules: `inventory` needs headers only, `perplexity` a loaded model, `compare` the kernels.
"""
