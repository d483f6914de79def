"""Post-training packing: a float checkpoint, of any size, to a packed file of the size that is asked for.

Steps by a closed form, rounding with feedback of the error where activations are known, levels entropy coded.
"""
