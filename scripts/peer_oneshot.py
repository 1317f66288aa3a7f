"""Quantize a checkpoint by llm-compressor, in a process of its own: `python peer_oneshot.py SOURCE OUTPUT`.

Rounds the linears to nearest in 4 bits and groups of 64, head kept. The last line it prints is a JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import metadata


def quantize(source: str, output: str) -> float:
    """Load, quantize and save; the seconds that took."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    began = time.perf_counter()
    weights = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=64)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    oneshot(model=model, recipe=QuantizationModifier(config_groups={"group_0": scheme}, ignore=["lm_head"]))
    model.save_pretrained(output, save_compressed=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    taken = quantize(*sys.argv[1:3])
    print(json.dumps({"name": f"llm-compressor {metadata.version('llmcompressor')}", "seconds": taken}))
