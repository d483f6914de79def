"""Builds diffq_fast with its compiled core where that can be compiled, and as pure Python elsewhere.

The front is setuptools' own backend with the small CMake ``build_ext`` below, and not scikit-build-core's.
One way then serves `pip install .`, `pip install -e .`, wheels, and offline builds with
`--no-build-isolation` where scikit-build-core is not installed; and one source tree gives a platform wheel
or a ``py3-none-any`` wheel, by what is found on the machine. Neither torch nor numpy is needed to build.

What cannot be compiled for want of tools (CMake, a C++ compiler, Python's headers, pybind11) is left out
with one printed line; code that fails to compile with these tools present is an error.
``DIFFQ_FAST_SKIP_NATIVE=1`` leaves the core out on purpose.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
COMPILING_COMMANDS = {"bdist_wheel", "build", "build_ext", "develop", "editable_wheel", "install"}
PROBE = """
cmake_minimum_required(VERSION 3.18)
project(probe LANGUAGES CXX)
find_package(Python 3.10 COMPONENTS Interpreter Development.Module REQUIRED)
find_package(pybind11 CONFIG REQUIRED)
"""


def licence() -> dict[str, str]:
    """The SPDX expression, under the name that this setuptools has for it.

    A machine without a network builds with the setuptools that it has, and before 77 none reads the expression from
    pyproject.toml.
    """
    name = "license_expression" if int(setuptools.__version__.partition(".")[0]) >= 77 else "license"
    return {name: "MIT"}


def cmake_arguments() -> list[str]:
    """Arguments that point CMake at this Python, its pybind11 and, on macOS, the architecture asked for."""
    import pybind11

    arguments = [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    arguments += ["-DPYBIND11_FINDPYTHON=ON", "-DCMAKE_BUILD_TYPE=Release"]
    if shutil.which("ninja") and sys.platform != "win32":  # there only Visual Studio's generator finds cl.exe
        arguments.append("-GNinja")
    architectures = re.findall(r"-arch (\S+)", os.environ.get("ARCHFLAGS", ""))
    if architectures:
        arguments.append("-DCMAKE_OSX_ARCHITECTURES=" + ";".join(architectures))
    return arguments


def missing_for_core() -> str | None:
    """Why the compiled core cannot be built here, or None: CMake itself looks for compiler and headers."""
    if os.environ.get("DIFFQ_FAST_SKIP_NATIVE", "0") not in ("", "0"):
        return "DIFFQ_FAST_SKIP_NATIVE is set"
    if not shutil.which("cmake"):
        return "cmake was not found"
    try:
        arguments = cmake_arguments()
    except ImportError:
        return "pybind11 is not installed"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "CMakeLists.txt").write_text(PROBE)
        probe = subprocess.run(
            ["cmake", "-S", folder, "-B", f"{folder}/build", *arguments], capture_output=True, text=True
        )
    if probe.returncode == 0:
        return None
    errors = re.findall(r"CMake Error.*\n+(?:  .*\n)?", probe.stderr) or [probe.stderr or "no message"]
    return "CMake found no working C++ compiler, Python headers or pybind11: " + " ".join(errors[0].split())


class CMakeBuild(build_ext):
    """Runs CMake and installs the one module where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        # A cache of an earlier isolated build names tools in a folder that is gone by now.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        configure = ["cmake", "-S", str(ROOT), "-B", str(build), *cmake_arguments()]
        compile_ = ["cmake", "--build", str(build), "--config", "Release", "--target", "_core", "--parallel"]
        install = ["cmake", "--install", str(build), "--config", "Release", "--component", "python"]
        for command in (configure, compile_, [*install, "--prefix", str(target.parent)]):
            subprocess.run(command, check=True)
        if not target.is_file():
            raise RuntimeError(f"setup.py: CMake did not leave {target.name} in {target.parent}")


def extensions() -> list[Extension]:
    """The compiled core, or nothing where it cannot be built; looked for only by commands that compile."""
    if not COMPILING_COMMANDS.intersection(sys.argv[1:]):
        return []
    missing = missing_for_core()
    if missing is None:
        return [Extension("diffq_fast._core", sources=[])]
    print(f"diffq_fast: building the pure-Python package, without the compiled core: {missing}", flush=True)
    return []


setup(**licence(), ext_modules=extensions(), cmdclass={"build_ext": CMakeBuild})
