"""A published model that takes texts brings its tower along, and no name of a file."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from data_prep.common.cli import run_program
from data_prep.common.files import write_json
from finetune.__main__ import COMMANDS
from finetune.config import ModelConfig
from finetune.inference.loading import load_segmenter
from finetune.inference.prompted import PromptedImage
from finetune.model.building import build_model
from helpers.text_runs import BANK, LABELS, official, shapes, train
from pretrain.sizes import SIZES, EncoderSize

CPU = torch.device("cpu")
NAME = "clinic/texts"
STEPS = ("--optim.steps=2", "--optim.batch_size=2", "--optim.warmup_steps=0")
IMAGE = shapes(0).image

pytestmark = pytest.mark.filterwarnings("ignore:.*pad SAM's attention windows")


@pytest.fixture(autouse=True)
def run(make_shards, tmp_path, monkeypatch) -> Path:
    """A run on an encoder, a SAM checkpoint and a tower, in the working folder."""
    monkeypatch.setitem(SIZES, "tiny", EncoderSize(32, 2, 2, (1,)))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_file(build_model(ModelConfig("tiny")).state_dict(), "sam.safetensors")
    Path("one").mkdir()
    encoder = build_model(ModelConfig("tiny")).image_encoder.state_dict()
    save_file(encoder, "one/encoder.safetensors")
    write_json(Path("one/encoder.json"), {"name": "tiny", "image_size": 64})
    official(Path("clinic_mueller.safetensors"))
    Path("smith.yaml").write_text(BANK)
    given = ["--encoder=one", "--sam=sam.safetensors", "--prompts.bank=smith.yaml"]
    given += ["--model.text.pretrained=clinic_mueller.safetensors", *STEPS]
    return train(make_shards([shapes(seed) for seed in range(8)], LABELS), *given)


def publish(*options: str) -> None:
    given = ["--run=run", f"--repo={NAME}", "--license=mit", *options]
    run_program("python -m finetune", COMMANDS, ["publish", *given])


def answers(source: str, **files: str) -> torch.Tensor:
    torch.manual_seed(7)  # what is not loaded would differ
    prompted = PromptedImage(load_segmenter(source, CPU, **files), IMAGE)
    return prompted.predict(texts=["the disc", "square here"])[1]


def test_a_model_that_takes_texts_is_published_with_its_tower(on_hub, monkeypatch, capsys) -> None:
    expected = answers("run")
    on_hub.models["clinic/encoder"] = {
        name: Path("one", name).read_bytes() for name in ("encoder.safetensors", "encoder.json")
    }
    config = Path("run/config.yaml")
    config.write_text(
        re.sub(r"(?m)^encoder: .*$", "encoder: hf:clinic/encoder", config.read_text())
    )
    publish()
    files = on_hub.models[NAME]
    assert {name for name in files if name.startswith("sources/")} == {
        "sources/text_weights.safetensors"
    }
    for name, data in files.items():
        if not name.endswith(".safetensors"):
            assert b"mueller" not in data and b"smith" not in data, name
    card = files["README.md"].decode()
    assert "| text_weights | `" in card and "--text_weights" not in card
    Path("user").mkdir()
    shutil.move("sam.safetensors", "user")
    for path in (*Path().glob("*.safetensors"), *Path().glob("*.yaml")):
        path.unlink()
    shutil.rmtree("run")
    monkeypatch.chdir("user")
    assert torch.equal(answers(f"hf:{NAME}", sam="sam.safetensors"), expected)

    Image.fromarray(IMAGE).save("image.png")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    loaded: dict = {}
    exec(code, loaded)
    (command,) = re.findall(r"```sh\n(.*?)```", card, re.DOTALL)
    assert "--text disc" in command
    words = shlex.split(command.replace("\\\n", " "))[3:]
    run_program("python -m finetune", COMMANDS, [*words, "--device=cpu"])
    assert np.array_equal(np.array(Image.open("mask.png")) > 0, loaded["masks"][0])


def test_with_its_sources_it_needs_nothing_else(on_hub) -> None:
    expected = answers("run")
    publish("--with_sources=true")
    assert len([name for name in on_hub.models[NAME] if name.startswith("sources/")]) == 3
    shutil.rmtree("run")
    shutil.rmtree("one")
    Path("sam.safetensors").unlink()
    assert torch.equal(answers(f"hf:{NAME}"), expected)


@pytest.mark.parametrize(
    ("model", "kept", "expected"),
    [("ViT-L/14", (), "ViT-L-14"), ("smiths_tower", ("text_config",), None)],
)
def test_an_architecture_is_named_only_where_it_is_open_clips(model, kept, expected) -> None:
    from finetune.publish.facts import _name_tower

    arguments = {"model": model, "pooled": True}
    text = {"class_path": "finetune.prompts.text.ClipText", "init_args": arguments}
    _name_tower({"model": {"text": text}}, {role: Path(role) for role in kept})
    assert arguments.pop("model", None) == expected and arguments == {"pooled": True}
