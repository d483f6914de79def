"""Files: reading and writing safetensors, and replacing a file all at once.

A header is read and checked without torch.
"""
