"""Packed files as files of other runtimes: one exporter a format, and what each export changes in the weights."""
