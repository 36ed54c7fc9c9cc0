"""Every room imports only from the rooms above it in CONTRIBUTING.md."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("data_prep", "pretrain", "finetune")


def rooms() -> list[str]:
    """Dotted names of all rooms, the lowest first."""
    table = (ROOT / "CONTRIBUTING.md").read_text()
    found = re.findall(r"^\| `((?:data_prep|pretrain|finetune)/[\w/.]+)` \|", table, re.MULTILINE)
    return [name.removesuffix(".py").replace("/", ".") for name in found]


def room_of(module: str) -> int:
    """Position of the room that a module is in."""
    order = rooms()
    for position, room in enumerate(order):
        if module == room or module.startswith(f"{room}."):
            return position
    raise AssertionError(f"{module} is in no room that CONTRIBUTING.md lists")


def modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path: Path) -> Iterator[str]:
    """Modules of this project that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            known = {name for name, _ in modules()}
            yield from (name if name in known else str(node.module) for name in names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize(
    ("module", "path"), [pytest.param(*found, id=found[0]) for found in modules()]
)
def test_imports_go_down(module: str, path: Path) -> None:
    if module in PACKAGES:
        assert not [name for name in imports(path) if name.split(".")[0] in PACKAGES]
        return
    room = room_of(module)
    for imported in imports(path):
        if imported.split(".")[0] in PACKAGES:
            assert room_of(imported) <= room, f"{module} imports {imported}, which is above it"


def test_every_room_is_there() -> None:
    for room in rooms():
        path = ROOT / room.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), room


def test_a_wrong_import_would_be_found(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "import numpy\n"
        "import data_prep.readers.dicom\n"
        "from pretrain.encoder import sam\n"
        "def late():\n"
        "    from finetune.evaluation.evaluate import evaluate\n"
    )
    found = {name for name in imports(path) if name.split(".")[0] in PACKAGES}
    expected = {"data_prep.readers.dicom", "pretrain.encoder.sam", "finetune.evaluation.evaluate"}
    assert found == expected
    assert all(room_of(name) > room_of("data_prep.common.cli") for name in found)


def test_files_are_short_and_begin_with_what_they_are() -> None:
    for module, path in modules():
        text = path.read_text()
        assert ast.get_docstring(ast.parse(text)), f"{module} has no docstring"
        assert text.count("\n") <= 330, f"{module} has {text.count(chr(10))} lines"
