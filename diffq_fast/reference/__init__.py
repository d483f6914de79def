"""The oracle: every operator in plain torch code, which every kernel is tested against.

It imports torch and nothing of the package.
"""
