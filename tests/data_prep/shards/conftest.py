"""A small collection that grows and shrinks."""

from pathlib import Path

import pytest

from helpers.extended import save


@pytest.fixture
def images(tmp_path) -> Path:
    """Twelve images of grey values 0 to 11."""
    for value in range(12):
        save(tmp_path / "images" / f"{value:02d}.png", value)
    return tmp_path / "images"
