"""Doors to the training loops and model hubs that people use: Hugging Face's and Lightning's; and to DTensors.

Each module imports its ecosystem at once, and nothing else in the package imports it.
"""
