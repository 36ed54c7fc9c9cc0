"""Texts from training to use: words are learned, absent things give nothing, towers travel."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import open_clip
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from data_prep.common.cli import run_program
from data_prep.common.components import Component
from data_prep.common.errors import UserError
from finetune import Predictor
from finetune.__main__ import COMMANDS
from finetune.config import CaseSelection, ModelConfig, TrainConfig
from finetune.data.cases import LabelledCases
from finetune.evaluation import metrics
from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.text import Text
from finetune.inference.loading import SEGMENTER, load_segmenter
from finetune.inference.objects import Prompt
from finetune.inference.prompted import PromptedImage
from finetune.inference.segmenting import segment
from finetune.model.building import build_model
from finetune.model.prompt_encoder import Prompts
from helpers.text_runs import BANK, LABELS, TOWER, official, shapes, train
from pretrain.engine.checkpoint import latest_checkpoint
from pretrain.sizes import SIZES, EncoderSize

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "tiny", EncoderSize(32, 2, 2, (1,)))
    monkeypatch.chdir(tmp_path)
    Path("texts.yaml").write_text(BANK)


DOTS = """
import torch
from torch import nn

from finetune.model import Decoded, Decoder


class Dots(Decoder):
    '''The product of a text's mean token and of each pixel's features: it learns in seconds.'''

    def __init__(self, image_size, targets):
        self.pixels = nn.Sequential(nn.Conv2d(256, 256, 1), nn.PixelShuffle(4))  # (B, 16, h, w)
        self.words = nn.Linear(256, 16)
        self.parts = {"pixels": self.pixels, "words": self.words}

    def decode(self, embeddings, prompts, multimask):
        pixels = self.pixels(embeddings)[prompts.image]
        words = self.words(prompts.text_tokens.mean(1))
        return Decoded(torch.einsum("mc,mchw->mhw", words, pixels)[:, None], None)
"""


def test_words_are_learned_and_wordings_that_were_never_trained_on(
    make_shards, tmp_path, monkeypatch
) -> None:
    (tmp_path / "dots.py").write_text(DOTS)
    monkeypatch.syspath_prepend(tmp_path)
    options = ["--prompts.rounds=0", "--prompts.absent_share=0.4", "--data.without_targets=0.1"]
    options += ["--model.decoder=dots.Dots", "--model.decoder_adapter=null", "--loss.iou=0"]
    options += ["--optim.steps=120", "--optim.batch_size=8", "--optim.lr=0.005"]
    run = train(make_shards([shapes(seed) for seed in range(40)], LABELS), *options)
    held = make_shards([shapes(seed) for seed in range(100, 124)], LABELS, "held")
    cases = LabelledCases(CaseSelection(shards=held))
    model = load_segmenter(run, CPU)
    dice: dict[str, list[float]] = {}
    for row in evaluate(model, cases, [Text(bank="texts.yaml")]):
        dice.setdefault(row.protocol, []).append(row.dice)
    means = {name: float(np.mean(values)) for name, values in dice.items()}
    swapped, absent = [], []  # Dice with what was not asked for, and answers that are empty
    for image in cases.images:
        _, pixels, truths = cases.read(image)
        masks, _ = PromptedImage(model, pixels).predict(texts=["the disc here", "the square here"])
        if len(truths) == 2:
            swapped += [metrics.dice(*pair) for pair in zip(masks, truths[::-1], strict=True)]
        else:
            absent.append(not masks[1 - image.targets[0]].any())
    assert means["text"] > 0.8 and means["text, held-out wording"] > 0.7
    assert means["text, absent"] > 0.7 and np.mean(absent) > 0.5 and np.mean(swapped) < 0.1


@pytest.mark.parametrize("loaded", [True, False])
def test_a_run_travels_with_its_tower(loaded, make_shards, monkeypatch) -> None:
    official(Path("clip.safetensors"))
    given = ["--model.text.pretrained=clip.safetensors"] if loaded else []
    steps = ["--optim.steps=2", "--optim.batch_size=2", "--optim.warmup_steps=0"]
    run = train(make_shards([shapes(seed) for seed in range(8)], LABELS), *steps, *given)
    weights = latest_checkpoint(run).weights(SEGMENTER)
    tower = {key for key in weights if key.startswith("text_encoder.tower.")}
    assert {key for key in weights if key.startswith("text_encoder.projection.")}
    assert bool(tower) is not loaded  # frozen means loaded
    kept = {path.name for path in (run / "sources").glob("*")}
    assert kept == ({"text_weights.safetensors"} if loaded else set())
    image = shapes(0).image

    def answers(run: Path) -> torch.Tensor:
        torch.manual_seed(7)  # what is not loaded would differ
        prompted = PromptedImage(load_segmenter(run, CPU), image)
        return prompted.predict(texts=["the disc", "square here"])[1]

    def without_texts(run: Path) -> None:
        """Clicks need no text encoder, whose package takes seconds to import."""
        clicked = {"points": np.array([[[20.0, 20]]]), "labels": np.array([[1]])}
        both = [load_segmenter(run, CPU, texts=texts) for texts in (True, False)]
        one, other = (PromptedImage(each, image).predict(**clicked)[1] for each in both)
        assert both[1].text_encoder is None and torch.equal(one, other)

    expected = answers(run)
    without_texts(run)
    Path("far/away").mkdir(parents=True)
    shutil.move(run, "far/away/run")
    Path("clip.safetensors").unlink()
    Path("texts.yaml").unlink()  # only training and evaluation draw texts
    monkeypatch.chdir("far/away")
    assert torch.equal(answers(Path("run")), expected)
    texts_in_use(expected, image)
    if loaded:
        torch.manual_seed(9)
        official(Path("run/sources/text_weights.safetensors"))
        with pytest.raises(UserError, match="was trained on other text_encoder weights than"):
            load_segmenter(Path("run"), CPU)


def texts_in_use(expected: torch.Tensor, image: np.ndarray) -> None:
    """A Predictor and the command, in an image and in a volume, by the run in this folder."""
    texts, size = ["the disc", "square here"], image.shape
    predictor = Predictor("run", "cpu")
    predictor.set_image(image)
    masks, _, logits = predictor.predict(text=texts)
    assert np.array_equal(logits, expected[:, 0].numpy())
    volume = predictor.predict_volume(np.stack([image] * 3), text=texts)
    assert np.array_equal(volume, masks[:, None].repeat(3, axis=1))
    carried = predictor.predict_volume(np.stack([image] * 3), clicks=[9, 9, 1, 1], text=texts[0])
    prompt = Prompt(np.array([[9.0, 9.0]]), np.array([1]), text=texts[0])
    prompted = PromptedImage(predictor.segmenter, image)
    by_text, first = prompted.predict(texts=texts[:1])
    previous = first if predictor.segmenter.previous_mask else None
    corrected, _ = prompted.predict([[[9, 9]]], [[1]], previous=previous, texts=texts[:1])
    assert np.array_equal(segment(prompted, prompt).mask, corrected[0])
    assert np.array_equal(carried[0, 1], corrected[0]) and np.array_equal(by_text[0], masks[0])
    with pytest.raises(UserError, match="different numbers of objects"):
        predictor.predict(clicks=[9, 9, 1], text=texts)

    Image.fromarray(image).save("image.png")
    nibabel.save(nibabel.Nifti1Image(image[..., None].repeat(2, 2), np.eye(4)), "volume.nii.gz")
    common = ["predict", "--run=run", "--no-overlay", "--device=cpu"]

    def use(*options: str) -> None:
        run_program("finetune", COMMANDS, [*common, *options])

    words = "; ".join(texts)
    run_program(
        "finetune", COMMANDS, [*common, "--input=image.png", f"--text={words}", "--output=mask.png"]
    )
    label = np.where(masks[1], 2, masks[0])
    assert np.array_equal(np.array(Image.open("mask.png")), label)
    Path("table.csv").write_text(
        f"file,object,text\nimage.png,1,{texts[0]}\nimage.png,2,{texts[1]}\n"
    )
    use("--input=.", "--prompts=table.csv", "--output=out")
    assert np.array_equal(np.array(Image.open("out/image.png")), label)
    run_program(
        "finetune",
        COMMANDS,
        [*common, "--input=volume.nii.gz", "--text=the disc", "--output=masks.nii.gz"],
    )
    assert nibabel.load("masks.nii.gz").shape == (*size, 2)


def test_a_resumed_run_goes_on_with_the_tower_that_it_kept(
    make_shards, read_losses, capsys
) -> None:
    official(Path("clip.safetensors"))
    shards = make_shards([shapes(seed) for seed in range(8)], LABELS)
    options = ["--model.text.pretrained=clip.safetensors", "--optim.batch_size=2"]
    options += ["--optim.warmup_steps=0", "--log_every=1", "--save_every=2"]
    kinds = "{text: {class_path: Texts, bank: texts.yaml}, clicks: ClicksAndBoxes}"
    options += ["--prompts", f"{{class_path: Mixed, kinds: {kinds}}}"]
    run = train(shards, *options, "--optim.steps=4")
    whole = read_losses(run)
    assert len(whole) == 4
    shutil.rmtree(latest_checkpoint(run).folder)
    (run / "DONE").unlink()
    Path("clip.safetensors").unlink()
    train(shards, *options, "--optim.steps=4", "--resume=auto")
    assert read_losses(run) == whole
    shutil.rmtree(latest_checkpoint(run).folder)
    (run / "DONE").unlink()
    Path("texts.yaml").write_text(BANK.replace("circle", "ring"))
    with pytest.raises(SystemExit):
        train(shards, *options, "--optim.steps=4", "--resume=auto")
    assert "their file of texts has changed" in capsys.readouterr().err


def test_without_a_text_encoder_nothing_is_new(run_folder) -> None:
    torch.manual_seed(0)
    plain = build_model(ModelConfig("tiny", 64))
    tower = Component("finetune.prompts.text.ClipText", TOWER)
    torch.manual_seed(0)
    with_text = build_model(ModelConfig("tiny", 64, text=tower))
    states = plain.state_dict(), with_text.state_dict()
    assert not any(key.startswith("text_encoder") for key in states[0])
    assert {key for key in states[1] if not key.startswith("text_encoder.")} == set(states[0])
    assert all(torch.equal(states[1][key], value) for key, value in states[0].items())
    parts = {part.name: part.state for part in with_text.describe()}
    assert parts["text_encoder"] == parts["text_encoder.tower"] == "trained"
    prompts = Prompts(torch.zeros(2, dtype=torch.int64), texts=["disc", "the square"])
    low_res, _ = with_text.decode(torch.randn(1, 256, 4, 4), prompts)
    assert low_res.shape == (2, 1, 16, 16) and not torch.equal(low_res[0], low_res[1])
    low_res[1].square().sum().backward()  # of words of the second text alone
    grad = with_text.text_encoder.tower.text.token_embedding.weight.grad.abs().sum(1)
    ids = [open_clip.tokenize([text], 8)[0, 1].item() for text in ("disc", "the square")]
    assert grad[ids[1]] > 0 and grad[ids[0]] == 0
    prompted = PromptedImage(load_segmenter(run_folder, CPU), shapes(0).image)
    with pytest.raises(UserError, match="this model takes no texts"):
        prompted.predict(texts=["disc"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.text=null"], "prompts: this model takes no texts"),
        (["--prompts.bank=none.yaml"], "'none.yaml' is not a file of texts"),
        (["--data.targets=[disc]", "--data.without_targets=0.5"], ""),
        (
            ["--prompts=ClicksAndBoxes", "--data.without_targets=0.5", "--data.targets=[disc]"],
            "data.without_targets: only t",
        ),
        (["--data.without_targets=1"], "data.without_targets is 1.0; it must be in 0..1, below 1"),
        (["--data.stack=3"], "data.stack is 3, and"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_a_run_is_made(
    options, message, make_shards, capsys
) -> None:
    shards = make_shards([shapes(4), shapes(5), shapes(6)], LABELS)  # each holds something
    steps = ["--optim.steps=1", "--optim.batch_size=2", "--optim.warmup_steps=0"]
    if not message:  # the square alone is in one of them
        train(shards, *steps, *options)
        return
    with pytest.raises(SystemExit):
        train(shards, *steps, *options)
    assert message in capsys.readouterr().err and not Path("run").exists()


def test_texts_of_validation_are_read_before_the_first_step(make_shards, capsys) -> None:
    """And a model that answers to everything is not the best."""
    shards = make_shards([shapes(seed) for seed in range(12)], LABELS)
    options = ["--optim.steps=2", "--optim.batch_size=2", "--optim.warmup_steps=0"]
    options += ["--data.validation=0.5", "--evaluators.validation=finetune.validation.Validation"]
    options += ["--evaluators.validation.every=2", "--log_every=1"]
    Path("others.yaml").write_text(BANK.replace("square: {", "cup: {"))
    with pytest.raises(SystemExit):
        train(shards, *options, "--evaluators.validation.bank=others.yaml")
    assert "has no texts for target 'square'" in capsys.readouterr().err
    assert not Path("run/metrics.jsonl").exists()
    AcceleratorState._reset_state(reset_partial_state=True)
    shutil.rmtree("run", ignore_errors=True)
    run = train(shards, *options, "--evaluators.validation.bank=texts.yaml")
    (line,) = [row for row in lines_of(run) if "validation/score" in row]
    rows = {name.removeprefix("validation/"): line[name] for name in line if "validation/" in name}
    assert {"text", "text,_absent", "box"} <= rows.keys()
    score = rows.pop("score")
    assert score == pytest.approx(np.mean(list(rows.values()))) and 0 <= rows["text,_absent"] <= 1


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_config_of_an_earlier_version_has_no_texts(tmp_path) -> None:
    from data_prep.common.parsing import parse_file

    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({"data": {"shards": "x"}, "output": "y"}))
    assert parse_file(TrainConfig, path)[0].model.text is None
