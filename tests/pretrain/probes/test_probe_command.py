"""`python -m pretrain probe` from shards to tables, and what it refuses."""

import csv
import json
import os
import socket

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import save_file

from data_prep.common.cli import run_program
from data_prep.common.errors import UserError
from pretrain.__main__ import COMMANDS
from pretrain.encoder.geometry import Resize
from pretrain.encoder.pixels import as_pixels, normalise_pixels
from pretrain.encoder.sam import SamEncoder
from pretrain.probes.features import extract, mean_token, thumbnail
from pretrain.probes.labelled import read_labelled
from pretrain.probes.sources import encoders_of, untrained
from pretrain.sizes import SIZES, EncoderSize

TINY = EncoderSize(width=32, depth=1, heads=2, global_blocks=(0,))


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory):
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    save_file(SamEncoder(SIZES["vit_t"]).state_dict(), path)
    (path.with_suffix(".json")).write_text(json.dumps({"name": "vit_t", "image_size": 112}))
    return path


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def probe(*arguments):
    try:
        run_program("python -m pretrain", COMMANDS, ["probe", *arguments])
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_tables_stand_beside_each_other(encoder_file, divided, undivided, tmp_path, capsys):
    output = tmp_path / "results"
    options = [f"--encoder={encoder_file}", f"--shards={divided},{undivided}", "--workers=0"]
    options += [f"--output={output}", "--resamples=50", "--folds=3", "--image_size=16"]
    probe(*options, f"--start_from={encoder_file}")
    printed = capsys.readouterr().out
    assert "24 images of 12 groups, 3 classes (33% are of the largest)" in printed
    assert "3 without a label left out" in printed
    with (output / "probes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 4 * 3  # sets, probes, features, metrics
    found = {(row["set"], row["probe"], row["features"], row["metric"]): row for row in rows}
    for name, images, groups in (("divided", "8", "4"), ("undivided", "24", "12")):
        for kind in ("encoder", "untrained", "start", "thumbnail"):
            row = found[name, "linear", kind, "accuracy"]
            assert (row["images"], row["groups"]) == (images, groups)
            assert (row["low"] == "") == (name == "divided")  # 4 groups are too few
    same = found["undivided", "kNN", "start", "AUROC"]
    assert float(same["ahead"]) == 0 == float(same["ahead_low"])
    assert float(found["undivided", "linear", "thumbnail", "accuracy"]["value"]) > 0.9
    text = (output / "probes.md").read_text()
    assert "| kNN | thumbnail | " in text and "too few groups (4)" in text
    assert (output / "probes.png").read_bytes().startswith(b"\x89PNG")
    assert "folds: 3" in (output / "config.yaml").read_text()
    with pytest.raises(SystemExit):
        probe(*options)
    assert "is not an empty folder; name another" in capsys.readouterr().err


def test_vectors_are_those_of_each_image_alone(divided, accelerator):
    """Framed without squashing, padded to SAM's mean colour, averaged over what shows the image."""
    torch.manual_seed(0)
    encoder = SamEncoder(TINY).train()
    labelled = read_labelled(divided)
    found = extract(labelled, {"encoder": encoder}, 224, accelerator, batch_size=5)
    assert encoder.training
    images = labelled.images()
    assert len(images) == 24 and found["thumbnail"].shape == (24, 192)
    for index in (0, 7, 23):
        pixels = as_pixels(images[index].image)
        assert pixels.shape == (1, 40, 60)
        frame = Resize((40, 60), 224)
        valid = frame.valid()[None]
        assert valid.float().mean() == pytest.approx(149 / 224)
        with torch.no_grad():
            tokens = encoder.forward_tokens(normalise_pixels(frame.image(pixels)[None], valid))
        expected = mean_token(tokens, valid)[0].numpy()
        assert found["encoder"][index] == pytest.approx(expected, abs=1e-5)
        assert found["thumbnail"][index] == pytest.approx(thumbnail(pixels).numpy())


def _extract(rank, port, root, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    torch.manual_seed(0)
    encoder = SamEncoder(TINY)
    found = extract(read_labelled(root), {"encoder": encoder}, 224, Accelerator(cpu=True), 5)
    np.savez(f"{folder}/{rank}.npz", **found)


def test_two_processes_give_what_one_gives(divided, tmp_path, accelerator):
    """Of five batches one process has three."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_extract, args=(port, str(divided), str(tmp_path)), nprocs=2)
    torch.manual_seed(0)
    one = extract(read_labelled(divided), {"encoder": SamEncoder(TINY)}, 224, accelerator, 5)
    for rank in range(2):
        two = np.load(tmp_path / f"{rank}.npz")
        assert set(two) == set(one) == {"encoder", "thumbnail"}
        for name, vectors in one.items():
            assert two[name] == pytest.approx(vectors, abs=1e-6)


def test_the_untrained_encoder_is_the_one_that_the_run_began_with(tmp_path, encoder_file):
    run = tmp_path / "run"
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    weights = run / "checkpoints" / "step-00000001" / "encoder.safetensors"
    weights.write_bytes(encoder_file.read_bytes())
    weights.with_suffix(".json").write_text(json.dumps({"name": "vit_t", "image_size": 64}))
    lines = "seed: 9\nobjectives: {}\nstart_from: "
    (run / "config.yaml").write_text(f"{lines}null\n")
    encoders, image_size = encoders_of(str(run))
    torch.manual_seed(9)
    began = SamEncoder(SIZES["vit_t"]).state_dict()
    found = encoders["untrained"].state_dict()
    assert image_size == 64 and list(encoders) == ["encoder", "untrained"]
    assert all(torch.equal(found[key], began[key]) for key in began)
    before = torch.get_rng_state()
    untrained(TINY, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    (run / "config.yaml").write_text(f"{lines}{encoder_file}\n")
    assert list(encoders_of(str(run))[0]) == ["encoder", "start", "untrained"]
    assert list(encoders_of(str(run), "none")[0]) == ["encoder", "untrained"]
    (run / "config.yaml").write_text(f"{lines}gone.pth\n")
    with pytest.raises(UserError, match=r"started from gone.pth, which cannot be found"):
        encoders_of(str(run))


REFUSED = [
    (("--label=", "--group="), "none of 24 records has a label; shard it with --label"),
    (("--label=case", "--group="), "all labels are 'case'; a probe needs 2 classes"),
    (("--label=bright|dark|striped", "--group=case"), "are of one group; a probe needs 2 or more"),
    (("--label=case0_|dark|striped", "--group=^case[0-9]+"), "class 'case0_' has 1 group; a probe"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED)
def test_labels_that_cannot_be_probed_are_refused(
    options, said, encoder_file, make_set, tmp_path, capsys
):
    root = make_set(tmp_path, "set", *options)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        probe(f"--encoder={encoder_file}", f"--shards={root}", f"--output={tmp_path / 'out'}")
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--encoder=absent.pth", "--shards={set}"), "absent.pth: no such file"),
        (("--encoder={encoder}", "--shards={set}/no"), "no shard set"),
        (("--encoder={encoder}", "--shards={set},{set}"), "two sets are called 'undivided'"),
        (("--encoder={encoder}", "--shards={set}", "--folds=0"), "must be at least 1"),
        (("--encoder={encoder}", "--shards={set}", "--image_size=30"), "not a positive multiple"),
    ],
)
def test_other_mistakes_are_one_line(options, said, encoder_file, undivided, tmp_path, capsys):
    words = [word.format(set=undivided, encoder=encoder_file) for word in options]
    with pytest.raises(SystemExit):
        probe(*words, f"--output={tmp_path / 'out'}")
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_groups_on_both_sides_are_left_out_of_train(divided, monkeypatch):
    """As in collections whose own split cuts patients in two."""
    from data_prep.loader.dataset import ShardDataset

    real = ShardDataset.meta
    shared = ShardDataset(divided, "test").meta(0)["group"]

    def meta(self, index):
        found = real(self, index)
        moved = self.split == "train" and index < 2
        return found | {"group": shared} if moved else found

    expected = sum(ShardDataset(divided).meta(index)["label"] is not None for index in range(2))
    monkeypatch.setattr(ShardDataset, "meta", meta)
    labelled = read_labelled(divided)
    assert labelled.shared == expected and len(labelled) == 24 - expected
    assert not set(labelled.groups[labelled.is_test]) & set(labelled.groups[~labelled.is_test])
    assert f"{expected} of train left out as their groups are in test too" in labelled.describe()
