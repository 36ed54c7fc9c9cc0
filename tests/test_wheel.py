"""The wheel holds every module, and each can be imported from it."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("data_prep", "pretrain", "finetune")

IMPORT_ALL = """
import importlib, pkgutil, sys
from pathlib import Path

for package in sys.argv[2:]:
    names = [package]
    names += [m.name for m in pkgutil.walk_packages([f"{sys.argv[1]}/{package}"], f"{package}.")]
    for name in names:
        if not name.endswith(".__main__"):
            module = importlib.import_module(name)
            assert Path(module.__file__).is_relative_to(sys.argv[1]), module.__file__
            print(name)
"""


def modules(folder: Path) -> set[str]:
    """Dotted names of every module of the packages in a folder."""
    files = (path for name in PACKAGES for path in (folder / name).rglob("*.py"))
    names = {".".join(path.relative_to(folder).with_suffix("").parts) for path in files}
    return {name.removesuffix(".__init__") for name in names}


def test_every_module_is_imported_from_the_wheel(tmp_path):
    source, apart = tmp_path / "source", tmp_path / "apart"
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("samaritan-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
        assert tops == {*PACKAGES, f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}
        assert {f"{name}/py.typed" for name in PACKAGES} <= {*archive.namelist()}
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target"]
    subprocess.run([*install, str(apart), str(wheel)], check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, str(apart), *PACKAGES],
        cwd=tmp_path,
        env={"PYTHONPATH": str(apart)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    mains = {name for name in modules(ROOT) if name.endswith(".__main__")}
    assert {*done.stdout.split()} == modules(ROOT) - mains
