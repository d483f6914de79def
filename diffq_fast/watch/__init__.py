"""What training shows: a log of size and bits, and pictures of them.

Nothing here knows a quantizer or a file format: values are handed in. No torch is needed.
"""
