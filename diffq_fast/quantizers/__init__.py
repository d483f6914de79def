"""Quantizers: attach to a model, make its forward noisy in training and quantised in eval, export it."""
