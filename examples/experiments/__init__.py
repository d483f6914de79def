"""The paper's three experiments, small enough for two CPU cores: images, text, music. See docs/experiments.md."""
