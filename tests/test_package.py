"""The package: what it exports, which files ship with it, and that nothing depends on the current folder."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import src
from src.core import shipped

ROOT = Path(__file__).parents[1]


def python(code: str, folder: Path = ROOT) -> str:
    """Return what a program prints that runs in a process of its own."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", src.__all__)
def test_every_public_name_is_there(name):
    assert getattr(src, name) is not None
    assert name in dir(src)


def test_the_list_of_names_the_modules_and_the_imports_for_type_checkers_agree():
    tree = ast.parse(Path(src.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = {name.name: f".{node.module}" for node in block.body for name in node.names}
    assert imports == src._MODULES
    assert {*imports, "__version__"} == set(src.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        src.no_such_name  # noqa: B018


def test_importing_the_package_imports_neither_torch_nor_sam2():
    assert python("import src; print(sorted({'torch', 'sam2', 'numpy', 'pydantic'} & sys.modules.keys()))") == "[]"


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for path in (ROOT / "src").rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


class TestShipped:
    def test_what_ships_is_found_from_any_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert shipped.find_file("checkpoints/sam2_nano.safetensors").is_file()
        assert shipped.find_file("data/sample/train").is_dir()
        for name in ("mope.yaml", "configs/mope.yaml", "src/configs/mope.yaml"):
            assert shipped.find_config(name) == ROOT / "src/configs/mope.yaml"

    def test_files_that_exist_come_first(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "mope.yaml").touch()
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints/sam2_nano.safetensors").touch()
        for find, name in (
            (shipped.find_config, "mope.yaml"),
            (shipped.find_file, "checkpoints/sam2_nano.safetensors"),
        ):
            assert find(name) == Path(name)

    @pytest.mark.parametrize("name", ["none.yaml", "other/mope.yaml", "../configs/mope.yaml"])
    def test_other_names_stay_as_they_are(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert shipped.find_config(name) == Path(name)
        assert shipped.find_file(name) == Path(name)
        assert shipped.find_file("pyproject.toml") == Path("pyproject.toml")


def test_a_wheel_has_all_packages_and_what_ships(tmp_path):
    """Built without a network, with the setuptools that is at hand."""
    pytest.importorskip("setuptools")
    code = f"import setuptools.build_meta as b; print(b.build_wheel({str(tmp_path)!r}, {{}}))"
    copy = tmp_path / "clone"
    for folder in ("src", "checkpoints", "data"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "*.pt"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    wheel = tmp_path / python(code, copy).splitlines()[-1]
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {f"sam2_mope/{path.relative_to(copy / 'src')}" for path in (copy / "src").rglob("*.py")}
    data = {f"sam2_mope/configs/{path.name}" for path in (copy / "src/configs").glob("*.yaml")}
    assert modules | data <= names
    assert "sam2_mope/py.typed" in names
    assert "sam2_mope/shipped/checkpoints/sam2_nano.safetensors" in names
    assert "sam2_mope/shipped/checkpoints/sam3_nano/model.safetensors" in names
    assert "sam2_mope/shipped/data/sample/train/_annotations.coco.json" in names
    assert not [name for name in names if not name.startswith(("sam2_mope/", "sam2_mope-"))]
