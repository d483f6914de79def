"""Imports go down only: the layers of the package, read from its sources.

Below an operator's schema (``_ops``) lies the oracle, which the schemas' shape rules and every kernel read; a backend
registers its kernels with the schemas, so it lies above them; ``functional`` loads the backends.
"""

import ast
import re
import subprocess
import sys
from fnmatch import fnmatch
from graphlib import TopologicalSorter

import pytest

from support.paths import ROOT

PACKAGE = ROOT / "diffq_fast"

WEIGHTS_OF_A_FILE = ("activations", "coding", "contents", "header", "layout", "ranges", "tensor", "widths")
# From the bottom to the top; a module belongs to the first layer with a pattern that fits.
LAYERS = [
    ("version and names", ["_version", "compat", "compat.names"]),  # what every import of the package passes
    ("oracle", ["reference", "reference.*"]),
    ("schemas", ["_ops"]),
    ("backends", ["backends", "backends.*", "_core"]),
    ("functional", ["_checks", "functional"]),
    ("files", ["files", "files.*"]),
    ("watch", ["watch", "watch.*"]),
    ("legacy", ["legacy", "legacy.*"]),
    ("quantizers", ["quantizers", "quantizers.*"]),
    ("weights of a packed file", [f"packed.{name}" for name in WEIGHTS_OF_A_FILE]),
    ("runtime", ["runtime", "runtime.*"]),
    ("packed", ["packed", "packed.*"]),
    ("exporters", ["exporters", "exporters.*"]),
    ("post_training", ["post_training", "post_training.*"]),
    ("compat", ["compat.*"]),
    ("integrations", ["integrations", "integrations.*"]),
    ("command line", ["cli", "cli.*", "__main__"]),
    ("root", ["diffq_fast"]),  # loads each public name when it is first used
]
WITHOUT_TORCH = (
    "diffq_fast",
    "files.safetensors_reader",
    "packed.widths",
    "packed.header",
    "packed.layout",
    "packed.report",
    "packed.report_page",
    "watch.bits_plot",
    "watch.bits_log",
    "cli.commands",
    "cli.coded",
    "cli.export",
    "cli.looking",
)


def module_name(path):
    """``quantizers.base``; the package itself is ``diffq_fast``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts) or "diffq_fast"


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
ORACLE = [module for module in SOURCES if module.split(".")[0] == "reference"]


def layer_of(module):
    for height, (_, patterns) in enumerate(LAYERS):
        if any(fnmatch(module, pattern) for pattern in patterns):
            return height
    raise AssertionError(
        f"{module}: in no layer of tests/house/test_layers.py; place it, and say in the docs what it is for"
    )


def import_nodes(tree):
    """Every import of a module, inside of functions and for type checkers alone too."""
    return (node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)))


def absolute_base(module, node):
    """The package-relative dotted name that ``from ..x import`` means inside of ``module``."""
    package = [] if module == "diffq_fast" else module.split(".")
    if SOURCES[module].name != "__init__.py":
        package = package[:-1]
    steps_up = node.level - 1
    kept = package[: len(package) - steps_up] if steps_up else package
    return [*kept, *(node.module.split(".") if node.module else [])]


def imports_of(module):
    """(modules of the package, first names of everything else) that a module imports."""
    inside, outside = set(), set()
    for node in import_nodes(ast.parse(SOURCES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif node.level == 0:
            names = [node.module]
        else:
            base = absolute_base(module, node)
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                inside.add(whole if whole in SOURCES or alias.name == "_core" else ".".join(base) or "diffq_fast")
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == "diffq_fast":
                inside.add(rest or first)
            else:
                outside.add(first)
    return inside, outside


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_imports_only_its_own_and_lower_layers(module):
    height = layer_of(module)
    for imported in imports_of(module)[0]:
        assert layer_of(imported) <= height, f"{module} imports {imported}, which lies above it"


def test_the_walk_finds_the_imports():
    """The checks below would pass if the reading of the sources found nothing."""
    assert {"backends", "_checks", "reference.bits", "reference.options"} <= imports_of("functional")[0]
    assert imports_of("backends.cpu.loading")[0] == {"_core"}
    assert {"_ops", "reference.weight_range", "reference.sizes"} <= imports_of("backends.default.weight_range")[0]
    assert {"functional", "reference.bits", "quantizers.base"} <= imports_of("quantizers.diffq")[0]
    assert "quantizers.size_target" in imports_of("diffq_fast")[0]  # for type checkers alone: counted too
    assert imports_of("__main__")[0] == {"cli"}
    assert sum(len(imports_of(module)[0]) for module in SOURCES) > 80
    assert (
        layer_of("cli.commands")
        > layer_of("packed.tensor")
        > layer_of("quantizers.diffq")
        > layer_of("legacy.state")
        > layer_of("functional")
    )


def test_no_module_imports_itself_through_others():
    graph = {module: imports_of(module)[0] - {module} for module in SOURCES}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(SOURCES) <= set(order)


def test_the_package_itself_imports_names_alone():
    program = "import sys, diffq_fast; print(sorted(name for name in sys.modules if name.startswith('diffq_fast.')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "['diffq_fast._version', 'diffq_fast.compat', 'diffq_fast.compat.names']"


def test_the_oracle_imports_torch_only():
    for module in ORACLE:
        inside, outside = imports_of(module)
        assert outside - set(sys.stdlib_module_names) <= {"torch"}
        assert inside <= set(ORACLE)


def test_only_functional_loads_the_backends_and_only_backends_read_the_schemas():
    loaders = {module for module in SOURCES if "backends" in {name.split(".")[0] for name in imports_of(module)[0]}}
    others = {"cli.commands", "diffq_fast"}  # report on them
    assert {module for module in loaders if not module.startswith("backends")} == {"functional", *others}
    readers = {module for module in SOURCES if "_ops" in imports_of(module)[0]}
    assert {module.split(".")[0] for module in readers} == {"backends"}
    callers = {module for module in SOURCES if "_core" in imports_of(module)[0]}
    assert callers == {"backends.cpu.loading"}


def test_operators_are_called_through_functional():
    callers = {module for module, path in SOURCES.items() if "torch.ops." in path.read_text(encoding="utf-8")}
    registers = "integrations.distributed"  # names them to DTensor, and calls none
    assert callers - {registers} <= {"functional", "_ops"}


def test_only_declared_packages_are_imported_and_optional_ones_inside_of_functions():
    declared = {"torch", "numpy"}
    optional = {"matplotlib", "mlxtend", "triton", "onnx"}
    optional |= {"huggingface_hub", "lightning", "pytorch_lightning", "transformers"}
    for module, path in SOURCES.items():
        foreign = imports_of(module)[1] - set(sys.stdlib_module_names)
        assert foreign <= declared | optional, module
        if not module.startswith(("backends", "integrations")):
            body = ast.parse(path.read_text(encoding="utf-8")).body
            at_once = [alias.name for node in body if isinstance(node, ast.Import) for alias in node.names]
            at_once += [node.module for node in body if isinstance(node, ast.ImportFrom) and node.level == 0]
            assert not {name.partition(".")[0] for name in at_once} & optional, module


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_import_does_not_load_torch(module):
    name = module if module == "diffq_fast" else f"diffq_fast.{module}"
    program = f"import sys, {name}; print([heavy for heavy in ('torch', 'safetensors') if heavy in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_core_includes_no_torch_python_or_numpy_header():
    core = ROOT / "csrc" / "core"
    files = [*core.rglob("*.h"), *core.rglob("*.cpp")]
    assert len(files) > 10
    for path in files:
        text = path.read_text(encoding="utf-8")
        for bracket, header in re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', text, flags=re.MULTILINE):
            foreign = re.match(r"(?i)(torch|aten|c10|caffe2|pybind11|numpy|cuda|python\.h)", header)
            assert not foreign, f"{path.name} includes {header}"
            if bracket == '"':
                included = (ROOT / "csrc" / header).resolve()
                assert core.resolve() in included.parents, f"{path.name} includes {header}"
                assert included.exists(), f"{path.name} includes {header}"


def test_only_the_bindings_know_python():
    foreign = [
        path.relative_to(ROOT / "csrc").as_posix()
        for path in (ROOT / "csrc").rglob("*.[ch]*")
        if re.search(r"pybind11|Python\.h", path.read_text(encoding="utf-8"))
    ]
    assert foreign == ["bindings.cpp"]
