"""Compute kernels: what the network calls for its arithmetic, and nothing that knows what a layer is."""
