"""What a first mask need not wait for is not imported."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[3]
HEAVY = (
    *("accelerate", "datasets", "huggingface_hub", "lightly", "matplotlib", "monai", "nilearn"),
    *(
        "pandas",
        "pyarrow",
        "scipy",
        "sklearn",
        "tensorboard",
        "timm",
        "torchvision",
        "transformers",
    ),
    "webdataset",
)
MEDICAL = ("highdicom", "nibabel", "pydicom")


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a process of its own has imported by the end of some code."""
    script = f"{code}\nimport sys\nprint('LOADED', *{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.rpartition("LOADED")[2].split())


def test_the_command_alone_needs_no_pytorch():
    loaded = loaded_after("import finetune.inference.predict")
    assert not loaded & {*HEAVY, *MEDICAL, "torch", "cv2"}


def test_a_mask_that_is_there_is_refused_before_anything_heavy_or_the_hub(tmp_path):
    for name in ("photo.png", "mask.png"):
        Image.fromarray(np.zeros((50, 70), np.uint8)).save(tmp_path / name)
    options = [f"--input={tmp_path / 'photo.png'}", f"--output={tmp_path / 'mask.png'}"]
    options += ["--run=hf:clinic/absent", "--clicks=9,9,1"]
    loaded = loaded_after(
        f"""
import contextlib
from data_prep.common.cli import run_program
from finetune.__main__ import COMMANDS
with contextlib.suppress(SystemExit):
    run_program("finetune", COMMANDS, ["predict", *{options}])
    raise AssertionError("it was not refused")
"""
    )
    assert not loaded & {*HEAVY, *MEDICAL, "torch"}


@pytest.fixture
def files(run_folder, tmp_path):
    Image.fromarray(np.zeros((50, 70), np.uint8)).save(tmp_path / "photo.png")
    return f"{run_folder}", f"{tmp_path / 'photo.png'}", f"{tmp_path / 'mask.png'}"


def test_a_mask_needs_neither_training_nor_medical_readers(files):
    run, photo, mask = files
    loaded = loaded_after(
        f"""
from pretrain.sizes import SIZES, EncoderSize
SIZES["tiny"] = EncoderSize(width=32, depth=2, heads=2, global_blocks=(1,))
from data_prep.common.cli import run_program
from finetune.__main__ import COMMANDS
files = ["--run", {run!r}, "--input", {photo!r}, "--output", {mask!r}]
run_program("finetune", COMMANDS, ["predict", *files, "--clicks", "9,9,1", "--device", "cpu"])
"""
    )
    assert Path(mask).is_file() and "torch" in loaded
    assert not loaded & {*HEAVY, *MEDICAL}
