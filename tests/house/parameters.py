"""Functions with long parameter lists, in Python and in C++."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from house.sources import Function, Place, Sources

MOST = 7
# Control flow looks like a call too; a name, or the ``]`` of a lambda, in front of a list is a function.
CPP_LIST = re.compile(r"(?!\b(?:if|for|while|switch|catch|return|sizeof|noexcept|decltype)\b)(\b[A-Za-z_]\w*|\])\s*\(")
CPP_BODY = re.compile(r"\s*(?:(?:const|noexcept|override|mutable)\b\s*)*(?:->[^;{]*)?\{")


def long_parameter_lists(sources: Sources) -> list[Place]:
    """Python functions with more than seven parameters, ``self`` counted, ``*args`` and ``**kwargs`` not."""
    counted = ((module, function, parameter_count(function)) for module, function in sources.functions())
    return [Place(module, node.lineno, f"{node.name} {count}") for module, node, count in counted if count > MOST]


def parameter_count(function: Function) -> int:
    arguments = function.args
    return len([*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs])


def long_cpp_parameter_lists(root: Path) -> list[Place]:
    """The same for the functions and lambdas with a body in ``csrc``, its tests left out; ``]`` names a lambda."""
    folder = root / "csrc"
    paths = (path for path in sorted(folder.rglob("*")) if path.suffix in (".h", ".cpp"))
    return [
        Place(path.relative_to(root).as_posix(), line, f"{name} {count}")
        for path in paths
        if "tests" not in path.relative_to(folder).parts
        for line, name, count in cpp_functions(path.read_text(encoding="utf-8"))
        if count > MOST
    ]


def cpp_functions(text: str) -> Iterator[tuple[int, str, int]]:
    """(line, name, number of parameters) of each function that has a body; member initialisers are not understood."""
    text = _without_comments(text)
    for match in CPP_LIST.finditer(text):
        end = _closing(text, match.end() - 1)
        if end is not None and CPP_BODY.match(text, end + 1):
            yield text.count("\n", 0, match.start()) + 1, match.group(1), _item_count(text[match.end() : end])


def _without_comments(text: str) -> str:
    """The text without comments, string literals and preprocessor lines, with every line in its place."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|^[ \t]*#(?:[^\n]*\\\n)*[^\n]*'
    return re.sub(pattern, lambda match: "\n" * match.group().count("\n"), text, flags=re.DOTALL | re.MULTILINE)


def _closing(text: str, begin: int) -> int | None:
    """The index of the parenthesis that closes the one at ``begin``."""
    depth = 0
    for index in range(begin, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    return None


def _item_count(text: str) -> int:
    """The number of items between the commas that stand in no bracket."""
    depth = 0
    commas = 0
    for character in text:
        depth += (character in "([{<") - (character in ")]}>")
        commas += character == "," and depth == 0
    return commas + 1 if text.strip() not in ("", "void") else 0
