"""The network and its files: shape, layers, cache, checkpoints."""
