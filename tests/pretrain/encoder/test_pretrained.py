"""An encoder from its weights, ready for features of an image."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from segment_anything.utils.transforms import ResizeLongestSide

from data_prep.common.errors import UserError
from pretrain.encoder import SamEncoder, build_encoder
from pretrain.encoder.pixels import PIXEL_MEAN, PIXEL_STD
from pretrain.sizes import SIZES


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with the weights of a vit_t trained at 224 pixels, and the encoder itself."""
    torch.manual_seed(0)
    encoder, folder = build_encoder("vit_t"), tmp_path_factory.mktemp("published")
    save_file(encoder.state_dict(), folder / "encoder.safetensors")
    (folder / "encoder.json").write_text(json.dumps({"name": "vit_t", "image_size": 224}))
    return folder, encoder


def test_it_knows_its_size_and_what_it_was_trained_on(published) -> None:
    folder, encoder = published
    for source in (folder, str(folder), folder / "encoder.safetensors"):
        loaded = SamEncoder.from_pretrained(source)
        assert (loaded.size, loaded.image_size, loaded.training) == (SIZES["vit_t"], 224, False)
    assert (loaded.pixel_mean, loaded.pixel_std) == (PIXEL_MEAN, PIXEL_STD)
    assert loaded.state_dict().keys() == encoder.state_dict().keys()
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_sam_checkpoint_was_trained_at_1024_pixels(published, tmp_path) -> None:
    _, encoder = published
    weights = {f"image_encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    torch.save(weights, tmp_path / "sam.pth")
    (tmp_path / "encoder.json").write_text("of another encoder")
    assert SamEncoder.from_pretrained(tmp_path / "sam.pth").image_size == 1024


@pytest.mark.parametrize("text", ["", "[]", '{"image_size": "224"}', '{"image_size": 100}'])
def test_a_damaged_description_is_refused(published, tmp_path, text) -> None:
    (tmp_path / "encoder.safetensors").symlink_to(published[0] / "encoder.safetensors")
    (tmp_path / "encoder.json").write_text(text)
    with pytest.raises(UserError, match=r"encoder\.json: image_size is not a positive multiple"):
        SamEncoder.from_pretrained(tmp_path)


def test_images_are_prepared_as_sam_prepares_them(published, tmp_path) -> None:
    encoder = SamEncoder.from_pretrained(published[0])
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    prepared = encoder.preprocess(pixels)
    assert prepared.shape == (1, 3, 224, 224) and prepared.dtype == torch.float32
    resized = torch.from_numpy(ResizeLongestSide(224).apply_image(pixels)).movedim(2, 0)[None]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    expected = (resized.float() - mean) / std
    assert expected.shape[2:] == (149, 224) and not prepared[:, :, 149:].any()
    # Pillow and torch round the resized pixels apart
    assert (prepared[:, :, :149] - expected).abs().max() < 1.1 / min(encoder.pixel_std)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    for path in (tmp_path / "image.png", str(tmp_path / "image.png")):
        assert torch.equal(encoder.preprocess(path), prepared)
    grey = encoder.preprocess(pixels[..., 0])
    assert torch.equal(grey, encoder.preprocess(pixels[..., [0, 0, 0]]))


def test_what_is_no_picture_is_refused(published, tmp_path) -> None:
    encoder = SamEncoder.from_pretrained(published[0])
    (tmp_path / "text.png").write_text("text")
    for name in ("text.png", "absent.png"):
        with pytest.raises(UserError, match=rf"{name}: cannot be read as a picture"):
            encoder.preprocess(tmp_path / name)
