"""Layers that keep their weights packed in memory, for ``diffq_fast.load(path, model, packed=True)``."""
