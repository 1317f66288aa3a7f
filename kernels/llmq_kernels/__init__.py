"""Numba kernels for packed, group-wise quantized weights: NumPy arrays in, NumPy arrays out.

Import the operations from their modules. This one imports nothing, so that `llmq_kernels.layout` can be
used without paying for Numba.
"""
