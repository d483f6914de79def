"""Building wheels: with the core, without it on purpose or for want of tools, never past a compile error."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from support.paths import ROOT

SOURCES = ("setup.py", "pyproject.toml", "CMakeLists.txt", "MANIFEST.in", "LICENSE", "csrc", "diffq_fast")
BUILD = "import sys; from setuptools import build_meta; print('wheel:', build_meta.build_wheel(sys.argv[1]))"

pytestmark = [
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not in a source tree"),
    pytest.mark.slow,
]
needs_compiler = pytest.mark.skipif(
    not shutil.which("cmake") or not (shutil.which("c++") or shutil.which("cl")),
    reason="no CMake or C++ compiler",
)


@pytest.fixture
def tree(tmp_path):
    """A copy of the sources, without what was compiled in place."""
    pytest.importorskip("setuptools")
    ignore = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    for name in SOURCES:
        source, target = ROOT / name, tmp_path / "tree" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=ignore)
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source, target)
    (tmp_path / "tree" / "README.md").write_text("# diffq_fast\n")
    return tmp_path / "tree"


def build_wheel(tree: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], Path | None]:
    """Runs the build backend as `pip install --no-build-isolation` does; the process and the wheel."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(tree / "out")],
        cwd=tree,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    return done, next((tree / "out").glob("*.whl"), None)


def contents(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def compiled(wheel: Path) -> list[str]:
    return [name for name in contents(wheel) if name.startswith("diffq_fast/_core.")]


def test_skipping_the_core_gives_a_pure_wheel(tree):
    done, wheel = build_wheel(tree, DIFFQ_FAST_SKIP_NATIVE="1")
    assert wheel is not None, done.stderr
    assert wheel.name.endswith("-py3-none-any.whl")
    assert compiled(wheel) == []
    assert "diffq_fast/functional.py" in contents(wheel)
    assert done.stdout.count("without the compiled core: DIFFQ_FAST_SKIP_NATIVE is set") == 1


def test_missing_tools_give_a_pure_wheel_and_the_reason(tree):
    done, wheel = build_wheel(tree, PATH="")
    assert wheel is not None, done.stderr
    assert wheel.name.endswith("-py3-none-any.whl")
    assert done.stdout.count("without the compiled core: cmake was not found") == 1


@needs_compiler
def test_missing_compiler_gives_a_pure_wheel_and_the_reason(tree):
    done, wheel = build_wheel(tree, CXX="/nonexistent/c++")
    assert wheel is not None, done.stderr
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "without the compiled core: CMake found no working C++ compiler" in done.stdout


@needs_compiler
def test_compile_error_fails_the_build(tree):
    pytest.importorskip("pybind11")
    for source in (tree / "csrc" / "core").glob("*/*.cpp"):  # the others need not be compiled before the error is met
        source.unlink()
    (tree / "csrc" / "core" / "train" / "noise.cpp").write_text("#error this must not be skipped over\n")
    done, wheel = build_wheel(tree)
    assert done.returncode != 0
    assert wheel is None
    assert "this must not be skipped over" in done.stdout + done.stderr


@needs_compiler
def test_platform_wheel_holds_one_compiled_module(tree):
    pytest.importorskip("pybind11")
    before_targets = "find_package(Threads REQUIRED)\n"
    with_options = (tree / "CMakeLists.txt").read_text().split(before_targets)
    assert len(with_options) == 2
    (tree / "CMakeLists.txt").write_text(f"{before_targets}add_compile_options(-O0)\n".join(with_options))  # for time
    done, wheel = build_wheel(tree)
    assert wheel is not None, done.stderr
    assert not wheel.name.endswith("-any.whl")
    assert len(compiled(wheel)) == 1
    assert not [name for name in contents(wheel) if name.startswith("csrc/")]
