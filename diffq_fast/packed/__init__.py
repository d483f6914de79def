"""The packed file: levels in words, widths, ranges, and everything else of a model, in one safetensors file.

From the bottom: widths, layout, tensor, contents, then save and load. `docs/packed_format.md` is normative.
"""
