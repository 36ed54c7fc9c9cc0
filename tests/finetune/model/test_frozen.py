"""What a segmenter loads, freezes, trains, and keeps in its file of trained weights."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from data_prep.common.components import Component
from data_prep.common.errors import UserError
from data_prep.common.files import write_json
from finetune.config import ModelConfig
from finetune.inference.loading import restore
from finetune.model.building import build_model
from finetune.model.segmenter import Segmenter
from pretrain.engine.checkpoint import Checkpoint
from pretrain.sizes import SIZES, EncoderSize

TINY = EncoderSize(width=32, depth=2, heads=2, global_blocks=(1,))


@pytest.fixture(autouse=True)
def tiny_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "tiny", TINY)
    torch.manual_seed(0)


def randomise(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)


def sam_file(folder: Path) -> Path:
    """A checkpoint in the form of the official ones, unlike a new model in every weight."""
    model = build_model(ModelConfig("tiny"))
    randomise(model)
    path = folder / "sam.pth"
    torch.save(model.state_dict(), path)
    return path


def encoder_file(folder: Path) -> Path:
    """Encoder weights as stage one saves them."""
    weights = build_model(ModelConfig("tiny")).image_encoder.state_dict()
    path = folder / "encoder.safetensors"
    save_file(weights, path)
    return path


ADAPTERS = {
    "encoder_adapter": Component("finetune.adapters.MsaAdapter"),
    "decoder_adapter": Component("finetune.adapters.MsaDecoderAdapter"),
}


def states(segmenter: Segmenter) -> dict[str, str]:
    return {part.name: part.state for part in segmenter.describe()}


def test_only_loaded_weights_are_frozen(tmp_path: Path) -> None:
    config = ModelConfig("tiny", 224, **ADAPTERS, trained=["mask_decoder.transformer.layers.1.*"])
    sam, stage_one = sam_file(tmp_path), encoder_file(tmp_path)
    decoder = {
        "prompt_encoder": "frozen",
        "mask_decoder.transformer.layers.0": "frozen",
        "mask_decoder.transformer.layers.1": "trained",
        "mask_decoder": "frozen",
        "image_encoder adapters": "trained",
        "mask_decoder adapters": "trained",
    }
    new = dict.fromkeys(decoder, "trained")
    frozen_encoder = {"image_encoder": "frozen", "image_encoder.neck": "frozen"}
    untrained_neck = {"image_encoder": "frozen", "image_encoder.neck": "trained"}

    assert states(build_model(config, sam_checkpoint=sam)) == decoder | frozen_encoder
    assert states(build_model(config, (), stage_one, sam)) == decoder | untrained_neck
    assert states(build_model(config, (), stage_one)) == new | untrained_neck
    assert states(build_model(config, (), sam)) == decoder | frozen_encoder  # it has a decoder
    assert states(build_model(config, (), sam, whole=False)) == new | frozen_encoder
    assert set(states(build_model(config)).values()) == {"trained"}
    config.trained = ["mask_decoder.iou_*"]
    assert states(build_model(config, sam_checkpoint=sam))["mask_decoder"] == "mixed"


def test_weights_come_from_the_files_named(tmp_path: Path) -> None:
    sam, stage_one = sam_file(tmp_path), encoder_file(tmp_path)
    run = tmp_path / "run" / "checkpoints" / "step-00000002"
    run.mkdir(parents=True)
    stage_one.rename(run / "encoder.safetensors")
    segmenter = build_model(ModelConfig("tiny", 224), (), tmp_path / "run", sam)
    official = torch.load(sam, weights_only=True)
    for key, value in segmenter.state_dict().items():
        assert torch.equal(value, official[key]) != key.startswith("image_encoder."), key
    assert {part.name: Path(part.source).name for part in segmenter.describe()} == {
        "image_encoder": "encoder.safetensors",
        "image_encoder.neck": "encoder.safetensors",
        "prompt_encoder": "sam.pth",
        "mask_decoder.transformer.layers.0": "sam.pth",
        "mask_decoder.transformer.layers.1": "sam.pth",
        "mask_decoder": "sam.pth",
    }
    counted = sum(part.parameters for part in segmenter.describe())
    assert counted == sum(p.numel() for p in segmenter.parameters())
    assert {part.source for part in build_model(ModelConfig("tiny")).describe()} == {"new"}


def test_checkpoints_that_do_not_fit_are_refused_by_key(tmp_path: Path) -> None:
    path = sam_file(tmp_path)
    good = torch.load(path, weights_only=True)
    stage_one = encoder_file(tmp_path)
    head = "mask_decoder.iou_prediction_head.layers.0.weight"
    broken = {
        head: {k: v for k, v in good.items() if k != head},
        "mask_decoder.extra": good | {"mask_decoder.extra": torch.zeros(1)},
        "module.thing": good | {"module.thing": torch.zeros(1)},
        "mask_decoder.mask_tokens.weight": good
        | {"mask_decoder.mask_tokens.weight": torch.zeros(7, 256)},
    }
    for key, weights in broken.items():
        torch.save(weights, path)
        for encoder in (None, stage_one):
            with pytest.raises(UserError, match=key):
                build_model(ModelConfig("tiny"), (), encoder, path)
    torch.save({k: v for k, v in good.items() if k != "image_encoder.pos_embed"}, path)
    with pytest.raises(UserError, match=r"image_encoder\.pos_embed"):
        build_model(ModelConfig("tiny"), (), None, path)
    with pytest.raises(UserError, match="nowhere"):
        build_model(ModelConfig("tiny"), (), None, tmp_path / "nowhere.pth")


def test_configs_that_cannot_be_built_are_refused() -> None:
    with pytest.raises(UserError, match=r"230.*multiple of 16"):
        build_model(ModelConfig("tiny", 230))
    with pytest.raises(UserError, match="vit_x"):
        build_model(ModelConfig("vit_x"))
    with pytest.raises(UserError, match="mask_decodr"):
        build_model(ModelConfig("tiny", trained=["mask_decodr.*"]))


def test_trained_weights_alone_restore_the_model(tmp_path: Path) -> None:
    config = ModelConfig("tiny", 224, **ADAPTERS)
    stage_one = encoder_file(tmp_path)
    torch.manual_seed(5)
    first = build_model(config, (), stage_one)
    randomise(first.image_encoder.blocks[0].adapter)
    weights = first.trained_state_dict()
    trained = {name for name, p in first.named_parameters() if p.requires_grad}
    fourier = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    assert set(weights) == trained | {fourier}  # drawn at random, so the file must hold it
    save_file(weights, tmp_path / "trained.safetensors")

    torch.manual_seed(6)
    second = build_model(config, (), stage_one)
    second.load_trained(weights, "trained.safetensors")
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key

    with pytest.raises(UserError, match=r"frozen in this model: image_encoder\.blocks\.0\.attn"):
        second.load_trained(build_model(config).trained_state_dict(), "other")
    weights.pop(fourier)
    with pytest.raises(UserError, match=f"missing: {fourier}"):
        second.load_trained(weights, "other")


def test_frozen_weights_from_a_file_that_changed_are_refused(tmp_path: Path) -> None:
    run, checkpoint = tmp_path / "run", tmp_path / "checkpoint"
    run.mkdir()
    checkpoint.mkdir()
    sam = sam_file(tmp_path)
    encoder_file(run)
    segmenter = build_model(ModelConfig("tiny"), (), run, sam)
    sources = segmenter.frozen_sources()
    digests = {
        "image_encoder": hashlib.sha256((run / "encoder.safetensors").read_bytes()).hexdigest(),
        "mask_decoder": hashlib.sha256(sam.read_bytes()).hexdigest(),
        "prompt_encoder": hashlib.sha256(sam.read_bytes()).hexdigest(),
    }
    assert sources == [{"part": part, "sha256": digest} for part, digest in digests.items()]
    save_file(segmenter.trained_state_dict(), checkpoint / "segmenter.safetensors")
    restore(segmenter, Checkpoint(checkpoint))  # nothing recorded
    write_json(checkpoint / "sources.json", sources)
    restore(build_model(ModelConfig("tiny"), (), run, sam), Checkpoint(checkpoint))

    encoder_file(run)  # the run has trained on
    assert segmenter.frozen_sources() == sources  # of what was loaded, not of what is there now
    moved = build_model(ModelConfig("tiny"), (), run, sam)
    with pytest.raises(UserError, match=r"other image_encoder weights than .*encoder\.safetensors"):
        restore(moved, Checkpoint(checkpoint))
    whole = build_model(ModelConfig("tiny", trained=["image_encoder.*"]), (), run, sam)
    save_file(whole.trained_state_dict(), checkpoint / "segmenter.safetensors")
    restore(whole, Checkpoint(checkpoint))  # the encoder is in the checkpoint itself
    assert build_model(ModelConfig("tiny")).frozen_sources() == []


def test_with_sam_loaded_the_trained_weights_are_adapters_and_what_is_named(tmp_path: Path) -> None:
    config = ModelConfig("tiny", 224, **ADAPTERS, trained=["mask_decoder.iou_token.*"])
    segmenter = build_model(config, sam_checkpoint=sam_file(tmp_path))
    others = [key for key in segmenter.trained_state_dict() if ".adapter." not in key]
    assert others == ["mask_decoder.iou_token.weight"]
