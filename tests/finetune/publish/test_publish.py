"""A published segmenter is what arrives at a hub on loopback, and what is used from there."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import save_file

from data_prep.common.cli import run_command, run_program
from data_prep.common.errors import UserError
from data_prep.common.files import sha256, write_json
from finetune.__main__ import COMMANDS
from finetune.config import ModelConfig
from finetune.inference.loading import load_segmenter, trained_on
from finetune.model.building import build_model
from finetune.publish import facts
from finetune.train import COMMAND
from pretrain.engine.checkpoint import latest_checkpoint
from pretrain.sizes import SIZES, EncoderSize

CPU = torch.device("cpu")
NAME = "clinic/segmenter"
FILES = {"README.md", "config.yaml", "segmenter.safetensors"}
FILES |= {f"{name}.json" for name in ("segmenter", "data", "sources")}
ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.filterwarnings("ignore:.*pad SAM's attention windows")


@pytest.fixture(scope="module")
def made(labelled_shards, tmp_path_factory) -> Iterator[Path]:
    """A folder with a SAM checkpoint, an encoder, and `run`, two steps trained on both."""
    folder = tmp_path_factory.mktemp("secretfolder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", EncoderSize(32, 2, 2, (1,)))
        torch.manual_seed(0)
        torch.save(build_model(ModelConfig("tiny")).state_dict(), folder / "sam.pth")
        (folder / "stage_one").mkdir()
        encoder = build_model(ModelConfig("tiny")).image_encoder
        save_file(encoder.state_dict(), folder / "stage_one" / "encoder.safetensors")
        write_json(folder / "stage_one" / "encoder.json", {"name": "tiny", "image_size": 64})
        words = [f"--config={ROOT}/configs/finetune/quickstart.yaml"]
        words += [f"--data.shards={labelled_shards}", f"--output={folder / 'run'}"]
        words += [f"--encoder={folder / 'stage_one'}", f"--sam={folder / 'sam.pth'}"]
        words += ["--optim.steps=2", "--optim.warmup_steps=0", "--optim.batch_size=2"]
        words += ["--model.encoder_size=null", "--model.image_size=64", "--prompts.rounds=0"]
        words += ["--save_every=1", "--data.workers=0", "--threads=1", "--log_every=1"]
        run_command("finetune/train.py", COMMAND, words)
        AcceleratorState._reset_state(reset_partial_state=True)
        yield folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch) -> Path:
    """The same, which a test may change."""
    monkeypatch.setitem(SIZES, "tiny", EncoderSize(32, 2, 2, (1,)))
    copy = tmp_path / "secretfolder"
    shutil.copytree(made, copy)
    (copy / "run" / "nonfinite-0.json").write_text('{"step": 2, "keys": ["secretkey"]}')
    (copy / "run" / "figures" / "secret.png").write_bytes(b"secretpicture")
    return copy


@pytest.fixture
def publish(folder):
    """Publish the run."""

    def start(*options: str) -> None:
        given = [f"--run={folder / 'run'}", f"--repo={NAME}", "--license=cc-by-4.0", *options]
        run_program("python -m finetune", COMMANDS, ["publish", *given])

    return start


def same(one, other) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(value, states[1][key]) for key, value in states[0].items()
    )


def test_a_published_segmenter_is_used_by_its_name(
    on_hub, publish, folder, tmp_path, monkeypatch, capsys
) -> None:
    """By the command and the code that its card shows; the files that it needs are checked."""
    publish()
    out = capsys.readouterr().out
    assert f"published: {on_hub.url}/{NAME}\nuse it with --run hf:{NAME}" in out
    assert on_hub.created[NAME]["visibility"] == "private"
    assert set(on_hub.models[NAME]) == FILES
    expected = load_segmenter(folder / "run", CPU)
    shutil.rmtree(folder / "run")

    user = tmp_path / "user"
    user.mkdir()
    monkeypatch.chdir(user)
    save_file(torch.load(folder / "sam.pth", weights_only=True), "sam.safetensors")
    with pytest.raises(
        UserError, match=r"hf:clinic/segmenter was built on a file .*--encoder FILE"
    ):
        load_segmenter(f"hf:{NAME}", CPU)
    shutil.copy(folder / "stage_one" / "encoder.safetensors", "encoder.safetensors")
    with pytest.raises(UserError, match=rf"SHA-256 {sha256(folder / 'sam.pth')}; .*--sam FILE"):
        load_segmenter(f"hf:{NAME}", CPU, encoder="encoder.safetensors")
    with pytest.raises(UserError, match=r"was trained on other (mask_decoder|prompt_encoder) w"):
        load_segmenter(f"hf:{NAME}", CPU, "encoder.safetensors", "sam.safetensors")
    loaded = load_segmenter(f"hf:{NAME}", CPU, "encoder.safetensors", str(folder / "sam.pth"))
    assert same(loaded, expected) and loaded.targets == expected.targets == ("disc", "square")
    assert (loaded.multimask, loaded.previous_mask) == (True, True)
    assert trained_on(f"hf:{NAME}").window == "auto"

    card = on_hub.models[NAME]["README.md"].decode()
    (shown,) = re.findall(r"```sh\n(.*?)```", card, re.DOTALL)
    assert shown.startswith("python -m finetune predict ")
    assert "--sam sam.safetensors" in shown and "--encoder encoder.safetensors" in shown


def test_with_its_sources_it_needs_nothing_else(on_hub, publish, folder, tmp_path, monkeypatch):
    publish("--with_sources=true")
    kept = {"sources/encoder.safetensors", "sources/sam.pth"}
    assert set(on_hub.models[NAME]) == FILES | kept
    expected = load_segmenter(folder / "run", CPU)
    files = dict(on_hub.models[NAME])
    shutil.rmtree(folder)
    assert same(load_segmenter(f"hf:{NAME}", CPU), expected)
    assert files["sources/sam.pth"]

    user = tmp_path / "user"
    user.mkdir()
    monkeypatch.chdir(user)
    pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("image.png")
    card = files["README.md"].decode()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    loaded: dict = {}
    exec(code, loaded)
    assert loaded["masks"].shape == (1, 150, 200)
    (command,) = re.findall(r"```sh\n(.*?)```", card, re.DOTALL)
    words = command.replace("\\\n", " ").replace('"', "").split()[3:]
    run_program("python -m finetune", COMMANDS, [*words, "--device=cpu"])
    found = np.array(Image.open("mask.png")) > 0
    assert np.array_equal(found, loaded["masks"][0])


def test_an_encoder_on_the_hub_is_fetched_by_itself(on_hub, publish, folder) -> None:
    on_hub.models["clinic/encoder"] = {
        name: (folder / "stage_one" / name).read_bytes()
        for name in ("encoder.safetensors", "encoder.json")
    }
    config = folder / "run" / "config.yaml"
    text = re.sub(r"(?m)^encoder: .*$", "encoder: hf:clinic/encoder", config.read_text())
    config.write_text(text)
    publish()
    files = on_hub.models[NAME]
    assert "is fetched from `hf:clinic/encoder` by itself" in files["README.md"].decode()
    assert yaml.safe_load(files["README.md"].decode().split("---\n")[1])["base_model"] == [
        "clinic/encoder"
    ]
    sam = str(folder / "sam.pth")
    assert same(load_segmenter(f"hf:{NAME}", CPU, sam=sam), load_segmenter(folder / "run", CPU))
    on_hub.models["clinic/encoder"]["encoder.safetensors"] = b"".join(
        [(folder / "stage_one" / "encoder.safetensors").read_bytes()[:-4], b"\0\0\0\1"]
    )
    with pytest.raises(UserError, match="was trained on other image_encoder weights"):
        load_segmenter(f"hf:{NAME}", CPU, sam=sam)


def test_a_dry_run_writes_what_would_be_published_and_no_path_or_record(
    publish, folder, labelled_shards, capsys, tmp_path
) -> None:
    results = tmp_path / "secretfolder" / "results"
    results.mkdir()
    (results / "summary.md").write_text("| target | Dice |\n|---|---|\n| disc | 0.91 |\n")
    config = folder / "run" / "config.yaml"
    given = yaml.safe_load(config.read_text())
    given["skip_keys"], given["data"]["cache"] = ["secretkey"], "secretcache"
    given["data"]["views"] = 3
    config.write_text(yaml.safe_dump(given))
    publish("--dry_run=true", f"--results={results}")
    output = folder / "publish-run"
    assert f"written: {output}; nothing was uploaded" in capsys.readouterr().out
    files = {p.relative_to(output).as_posix(): p for p in output.rglob("*") if p.is_file()}
    assert set(files) == FILES
    for name in FILES - {"segmenter.safetensors"}:
        text = files[name].read_text()
        for word in ("secret", "shards/", str(labelled_shards), "/tmp", str(Path.home())):
            assert word not in text, (name, word)
    card = files["README.md"].read_text()
    encoder, sam = (sha256(folder / name) for name in ("stage_one/encoder.safetensors", "sam.pth"))
    for line in (
        f"| encoder | `{encoder}` | not published: ask who made this model, and give it as"
        " `--encoder` |",
        f"| sam | `{sam}` | not published: ask who made this model, and give it as `--sam` |",
        "| disc | 0.91 |",
        "| steps | 2 of 2 |",
        "| `model.encoder_adapter.class_path` | finetune.adapters.MsaAdapter |",
        "| `optim.batch_size` | 2 |",
    ):
        assert line in card.splitlines(), line
    assert "It segments disc and square in images of 64 pixels a side" in card
    assert re.search(r"\| image_encoder \| \d\.\d\d M \| frozen \|", card)
    assert "**It is not a medical device**" in card and "license: cc-by-4.0" in card
    loaded = load_segmenter(output, CPU, str(folder / "stage_one"), str(folder / "sam.pth"))
    assert same(loaded, load_segmenter(folder / "run", CPU))


def test_sams_own_checkpoint_is_named_where_it_can_be_had(publish, folder, monkeypatch) -> None:
    digest = sha256(folder / "sam.pth")
    monkeypatch.setitem(facts.OFFICIAL, digest, "sam_vit_b_01ec64.pth")
    publish("--dry_run=true")
    card = (folder / "publish-run" / "README.md").read_text()
    assert "SAM's own [sam_vit_b_01ec64.pth](https://github.com/facebookresearch" in card
    assert " --sam sam_vit_b_01ec64.pth " in card
    with pytest.raises(UserError, match=f"sam_vit_b_01ec64.pth, SHA-256 {digest}"):
        load_segmenter(folder / "publish-run", CPU, str(folder / "stage_one"))


def test_a_later_state_replaces_the_earlier_and_another_model_is_refused(
    on_hub, publish, refused, folder
) -> None:
    newest = latest_checkpoint(folder / "run").folder
    shutil.move(newest, folder / newest.name)
    publish("--with_sources=true")
    shutil.move(folder / newest.name, newest)
    publish()
    files = on_hub.models[NAME]
    assert json.loads(files["segmenter.json"])["step"] == 2
    assert set(files) == FILES  # and the sources are taken back
    config = folder / "run" / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 1"))
    line = refused()
    assert "has other files on the Hub (" in line and "--replace true" in line
    publish("--replace=true")


def test_an_upload_whose_connection_was_lost_sends_only_what_is_missing(
    on_hub, publish, refused
) -> None:
    on_hub.room = 1
    options = ("--with_sources=true",)
    assert refused(*options).endswith("; started again, it sends what has not arrived")
    assert on_hub.models[NAME] == {}
    arrived = set(on_hub.uploaded)
    on_hub.room = 1_000
    on_hub.asked.clear()
    publish(*options)
    sent = [line.rpartition("/")[2] for line in on_hub.asked if line.startswith("PUT ")]
    assert arrived and sent and arrived.isdisjoint(sent)


def test_a_strangers_damaged_document_is_one_line(publish, folder) -> None:
    publish("--dry_run=true")
    output = folder / "publish-run"
    for damage in ('{"needs": 3}', '{"needs": [{"role": 1}]}', "[]", "{", "7"):
        (output / "segmenter.json").write_text(damage)
        with pytest.raises(UserError, match=r"segmenter(\.json does not say|\.json)"):
            load_segmenter(output, CPU)


def test_what_cannot_be_published_or_found_is_refused(on_hub, refused, folder) -> None:
    assert "has no summary.md" in refused(f"--results={folder}")
    assert "output: is for --dry_run true" in refused("--output=x")
    on_hub.models["clinic/encoder"] = {"encoder.safetensors": b""}
    for name, reason in (
        ("clinic/encoder", r"has no segmenter\.safetensors, as segmenters published by `python -m"),
        ("clinic/absent", "does not exist on the Hub, or is private"),
    ):
        with pytest.raises(UserError, match=rf"^hf:{name}: {reason}"):
            load_segmenter(f"hf:{name}", CPU)
    (folder / "run" / "sources" / "sam.pth").unlink()
    (folder / "run" / "sources" / "encoder.safetensors").unlink()
    config = folder / "run" / "config.yaml"
    config.write_text(config.read_text().replace("sam.pth", "gone.pth"))
    assert "of encoder and SAM say where they are with --encoder and --sam" in refused()
