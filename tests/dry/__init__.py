"""A stand-in for CUDA: ``benchmarks/gpu_check.sh --dry`` runs the tests and benchmarks of a GPU with it."""
