"""How fast this machine runs the kernels, a model, and the quantizer, and how near that is to what it could."""
