"""Every public name has a type: a type checker finds it where the package finds it at run time."""

import ast

import diffq_fast
from support.paths import ROOT

PACKAGE = ROOT / "diffq_fast"
USER = ROOT / "tests" / "support" / "typed_user.py"


def typed_homes():
    """Each name that ``__init__`` imports for type checkers, and the module it comes from."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    return {alias.name: node.module or "" for node in block.body for alias in node.names}


def test_every_public_name_is_imported_for_type_checkers_from_its_home():
    homes = typed_homes()
    assert set(homes) == set(diffq_fast.__all__) - {"__version__"}
    modules = {name: home for name, home in homes.items() if not hasattr(getattr(diffq_fast, name), "__module__")}
    assert modules == {"functional": "", "ts_export": "compat"}
    for name, home in homes.items() - modules.items():
        defined = getattr(diffq_fast, name).__module__
        assert defined == f"diffq_fast.{home}" or (name, home) == ("empty_cache", "functional"), name


def test_a_program_that_the_type_checker_reads_uses_every_public_name():
    used = {node.attr for node in ast.walk(ast.parse(USER.read_text())) if isinstance(node, ast.Attribute)}
    used |= {node.id for node in ast.walk(ast.parse(USER.read_text())) if isinstance(node, ast.Name)}
    assert set(diffq_fast.__all__) <= used


def test_the_package_says_that_it_is_typed():
    settings = (ROOT / "pyproject.toml").read_text()
    assert (PACKAGE / "py.typed").exists()
    assert 'diffq_fast = ["py.typed"]' in settings
    assert f'files = ["diffq_fast", "{USER.relative_to(ROOT).as_posix()}"]' in settings  # of mypy
