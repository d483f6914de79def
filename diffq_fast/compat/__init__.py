"""diffq under its own names: its modules, the alias `import diffq`, TorchScript, and conversion of its files.

The quantizers and the packed file do not know this room.
"""
