"""Cached embeddings train as computed ones do, and whatever happens to their files is survived."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from data_prep.common.cli import run_command
from data_prep.common.errors import UserError
from data_prep.common.parsing import parse
from finetune.config import ModelConfig, SegmentationDataConfig, TrainConfig
from finetune.data.dataset import SegmentationDataset, View, collate
from finetune.data.embeddings import LEFT_OVER, EmbeddingCache
from finetune.model.building import build_model
from finetune.stage import SegmentationStage
from finetune.train import COMMAND
from pretrain.encoder.sam import SamEncoder
from pretrain.sizes import SIZES, EncoderSize

CPU = torch.device("cpu")
BATCH = 4
PLAIN = ["--model.encoder_adapter=null", "--model.decoder_adapter=null", "--data.views=1"]

pytestmark = pytest.mark.filterwarnings("ignore:.*pad SAM's attention windows")


@pytest.fixture(autouse=True)
def sam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A whole SAM checkpoint of a tiny encoder."""
    monkeypatch.setitem(SIZES, "tiny", EncoderSize(32, 2, 2, (1,)))
    torch.manual_seed(0)
    path = tmp_path / "sam.pth"
    torch.save(build_model(ModelConfig("tiny")).state_dict(), path)
    return path


@pytest.fixture
def words(labelled_shards: Path, sam: Path, tmp_path: Path) -> list[str]:
    """Options of a run whose encoder is frozen; 16 images, each in one view."""
    options = [f"--data.shards={labelled_shards}", f"--sam={sam}", *PLAIN]
    options += ["--model.image_size=64", "--model.trained=[mask_decoder.*]", "--prompts.rounds=1"]
    options += [f"--optim.batch_size={BATCH}", "--optim.warmup_steps=0", "--threads=1"]
    return [*options, "--data.workers=0", f"--output={tmp_path / 'run'}"]


def stage_of(words: list[str], *more: str) -> SegmentationStage:
    torch.manual_seed(0)
    return SegmentationStage(parse(TrainConfig, "train", [*words, *more])[0], CPU)


def batch_at(stage: SegmentationStage, position: int) -> Any:
    order = [int(index) for epoch in range(4) for index in stage.dataset.order(epoch)]
    draws = range(position, position + BATCH)
    return stage.collate([stage.dataset[order[draw], draw] for draw in draws])


def loss_of(stage: SegmentationStage, position: int) -> torch.Tensor:
    return stage.losses(stage.model, batch_at(stage, position), position)[0].detach()


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of the encoder took."""
    calls: list[int] = []
    features = SamEncoder.features

    def counted(encoder: SamEncoder, images: torch.Tensor, *more: Any) -> torch.Tensor:
        calls.append(len(images))
        return features(encoder, images, *more)

    monkeypatch.setattr(SamEncoder, "features", counted)
    return calls


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*/*.safetensors"))


@pytest.mark.parametrize("trained", ["mask_decoder.*", "mask_decoder.*, image_encoder.neck.*"])
def test_a_run_with_the_cache_has_the_losses_of_one_without(
    words, encoded, tmp_path, read_losses, trained
) -> None:
    """Also where the neck is trained, as that of an encoder of stage one is."""
    words, runs = [*words, f"--model.trained=[{trained}]"], []
    for name, cache in (("without", "null"), ("with", str(tmp_path / "cache"))):
        encoded.clear()
        options = ["--optim.steps=10", "--log_every=1", f"--data.cache={cache}"]
        run = tmp_path / name
        run_command("finetune/train.py", COMMAND, [*words, *options, f"--output={run}"])
        AcceleratorState._reset_state(reset_partial_state=True)
        runs.append(read_losses(run))
        assert sum(encoded) == (40 if cache == "null" else 16)
    assert len(runs[0]) == 10
    for one, other in zip(*runs, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert other[key] == pytest.approx(value, rel=1e-5, abs=1e-7), key
    assert len(entries(tmp_path / "cache")) == 16


def test_a_cache_lasts_from_run_to_run_but_only_for_the_same_pixels_and_encoder(
    words, encoded, tmp_path, sam
) -> None:
    words = [*words, f"--data.cache={tmp_path / 'cache'}"]
    first = loss_of(stage_of(words), 0)
    assert encoded == [BATCH]
    same = ("--data.validation=0.0", "--optim.lr=1e-3", "--data.views=3", "--loss.bce=1")
    assert torch.equal(loss_of(stage_of(words, *same), 0), first)
    assert encoded == [BATCH]
    for other in (
        ("--seed=1",),
        ("--precision=bf16",),
        ("--data.augmentation.gamma=0.3",),
        ("--data.split=test",),
    ):
        loss_of(stage_of(words, *other), 0)
        assert encoded.pop() == BATCH, other
    weights = torch.load(sam, weights_only=True)
    weights["image_encoder.blocks.1.mlp.lin2.bias"][3] += 1e-3
    torch.save(weights, sam)
    loss_of(stage_of(words), 0)
    assert encoded == [BATCH, BATCH]
    assert len(list((tmp_path / "cache").glob("*/identity.json"))) == 6


def test_what_is_missing_of_a_batch_is_computed(words, encoded, tmp_path) -> None:
    folder = tmp_path / "cache"
    stage = stage_of(words, f"--data.cache={folder}")
    expected = loss_of(stage, 0)
    whole = {path: path.read_bytes() for path in entries(folder)}
    one, two, three, _ = whole
    flipped = bytearray(whole[two])
    flipped[-9] ^= 1
    other = whole[three].replace(b"[256,4,4]", b"[256,2,8]")
    assert other != whole[three]
    for path, damaged in ((one, whole[one][:500]), (two, bytes(flipped)), (three, other)):
        path.write_bytes(damaged)
        torch.testing.assert_close(loss_of(stage, 0), expected, rtol=1e-6, atol=0)
        assert encoded.pop() == 1
        assert path.stat().st_size == len(whole[path])
    one.unlink()
    two.unlink()
    torch.testing.assert_close(loss_of(stage, 0), expected, rtol=1e-6, atol=0)
    assert encoded == [BATCH, 2]
    assert torch.equal(loss_of(stage, 0), expected)
    assert encoded == [BATCH, 2]


def test_in_bf16_what_the_encoder_yields_is_kept(words, tmp_path) -> None:
    stage = stage_of(words, f"--data.cache={tmp_path / 'cache'}", "--precision=bf16")
    with torch.autocast("cpu", torch.bfloat16):
        batch = batch_at(stage, 0)
        computed = stage.model._encode(batch, np.random.default_rng(0))
        again = batch_at(stage, 0)
        assert not again.missing and again.embeddings.dtype == computed.dtype
        assert torch.equal(stage.model._encode(again, np.random.default_rng(0)), computed)


def test_files_of_killed_processes_are_removed_when_they_are_old(words, tmp_path) -> None:
    stage = stage_of(words, f"--data.cache={tmp_path / 'cache'}")
    loss_of(stage, 0)
    folder = entries(tmp_path / "cache")[0].parent
    old, new = folder / ".a.safetensors.1.partial", folder / ".b.safetensors.2.partial"
    for path in (old, new):
        path.write_bytes(b"part")
    past = old.stat().st_mtime - LEFT_OVER - 1
    os.utime(old, (past, past))
    stage_of(words, f"--data.cache={tmp_path / 'cache'}")
    assert not old.exists() and new.exists()


def test_a_full_disk_ends_the_cache_but_not_the_run(
    words, encoded, tmp_path, monkeypatch, capsys
) -> None:
    stage = stage_of(words, f"--data.cache={tmp_path / 'cache'}")

    def fill(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", fill)
    losses = [loss_of(stage, 0) for _ in range(2)]
    assert torch.equal(*losses) and encoded == [BATCH, BATCH]
    assert not list((tmp_path / "cache").rglob("*safetensors*"))
    warned = capsys.readouterr().err.splitlines()
    assert warned == [
        f"warning: {stage.cache.folder}: no more embeddings are kept (No space left on device)"
    ]


def test_a_run_says_where_its_embeddings_are_and_how_large(words, tmp_path) -> None:
    stage = stage_of(words, f"--data.cache={tmp_path / 'cache'}", "--data.views=5")
    size = 16 * 5 * 256 * 4 * 4 * 4 / 1e9
    line = f"data.cache: 80 embeddings, up to {size:.2g} GB in {stage.cache.folder}"
    assert line in list(stage.describe())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.encoder_adapter=MsaAdapter"], "the image encoder is trained .*adapter"),
        (["--model.trained=[image_encoder.blocks.1.*]"], "the image encoder is trained .*norm1"),
        (["--sam=null"], "the image encoder is trained"),
        (["--data.views=null"], r"data\.cache: needs a number of views; set data\.views to 8"),
        (["--data.views=0"], r"data\.views is 0; it must be at least 1, or null"),
    ],
)
def test_an_encoder_that_changes_or_endless_views_are_refused(
    words, tmp_path, options, message
) -> None:
    with pytest.raises(UserError, match=message):
        stage_of(words, f"--data.cache={tmp_path / 'cache'}", *options)
    assert not (tmp_path / "cache").exists()


def test_views_take_turns_and_are_a_function_of_seed_image_and_turn(make_shards, organs) -> None:
    samples = [organs(seed, depth=4 if seed % 2 else None) for seed in range(4)]
    shards = make_shards(samples, {"liver": [1], "tumour": [2], "both": [1, 2]})
    options = {"shards": shards, "views": 3, "masks_per_image": 1}
    dataset = SegmentationDataset(SegmentationDataConfig(**options), 32, 7)
    again = SegmentationDataset(SegmentationDataConfig(**options | {"views": 4}), 32, 7)
    endless = SegmentationDataset(SegmentationDataConfig(**options | {"views": None}), 32, 7)
    count = len(dataset)
    targets = set()
    for index in range(count):
        shown = [dataset[index, epoch * count + index] for epoch in range(7)]
        assert [sample.view.number for sample in shown] == [0, 1, 2, 0, 1, 2, 0]
        assert torch.equal(shown[0].image, shown[3].image) == (
            shown[0].view.warped == shown[3].view.warped
        )
        assert len({sample.image.numpy().tobytes() for sample in shown[:3]}) == 3
        other = again[index, count + index]
        assert torch.equal(other.image, shown[1].image) == (other.view == shown[1].view)
        targets.add(tuple(int(sample.targets[0]) for sample in shown))
        assert endless[index, 0].view is None
    assert any(len(set(row)) > 1 for row in targets), "targets are drawn anew in each epoch"
    views = {dataset[index, 0].view for index in range(count)}
    assert len(views) == count  # slices of one record differ


def test_without_views_samples_are_what_they_were(make_shards, organs) -> None:
    """Of an earlier version's run: drawn by (seed, draw) alone, targets first."""
    config = SegmentationDataConfig(shards=make_shards([organs(0)], {"a": [1], "b": [2]}))
    dataset = SegmentationDataset(config, 32, 3)
    generator = np.random.default_rng([3, 5])
    image = dataset._some_targets(dataset.cases.images[0], generator)
    expected = dataset._augmented(image, generator, None)
    assert torch.equal(dataset[0, 5].image, expected.image)


def test_processes_may_write_the_same_entry(tmp_path) -> None:
    caches = [EmbeddingCache(tmp_path, {"encoder": "x"}, (2, 3, 3)) for _ in range(2)]
    view, embedding = View("key", 0, True), torch.randn(2, 3, 3)
    for cache in caches:
        cache._write(view, embedding)
    assert torch.equal(caches[0]._read(view), embedding)
    assert len([path for path in caches[0].folder.rglob("*") if path.is_file()]) == 2
    assert caches[1]._read(View("key", 0, False)) is None


def test_slices_of_a_stack_are_views_of_their_own(make_shards, organs) -> None:
    shards = make_shards([organs(1, depth=6)], {"liver": [1], "tumour": [2]})
    config = SegmentationDataConfig(shards=shards, views=2, stack=3)
    dataset = SegmentationDataset(config, 32, 7)
    batch = collate([dataset[index, index] for index in range(len(dataset))])
    images = {view: image for view, image in zip(batch.views, batch.images, strict=True)}
    assert len(images) == len(batch.images) > len(dataset)
    again = collate([dataset[0, 2 * len(dataset)]])
    for view, image in zip(again.views, again.images, strict=True):
        assert torch.equal(images[view], image)
