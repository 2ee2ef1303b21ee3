"""Facts of the installed Ray, read from its source: importing it takes seconds."""

import ast
import importlib.util
from pathlib import Path


def _field(class_name: str) -> set[str]:
    found = importlib.util.find_spec("ray")
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).with_name("runtime_env") / "runtime_env.py"
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            for entry in node.body:
                if isinstance(entry, ast.AnnAssign) and getattr(entry.target, "id", "") == "known_fields":
                    assert entry.value is not None
                    return set(ast.literal_eval(entry.value))
    raise AssertionError(f"{class_name} has no known_fields")


def known_keys() -> set[str]:
    """Public keys of a runtime environment, without those of other languages."""
    return {name for name in _field("RuntimeEnv") if not name.startswith("_")} - {"java_jars"}


def known_config_keys() -> set[str]:
    """Keys of its `config`."""
    return _field("RuntimeEnvConfig")
