"""Where weights are looked for, and errors that say what is wrong in one line."""

from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from data_prep.common.errors import UserError
from pretrain.encoder import weights as checkpoint


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for the Hub: it has `org/sam-v1.5`, and fails without a word for all others."""

    def download(name: str, allow_patterns: list[str]) -> str:
        if name != "org/sam-v1.5":
            raise OSError("")
        return str(tmp_path)

    monkeypatch.setattr(checkpoint, "snapshot_download", download)
    save_file({"weight": torch.zeros(1)}, tmp_path / "encoder.safetensors")
    return tmp_path


def test_names_with_a_dot_are_looked_for_on_the_hub(hub: Path) -> None:
    assert checkpoint.find_weights("org/sam-v1.5") == hub / "encoder.safetensors"


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors", ".ckpt"])
def test_files_that_are_missing_are_not(suffix: str, hub: Path) -> None:
    with pytest.raises(UserError, match=rf"folder/sam\{suffix}: no such file or folder"):
        checkpoint.find_weights(f"folder/sam{suffix}")


def test_an_error_that_says_nothing_is_told_by_its_name(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UserError, match=r"org/absent was found neither locally nor on the Hub: OSError$"
    ):
        checkpoint.find_weights("org/absent")

    def offline(name: str, allow_patterns: list[str]) -> str:
        raise LocalEntryNotFoundError("\nno network\nmore")

    monkeypatch.setattr(checkpoint, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"Hub: no network$"):
        checkpoint.find_weights("org/absent")
    empty = hub / "empty.pth"
    empty.touch()
    with pytest.raises(UserError, match=r"cannot read weights from .*empty\.pth: \S+"):
        checkpoint.read_weights(empty)
