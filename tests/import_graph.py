"""Who imports whom, read from the code of any checkout: `python -m tests.import_graph CHECKOUT VERB…`.

The closure of a verb: every file of the package that is read, now or later, once the verb's own file is imported.
Imports inside of functions count: a person who follows the verb has to open those files too. Imports for the type
checker alone do not, and neither do files that are imported by name once a recipe names them (`core/generators.py`).
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "ucotron_ray"


def module_files(checkout: Path) -> dict[str, Path]:
    """Dotted name → file, of every module of the package."""
    found = {}
    for path in sorted((checkout / PACKAGE).rglob("*.py")):
        parts = path.relative_to(checkout).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, files: dict[str, Path], *, lazy: bool = True) -> set[str]:
    """The package's modules that a file imports; with `lazy` those inside of functions too."""
    found = set()
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8")), lazy=lazy):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif node.level:
            raise ValueError(f"{path}: a relative import, which this does not follow")
        elif node.module:
            # `from package import module` names a module, `from module import name` does not.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in files else node.module for name in names}
    return found & files.keys()


def closure(start: str, files: dict[str, Path]) -> set[str]:
    """The modules that are reached from one, itself among them."""
    found, open_ends = set(), {start}
    while open_ends:
        name = open_ends.pop()
        found.add(name)
        open_ends |= imports_of(files[name], files) - found
    return found


def home_of(verb: str, files: dict[str, Path]) -> str:
    """The module that declares a verb: the one with `add_<verb>`."""
    wanted = f"def add_{verb.replace('-', '_')}("
    return next(name for name, path in files.items() if wanted in path.read_text(encoding="utf-8"))


def _nodes(node: ast.AST, *, lazy: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        elif lazy or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _nodes(child, lazy=lazy)


def main(checkout: Path, verbs: list[str]) -> None:
    """Print files and lines of each verb's closure."""
    files = module_files(checkout)
    for verb in verbs:
        reached = closure(home_of(verb, files), files)
        lines = sum(files[name].read_text(encoding="utf-8").count("\n") for name in reached)
        print(f"{verb:<12} {len(reached):>4} files {lines:>7,} lines")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
