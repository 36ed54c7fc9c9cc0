"""An exported encoder is loaded by the library it was exported for, and gives equal outputs."""

import json
from functools import partial

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.build_sam import _build_sam
from torch import nn
from transformers import SamImageProcessor, SamVisionModel

from data_prep.common.cli import run_program
from pretrain.__main__ import COMMANDS
from pretrain.encoder import SamEncoder, build_encoder
from pretrain.publish.config import ExportOptions
from pretrain.publish.export import WRITERS, segment_anything_weights
from pretrain.sizes import SIZES, EncoderSize

TINY = EncoderSize(width=32, depth=2, heads=2, global_blocks=(1,))
SAM_NORM = partial(nn.LayerNorm, eps=1e-6)


def drawn(encoder: SamEncoder) -> SamEncoder:
    """Every parameter moved at random: zeros (positions, biases) would hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return encoder.eval()


@pytest.fixture(scope="module")
def tiny() -> SamEncoder:
    torch.manual_seed(0)
    return drawn(SamEncoder(TINY))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run folder with a checkpoint of a vit_t, and that encoder."""
    torch.manual_seed(0)
    encoder, run = drawn(build_encoder("vit_t")), tmp_path_factory.mktemp("runs") / "run"
    checkpoint = run / "checkpoints" / "step-00000003"
    checkpoint.mkdir(parents=True)
    save_file(encoder.state_dict(), checkpoint / "encoder.safetensors")
    (checkpoint / "encoder.json").write_text(json.dumps({"name": "vit_t", "image_size": 224}))
    return run, encoder


def images(pixels: int) -> torch.Tensor:
    return torch.randn(1, 3, pixels, pixels, generator=torch.Generator().manual_seed(pixels))


@torch.no_grad()
def assert_equal_outputs(encoder, other, pixels):
    expected = encoder(images(pixels))
    assert expected.std() > 0.1
    torch.testing.assert_close(other(images(pixels)), expected, rtol=0, atol=1e-4)


def export(*options: str) -> None:
    run_program("python -m pretrain", COMMANDS, ["export", *options])


@pytest.mark.parametrize("pixels", [224, 448, 1024])
def test_transformers_loads_it(tiny, tmp_path, pixels) -> None:
    options = ExportOptions(
        encoder="", to="transformers", output=tmp_path / "model", image_size=pixels
    )
    WRITERS["transformers"](tiny, options)
    model, report = SamVisionModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values()), report
    assert_equal_outputs(tiny, lambda pixels: model(pixels).last_hidden_state, pixels)


def test_timm_loads_it_at_any_size(tiny, tmp_path) -> None:
    options = ExportOptions(encoder="", to="timm", output=tmp_path / "model")
    WRITERS["timm"](tiny, options)
    name = f"local-dir:{tmp_path / 'model'}"
    model = timm.create_model(name, pretrained=True, norm_layer=SAM_NORM).eval()
    for pixels in (224, 1024):
        assert_equal_outputs(tiny, model.forward_features, pixels)
    data = timm.data.resolve_model_data_config(model)
    assert data["input_size"] == [3, 1024, 1024]
    assert np.allclose(np.array(data["mean"]) * 255, tiny.pixel_mean)


def test_segment_anything_loads_it_with_sams_decoder(tiny, tmp_path) -> None:
    torch.manual_seed(5)
    sam = _build_sam(16, 1, 1, [0])
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    options = ExportOptions(
        encoder="", to="segment_anything", output=tmp_path / "out.pth", sam=tmp_path / "sam.pth"
    )
    lines = WRITERS["segment_anything"](tiny, options)
    assert "no custom; its builder" in lines[0] and "masks need training first" in lines[-1]
    loaded = _build_sam(32, 2, 2, [1], checkpoint=tmp_path / "out.pth")
    assert_equal_outputs(tiny, loaded.image_encoder, 1024)
    for name in ("prompt_encoder", "mask_decoder"):
        expected = getattr(sam, name).state_dict()
        for key, tensor in getattr(loaded, name).state_dict().items():
            assert torch.equal(tensor, expected[key]), key


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_names_and_shapes_are_those_of_the_libraries(name) -> None:
    """Sizes that are too large to be run in a test, without memory for their values."""
    from pretrain.publish.export import TIMM_NAMES, timm_weights

    with torch.device("meta"):
        sam = sam_model_registry[name]()
        vision = timm.create_model(TIMM_NAMES[name], num_classes=0)
        ours = SamEncoder.__new__(SamEncoder)
        nn.Module.__init__(ours)
        ours.state_dict = sam.image_encoder.state_dict
    for expected, found in (
        (vision.state_dict(), timm_weights(ours)),
        (sam.state_dict(), segment_anything_weights(ours, {}, "")),
    ):
        assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in expected.items()}


def test_a_run_is_exported_as_its_line_says(run_folder, tmp_path, capsys) -> None:
    """What the command prints is Python that loads what it wrote."""
    run, encoder = run_folder
    loaded = {}
    for library, name in (("segment_anything", "sam.pth"), ("transformers", "t"), ("timm", "m")):
        small = ["--image_size=224"] if library == "transformers" else []
        export(f"--encoder={run}", f"--to={library}", f"--output={tmp_path / name}", *small)
        lines = capsys.readouterr().out.splitlines()
        (code,) = [line for line in lines if "import" in line]
        exec(code, loaded)
        if library == "segment_anything":
            assert "prompt encoder and mask decoder are new and untrained" in "".join(lines)
            image = np.zeros((64, 64, 3), np.uint8)
            predictor = SamPredictor(loaded["sam"])
            predictor.set_image(image)
            embedding = encoder(predictor.model.preprocess(torch.zeros(1, 3, 1024, 1024)))
            torch.testing.assert_close(predictor.features, embedding, rtol=0, atol=1e-4)
            assert predictor.predict(np.array([[9, 9]]), np.array([1]))[0].shape == (3, 64, 64)
        elif library == "timm":
            assert_equal_outputs(encoder, loaded["model"].eval().forward_features, 224)
        else:
            model = loaded["model"]
            assert_equal_outputs(encoder, lambda x, m=model: m(x).last_hidden_state, 224)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "sam.pth", "t"]


def test_a_sam_checkpoint_keeps_its_own_decoder(run_folder, tmp_path, capsys) -> None:
    torch.manual_seed(3)
    size = SIZES["vit_t"]
    sam = _build_sam(size.width, size.depth, size.heads, list(size.global_blocks)).state_dict()
    torch.save(sam, tmp_path / "sam.pth")
    output = tmp_path / "again.pth"
    export(f"--encoder={tmp_path / 'sam.pth'}", "--to=segment_anything", f"--output={output}")
    again = torch.load(output, weights_only=True)
    assert again.keys() == sam.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in sam.items())
    assert "untrained" not in capsys.readouterr().out


def test_transformers_prepares_images_as_the_encoder_does(tiny, tmp_path) -> None:
    tiny.image_size = 224
    options = ExportOptions(
        encoder="", to="transformers", output=tmp_path / "model", image_size=224
    )
    WRITERS["transformers"](tiny, options)
    rng = np.random.default_rng(0)
    pixels = np.array(Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((300, 200)))
    processor = SamImageProcessor.from_pretrained(tmp_path / "model")
    prepared = processor(images=pixels, return_tensors="pt")["pixel_values"]
    ours = tiny.preprocess(pixels)
    tiny.image_size = 1024
    assert prepared.shape == ours.shape
    # both round the resized pixels, not always to the same side
    assert (prepared - ours)[:, :, :149].abs().max() < 1.1 / min(tiny.pixel_std)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--to=onnx", "--output={tmp}/m"), "--to: 'onnx' is not one of segment_anything, transf"),
        (("--to=segment_anything", "--output={tmp}/m"), "must end in .pth for segment_anything"),
        (("--to=timm", "--output={tmp}/m", "--sam=x"), "timm gets the image encoder alone; leave"),
        (("--to=timm", "--output={tmp}/m", "--image_size=224"), "image_size: is for transformers"),
        (("--to=transformers", "--output={tmp}/m", "--image_size=100"), "positive multiple of 16"),
        (("--to=timm", "--output={tmp}"), "is there already; name another"),
        (("--to=timm", "--output={tmp}/m", "--encoder=absent"), "absent: no such file or folder"),
        (("--to=segment_anything", "--output={tmp}/m.pth", "--sam={run}"), "holds no prompt enco"),
    ],
)
def test_what_cannot_be_exported_is_one_line(options, reason, run_folder, tmp_path, capsys) -> None:
    (tmp_path / "file").touch()
    run = run_folder[0]
    with pytest.raises(SystemExit):
        export(f"--encoder={run}", *(text.format(tmp=tmp_path, run=run) for text in options))
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_breaks_off_leaves_nothing(tiny, run_folder, tmp_path, monkeypatch) -> None:
    def full(weights, path, **options):
        path.write_bytes(b"part")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("pretrain.publish.export.save_file", full)
    monkeypatch.setattr(torch, "save", full)
    for library, name in (("timm", "m"), ("segment_anything", "m.pth")):
        options = ExportOptions(encoder=str(run_folder[0]), to=library, output=tmp_path / name)
        with pytest.raises(OSError, match="No space left"):
            WRITERS[library](tiny, options)
    assert list(tmp_path.iterdir()) == []
