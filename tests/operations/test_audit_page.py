"""docs/audit.md names every record that the code writes, and no other."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "audit.md"


def _modules() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((ROOT / "gateway").rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def _writers(module: ast.Module) -> dict[str, set[int]]:
    """The functions of a module that are given a `subtype`, and where among their arguments it stands."""
    found: dict[str, set[int]] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef):
            names = [each.arg for each in node.args.args if each.arg not in ("self", "cls")]
            if "subtype" in names:
                found.setdefault(node.name, set()).add(names.index("subtype"))
    return found


def _texts(node: ast.expr) -> set[str] | None:
    """The texts that an expression may be; None where only the run tells."""
    if isinstance(node, ast.Constant):
        return {str(node.value)}
    if isinstance(node, ast.IfExp):  # a choice between texts
        texts = (_texts(node.body), _texts(node.orelse))
        return None if None in texts else {text for each in texts if each is not None for text in each}
    return None


def written() -> tuple[set[str], list[str]]:
    """The subtypes in the code, and the places that do not say which they write."""
    modules = dict(_modules())
    everywhere = {
        f"{'.'.join(path.relative_to(ROOT).with_suffix('').parts)}.{name}": places
        for path, module in modules.items()
        for name, places in _writers(module).items()
    }
    found: set[str] = set()
    unclear: list[str] = []
    for path, module in modules.items():
        writers = _writers(module) | {"AuditEvent": set()}
        for node in ast.walk(module):
            if isinstance(node, ast.ImportFrom):
                names = {each.name: f"{node.module}.{each.name}" for each in node.names}
                writers |= {name: everywhere[full] for name, full in names.items() if full in everywhere}
        for node in ast.walk(module):
            if isinstance(node, ast.Assign) and any(getattr(each, "id", "") == "subtype" for each in node.targets):
                found |= _texts(node.value) or set()
            name = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
            if not isinstance(node, ast.Call) or name not in writers:
                continue
            given = [each.value for each in node.keywords if each.arg == "subtype"]
            given += [node.args[place] for place in writers[name] if place < len(node.args)]
            for expression in given:
                texts = _texts(expression)
                if texts is not None:
                    found |= texts
                elif ast.dump(expression) != ast.dump(ast.Name("subtype", ast.Load())):
                    unclear.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return found, unclear


def told() -> list[str]:
    return re.findall(r"^\| `([a-z-]+)` \| \d{6}", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_every_record_is_on_the_page() -> None:
    found, unclear = written()
    assert unclear == []
    assert {"login-refused", "analysis-created", "purge-begun", "application-started"} <= found
    assert set(told()) == found


def test_the_page_names_each_once() -> None:
    assert len(told()) == len(set(told()))
