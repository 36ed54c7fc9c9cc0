"""A run with merged adapters is loaded by segment_anything and gives equal masks there."""

import pytest
import torch
from segment_anything.modeling import Sam

from data_prep.common.cli import run_program
from finetune.__main__ import COMMANDS
from finetune.inference.loading import load_segmenter
from finetune.model.prompt_encoder import Prompts

LORA = ("--model.encoder_adapter=LoraAdapter", "--model.encoder_adapter.scale=2")
TEXTS = "{class_path: ClipText, init_args: {model: ViT-B-32, width: 32, layers: 1, heads: 2}}"
CLASSES = ("--model.decoder=finetune.heads.SamedDecoder", "--prompts=TargetsOnly", "--loss.iou=0")

pytestmark = pytest.mark.filterwarnings("ignore:.*pad SAM's attention windows")


def export(run, output, *options: str) -> None:
    run_program("finetune", COMMANDS, ["export", f"--run={run}", f"--output={output}", *options])


def loaded(printed: str) -> Sam:
    """What the printed lines of Python make."""
    names: dict = {}
    for line in printed.splitlines():
        if "import " in line:
            exec(line, names)
    return names["sam"]


@torch.no_grad()
def answers(sam: Sam, image: torch.Tensor, **prompts: torch.Tensor) -> list[torch.Tensor]:
    """Logits of one mask and of several, and the IoU expected of each, of segment_anything."""
    embedding = sam.image_encoder(image)
    given = {"points": None, "boxes": None, "masks": None} | prompts
    sparse, dense = sam.prompt_encoder(**given)
    position = sam.prompt_encoder.get_dense_pe()
    pairs = [
        sam.mask_decoder(embedding, position, sparse, dense, several) for several in (False, True)
    ]
    return [each for pair in pairs for each in pair]


@pytest.mark.parametrize(("pixels", "text"), [(1024, "null"), (64, TEXTS)])
def test_a_run_with_lora_gives_equal_masks_in_segment_anything(
    make_run, tmp_path, capsys, pixels, text
) -> None:
    run = make_run(*LORA, f"--model.image_size={pixels}", f"--model.text={text}")
    export(run, tmp_path / "sam.pth")
    printed = capsys.readouterr().out
    assert (f"it was trained at {pixels} pixels" in printed) == (pixels != 1024)
    assert ("its text prompts are left out" in printed) == (text == TEXTS)
    sam = loaded(printed)
    segmenter = load_segmenter(run, torch.device("cpu"))
    image = torch.randn(1, 3, pixels, pixels)
    points, labels = torch.tensor([[[20.0, 31.0], [50.0, 9.0]]]), torch.tensor([[1, 0]])
    found = answers(sam, image, points=(points, labels))
    with torch.no_grad():
        embedding = segmenter.encode(image)
        prompts = Prompts(torch.zeros(1, dtype=torch.int64), points, labels)
        one, several = (segmenter.decode(embedding, prompts, many) for many in (False, True))
        with segmenter.without_adapters():
            assert (segmenter.encode(image) - embedding).abs().max() > 0.01
    for ours, theirs in zip((*one, *several), found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "sam.pth"]


def test_a_decoder_of_classes_is_loaded_as_its_lines_say(make_run, tmp_path, capsys) -> None:
    run = make_run(*LORA, *CLASSES, "--model.image_size=64", targets=("disc", "cup"))
    export(run, tmp_path / "sam.pth")
    printed = capsys.readouterr().out
    assert "multimask_output=True gives disc, cup, and multimask_output=False the" in printed
    sam = loaded(printed)
    segmenter = load_segmenter(run, torch.device("cpu"))
    image = torch.randn(1, 3, 64, 64)
    background, _, classes, _ = answers(sam, image)
    with torch.no_grad():
        ours = segmenter.decoder.outputs(segmenter.encode(image))
    torch.testing.assert_close(ours, torch.cat([background, classes], 1), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--model.encoder_adapter=MsaAdapter",), "MsaAdapter cannot be merged into the weights"),
        (
            (*LORA, "--model.decoder_adapter=MsaDecoderAdapter"),
            "MsaDecoderAdapter cannot be merged into the weights of SAM; share it as it is with",
        ),
    ],
)
def test_what_cannot_be_merged_is_one_line(make_run, tmp_path, capsys, options, reason) -> None:
    run = make_run(*options, "--model.image_size=64")
    with pytest.raises(SystemExit):
        export(run, tmp_path / "sam.pth")
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_other_decoders_and_names_are_refused(make_run, contributed, tmp_path, capsys) -> None:
    head = ("--model.decoder=pixel_head.PixelHead", "--prompts=TargetsOnly", "--loss.iou=0")
    run = make_run(*head, "--model.image_size=64", targets=("disc",))
    (tmp_path / "there.pth").touch()
    for name, reason in (
        ("sam.pth", "decoder PixelHead is not one of segment_anything's"),
        ("sam.safetensors", "must end in .pth"),
        ("there.pth", "there.pth is there already; name another"),
    ):
        with pytest.raises(SystemExit):
            export(run, tmp_path / name)
        error = capsys.readouterr().err
        assert reason in error and error.count("\n") == 1
        assert name == "there.pth" or not (tmp_path / name).exists()
