"""segment_anything's modules are its own, whoever is the first to import them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
OURS = "import sys, pretrain.encoder.stock as ours"
ALONE = "assert not {'torchvision', 'torch._dynamo'} & set(sys.modules)"
THEIRS = "import segment_anything as theirs"
SAME = """
from segment_anything.modeling.image_encoder import Block
assert theirs.modeling.ImageEncoderViT is ours.ImageEncoderViT and Block is ours.Block
assert theirs.modeling.MaskDecoder is ours.MaskDecoder and callable(theirs.SamPredictor)
"""


@pytest.mark.parametrize("code", [[OURS, ALONE, THEIRS, SAME], [THEIRS, OURS, SAME]])
def test_the_package_and_its_modules_alone_are_the_same(code):
    subprocess.run([sys.executable, "-c", "\n".join(code)], cwd=ROOT, check=True)
