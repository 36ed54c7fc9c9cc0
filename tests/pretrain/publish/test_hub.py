"""A published encoder is what arrives at a hub on loopback, and what is loaded from there."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.common.errors import UserError
from pretrain.encoder import SamEncoder
from pretrain.engine.checkpoint import latest_checkpoint

NAME = "clinic/encoder"
CURVES = {f"figures/{name}.png" for name in ("losses", "rates", "mix_similarity")}
FILES = {"README.md", "encoder.safetensors", "encoder.json", *CURVES}


@pytest.mark.filterwarnings("ignore:.*pad SAM's attention windows")
def test_what_was_published_loads_from_the_hub_with_equal_outputs(
    on_hub, publish, run, tmp_path, monkeypatch, capsys
) -> None:
    """By the code that its card shows, for this package and for the others."""
    publish()
    out = capsys.readouterr().out
    assert f"published: {on_hub.url}/{NAME}\n" in out and f"hf:{NAME}" in out
    assert on_hub.created[NAME]["visibility"] == "private"
    assert set(on_hub.models[NAME]) == FILES
    weights = latest_checkpoint(run).weights_file("encoder").read_bytes()
    assert on_hub.models[NAME]["encoder.safetensors"] == weights

    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    card = on_hub.models[NAME]["README.md"].decode()
    loaded: dict = {}
    for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        exec(block, loaded)
    here = SamEncoder.from_pretrained(run)
    with torch.no_grad():
        embedding = here(here.preprocess(pixels))
        assert loaded["encoder"].image_size == 224
        assert loaded["tokens"].shape == (1, 196, 192)
        assert torch.equal(loaded["embedding"], embedding)
        timm = loaded["model"].eval().forward_features(loaded["pixels"])
        torch.testing.assert_close(timm, embedding, rtol=0, atol=1e-4)
        large = torch.randn(1, 3, 1024, 1024)
        expected = here(large)
        for other in (
            loaded["sam"].image_encoder(large),
            loaded["vision"].eval()(large).last_hidden_state,
        ):
            torch.testing.assert_close(other, expected, rtol=0, atol=1e-4)


def test_the_hub_says_what_it_does_not_have(on_hub, publish) -> None:
    publish()
    for name, reason in (
        ("clinic/absent", "does not exist on the Hub, or is private; check its name, or log in"),
        (f"{NAME}@v2", "has no such revision"),
    ):
        with pytest.raises(UserError, match=rf"^hf:{name}: {reason}"):
            SamEncoder.from_pretrained(f"hf:{name}")
    on_hub.models["clinic/other"] = {"model.safetensors": b""}
    with pytest.raises(UserError, match=r"hf:clinic/other: has no encoder\.safetensors"):
        SamEncoder.from_pretrained("hf:clinic/other")
    on_hub.token_file.unlink()
    with pytest.raises(UserError, match="does not exist on the Hub, or is private"):
        SamEncoder.from_pretrained(f"hf:{NAME}")


def test_who_may_not_write_is_told_what_to_do(on_hub, refused) -> None:
    on_hub.token_file.write_text("hf_wrong")
    assert "access denied (401); log in with `hf auth login` as someone with access" in refused()
    on_hub.token_file.unlink()
    assert "access denied (401); log in with `hf auth login` as someone with access" in refused()
    assert on_hub.models == {} and not on_hub.uploaded


def test_a_hub_that_does_not_answer_is_told(on_hub, refused) -> None:
    on_hub.close()
    line = refused()
    assert f"hf://{NAME}: cannot be published (ConnectError: " in line
    assert line.endswith("HF_ENDPOINT; started again, it sends what has not arrived")


def test_a_name_that_is_taken_is_refused(on_hub, publish, refused) -> None:
    """By somebody else's account, or by another model of one's own, unless it shall be replaced."""
    on_hub.models[NAME], on_hub.theirs = {"README.md": b"theirs"}, {NAME}
    line = refused("--private=false")
    assert "access denied (403, Authorization error): does somebody else have this name" in line
    on_hub.theirs = set()
    assert f"{NAME}: is public; give --private false if everyone may see" in refused()
    mine = {"model.bin": b"1", "encoder.json": b'{"run": "of another"}', "LICENSE": b"mine"}
    for there in (mine, {**mine, "encoder.json": b"not JSON"}, {"figures/a.png": b""}):
        on_hub.models[NAME] = dict(there)
        line = refused("--private=false")
        assert "has other files on the Hub (" in line and "--replace true" in line
        assert on_hub.models[NAME] == there
    on_hub.models[NAME] = dict(mine)
    publish("--private=false", "--replace=true")
    assert set(on_hub.models[NAME]) == FILES | {"LICENSE"}


def test_a_later_state_of_the_same_run_takes_the_place_of_the_earlier(on_hub, publish, run) -> None:
    newest = latest_checkpoint(run).folder
    shutil.move(newest, run / newest.name)
    publish("--pictures=true")
    files = on_hub.models[NAME]
    assert json.loads(files["encoder.json"])["step"] == 2
    assert "figures/reconstructions.png" in files
    shutil.move(run / newest.name, newest)
    config = run / "config.yaml"  # what a run may go on with
    config.write_text(config.read_text().replace("compile: false", "compile: true"))
    assert "compile: true" in config.read_text()
    files["notes.md"] = b"mine"
    publish()  # and the pictures are taken back
    assert json.loads(files["encoder.json"])["step"] == 3
    assert set(files) == FILES | {"notes.md"}


def test_an_upload_whose_connection_was_lost_sends_only_what_is_missing(
    on_hub, publish, refused
) -> None:
    on_hub.room = 1
    assert refused().endswith("; started again, it sends what has not arrived")
    assert on_hub.models[NAME] == {}  # a part of the files has arrived, and none is shown
    arrived = set(on_hub.uploaded)
    assert arrived
    on_hub.room = 1_000
    on_hub.asked.clear()
    publish()
    sent = [line.rpartition("/")[2] for line in on_hub.asked if line.startswith("PUT ")]
    assert sent and arrived.isdisjoint(sent)
    assert set(on_hub.models[NAME]) == FILES
