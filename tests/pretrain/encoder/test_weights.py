"""Where weights are looked for, and errors that say what is wrong in one line."""

from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from data_prep.common.errors import UserError
from pretrain.encoder import weights as checkpoint

Asked = list[tuple[str, str | None]]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Name and revision of each download: a Hub that has `org/sam-v1.5`, and fails for others."""
    asked: Asked = []

    def download(name: str, revision: str | None = None, **patterns: list[str]) -> str:
        asked.append((name, revision))
        if name != "org/sam-v1.5":
            raise OSError("")
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(checkpoint, "snapshot_download", download)
    (tmp_path / "snapshot").mkdir()
    save_file({"weight": torch.zeros(1)}, tmp_path / "snapshot" / "encoder.safetensors")
    return asked


def test_the_hub_is_asked_for_what_begins_with_hf(asked: Asked, tmp_path: Path) -> None:
    file = tmp_path / "snapshot" / "encoder.safetensors"
    assert checkpoint.find_weights("hf:org/sam-v1.5") == file
    assert checkpoint.find_weights("hf:org/sam-v1.5@v2") == file
    assert asked == [("org/sam-v1.5", None), ("org/sam-v1.5", "v2")]


@pytest.mark.parametrize("name", ["org/sam-v1.5", "runs/pretrain", "folder/sam.pth", "encoder"])
def test_a_path_that_is_missing_is_not_looked_for_on_the_hub(
    name: str, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"^{name}: no such file or folder .*hf:org/name"):
        checkpoint.find_weights(name)
    assert asked == []


@pytest.mark.parametrize("name", ["hf:", "hf:sam", "hf://org/sam", "hf:org/sam/vit_b", "hf:org/s@"])
def test_what_is_no_name_on_the_hub_is_refused(name: str, asked: Asked) -> None:
    with pytest.raises(UserError, match=rf"^{name}: .*hf:org/name"):
        checkpoint.find_weights(name)
    assert asked == []


def test_errors_of_the_hub_are_one_line(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"^hf:org/absent: cannot be fetched \(OSError: OSError\)"):
        checkpoint.find_weights("hf:org/absent")
    (tmp_path / "snapshot" / "encoder.safetensors").unlink()
    with pytest.raises(UserError, match=r"^hf:org/sam-v1.5: has no encoder.safetensors"):
        checkpoint.find_weights("hf:org/sam-v1.5")

    def offline(name: str, **options: object) -> str:
        raise LocalEntryNotFoundError("\nno network\nmore") from ConnectionError("refused")

    monkeypatch.setattr(checkpoint, "snapshot_download", offline)
    with pytest.raises(
        UserError, match=r"cannot be fetched \(ConnectionError: refused\); check the network"
    ):
        checkpoint.find_weights("hf:org/sam-v1.5")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pth"
    empty.touch()
    with pytest.raises(UserError, match=r"cannot read weights from .*empty\.pth: \S+"):
        checkpoint.read_weights(empty)
