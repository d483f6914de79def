"""Runs the PTX that Triton compiles for NVIDIA GPUs on the CPU, thread by thread, and watches every access.

It needs numpy, torch and Triton, and nothing of the project whose kernels it runs. ``triton_driver.emulated`` is the
way in; ``docs/gpu_emulator.md`` says how it works, how another project uses it, and what it cannot see.
"""
