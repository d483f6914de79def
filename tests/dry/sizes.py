"""How small a dry run is: constants of the tests and benchmarks, and which tests are left out."""

from __future__ import annotations

from types import ModuleType
from typing import Any

COUNTS = (0, 1, 9, 8200)
SIZES: dict[str, dict[str, Any]] = {
    "measure_gpu_export": {"COUNT": 8192, "LAYERS": 2, "LAYER": (4, 256)},
    "measure_gpu_operators": {"LARGE": (2, 8192), "SMALL": (3, 1024), "MEGABYTES": (16, 4), "BUCKET_WEIGHTS": 2**14},
    "measure_gpu_transformer": {"WIDTH": 32, "LAYERS": 1, "HEADS": 2, "VOCABULARY": 32, "BATCH": 2, "LENGTH": 4},
    "test_gpu": {"COUNTS": COUNTS, "DRAWS": 2**13, "MANY_DRAWS": 2**14, "STEPS": 2},
    "test_gpu_export": {
        "COUNTS": (1, 2049),
        "WIDEST": 3,
        "PLANE_COUNTS": (1, 2049),
        "PLANE_SHAPES": ((64, 32), (8, 10)),
    },
    "test_gpu_packed_rows": {"LARGE": (4, 256)},
    "test_gpu_streams": {},
    "test_gpu_ticketed": {
        "COUNTS": (0, 1, 9, 1000, 70, 100),
        "LAUNCHES": 2,
        "MANY": [1000, 501] + [70] * 6,
        "SEVERAL": (300, 100),
        "BESIDE": (300, 9, 100),
        "REPLAYED": (300, 9, 100),
    },
}
PARAMETERS = 2  # of each test, the first ones and the last one


def make_small(module: ModuleType) -> None:
    """Gives a module's constants the sizes of a dry run. ``AttributeError`` where it has no such constant."""
    for name, value in SIZES[module.__name__].items():
        if not hasattr(module, name):
            raise AttributeError(f"dry run: {module.__name__} has no constant {name}, see tests/dry/sizes.py")
        setattr(module, name, value)
