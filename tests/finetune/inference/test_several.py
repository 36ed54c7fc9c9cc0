"""Several objects, rough masks, adding to a mask, and adapters off."""

import numpy as np
import pytest
from PIL import Image

from data_prep.common.cli import run_program
from finetune.__main__ import COMMANDS
from finetune.inference.loading import TrainedOn
from finetune.inference.overlay import COLOURS


@pytest.fixture
def squares(tmp_path):
    """A dark picture with three bright squares, and where they are."""
    place = np.zeros((64, 64), np.uint8)
    place[4:16, 4:16], place[4:16, 44:60], place[40:60, 20:50] = 1, 2, 3
    Image.fromarray((place > 0).astype(np.uint8) * 200).save(tmp_path / "photo.png")
    return place


def read(path):
    return np.array(Image.open(path))


def files(tmp_path, name="mask.png"):
    return f"--input={tmp_path / 'photo.png'}", f"--output={tmp_path / name}"


def test_objects_of_one_call_are_a_label_map(glow, predict, squares, tmp_path, capsys):
    predict(glow, *files(tmp_path), "--box=3,3,17,17; 43,3,61,17; 19,39,51,61")
    assert np.array_equal(read(tmp_path / "mask.png"), squares)
    assert glow.encoded == 1
    line = capsys.readouterr().out
    assert "object 1: 144 of 4096 pixels; object 2: 192 of 4096 pixels; object 3: 600" in line
    overlay = read(tmp_path / "mask_overlay.png")
    scale = len(overlay) / 64
    for edge, colour in (((4, 8), COLOURS[0]), ((4, 50), COLOURS[1]), ((40, 30), COLOURS[2])):
        row, column = (round(value * scale) for value in edge)
        assert overlay[row, column].tolist() == list(colour)


def test_clicks_and_boxes_mix_and_the_later_object_counts(glow, predict, squares, tmp_path, capsys):
    prompts = ("--clicks=10,10,1; ;50,10,1 53,10,0", "--box=; 3,3,17,10;")
    predict(glow, *files(tmp_path), *prompts, "--no-overlay")
    found = read(tmp_path / "mask.png")
    assert (found[4:13, 4:16] == 2).all() and (found[13:16, 4:16] == 1).all()
    assert found[6, 46] == 3 and found[10, 53] == 0
    assert "object 2: 108 of 4096 pixels, 108 of them from other objects" in capsys.readouterr().out
    assert not (tmp_path / "mask_overlay.png").exists()


def test_one_object_is_white(glow, predict, squares, tmp_path):
    predict(glow, *files(tmp_path), "--clicks=10,10,1")
    assert np.array_equal(read(tmp_path / "mask.png"), (squares == 1) * 255)
    predict(glow, *files(tmp_path, "second.png"), "--clicks=10,10,1", "--value=2")
    assert np.array_equal(read(tmp_path / "second.png"), (squares == 1) * 2)


def test_a_rough_mask_is_a_prompt(glow, predict, squares, tmp_path, capsys):
    rough = np.zeros((64, 64), np.uint8)
    rough[6:14, 5:13] = 255
    Image.fromarray(rough).save(tmp_path / "rough.png")
    predict(glow, *files(tmp_path), f"--mask={tmp_path / 'rough.png'}")
    assert "rough mask" not in capsys.readouterr().out
    found = read(tmp_path / "mask.png")
    assert (found[7:13, 5:12] == 255).all()  # what is near it
    assert not found[:, 18:].any() and not found[30:].any()
    rough[rough > 0], rough[44:56, 24:46] = 1, 2
    Image.fromarray(rough).save(tmp_path / "both.png")
    given = (f"--mask={tmp_path / 'both.png'}", "--clicks=10,10,1")
    predict(glow, *files(tmp_path, "two.png"), *given, seen=TrainedOn(rough_masks=False))
    assert "was never trained to start from a rough mask" in capsys.readouterr().out
    found = read(tmp_path / "two.png")
    assert np.array_equal(found == 1, squares == 1) and (found[45:55, 25:43] == 2).all()


def test_a_mask_that_is_there_is_added_to(glow, predict, refused, squares, tmp_path):
    predict(glow, *files(tmp_path), "--clicks=10,10,1")
    assert "is there already" in refused(glow, *files(tmp_path), "--clicks=50,10,1")
    predict(glow, *files(tmp_path), "--clicks=50,10,1", "--add")  # the same object
    assert np.array_equal(read(tmp_path / "mask.png"), np.isin(squares, (1, 2)) * 255)
    predict(glow, *files(tmp_path), "--box=19,39,51,61", "--add", "--value=2")
    found = read(tmp_path / "mask.png")
    assert np.array_equal(found, np.array([0, 1, 1, 2])[squares])
    predict(glow, *files(tmp_path), "--box=3,3,17,17", "--add", "--value=3")  # takes the pixels
    assert np.array_equal(read(tmp_path / "mask.png"), np.array([0, 3, 1, 2])[squares])


def test_a_rough_mask_is_improved_as_the_object_of_value(glow, predict, refused, squares, tmp_path):
    """So that another object of the mask that is there is left alone."""
    predict(glow, *files(tmp_path), "--clicks=50,10,1")
    Image.fromarray((squares == 1) * np.uint8(255)).save(tmp_path / "rough.png")
    given = (f"--mask={tmp_path / 'rough.png'}", "--value=2", "--add")
    predict(glow, *files(tmp_path), *given)
    assert np.array_equal(read(tmp_path / "mask.png"), np.array([0, 2, 1, 0])[squares])
    predict(glow, *files(tmp_path), *given, "--clicks=10,10,1")
    assert np.array_equal(read(tmp_path / "mask.png"), np.array([0, 2, 1, 0])[squares])
    given = (f"--mask={tmp_path / 'mask.png'}", "--value=3")
    assert "value: the first object of the mask is 1, not 3" in refused(
        glow, *files(tmp_path, "new.png"), *given
    )


def test_the_input_is_never_replaced(glow, refused, squares, tmp_path):
    before = (tmp_path / "photo.png").read_bytes()
    given = (f"--input={tmp_path / 'photo.png'}", "--clicks=10,10,1", "--add")
    (tmp_path / "link.png").symlink_to("photo.png")
    for name in ("photo.png", "link.png"):
        assert "is the input itself; give another name" in refused(
            glow, *given, f"--output={tmp_path / name}"
        )
    Image.fromarray(squares).save(tmp_path / "mask.png")
    (tmp_path / "photo.png").rename(tmp_path / "mask_overlay.png")
    given = (f"--input={tmp_path / 'mask_overlay.png'}", *given[1:])
    output = f"--output={tmp_path / 'mask.png'}"
    assert "mask_overlay.png is the input itself" in refused(glow, *given, output)
    assert (tmp_path / "mask_overlay.png").read_bytes() == before
    Image.fromarray(squares).save(tmp_path / "photo.png")
    given = (f"--mask={tmp_path / 'mask_overlay.png'}", *given[1:], output)
    assert "would be replaced by the picture" in refused(glow, *files(tmp_path)[:1], *given)
    assert (tmp_path / "mask_overlay.png").read_bytes() == before


def test_a_mask_of_another_image_is_not_added_to(glow, refused, squares, tmp_path):
    Image.fromarray(np.zeros((64, 60), np.uint8)).save(tmp_path / "mask.png")
    before = (tmp_path / "mask.png").read_bytes()
    given = (*files(tmp_path), "--clicks=10,10,1", "--add", "--no-overlay")
    assert "is 60 pixels wide and 64 high, and the image is 64 wide" in refused(glow, *given)
    assert (tmp_path / "mask.png").read_bytes() == before
    assert "add: " in refused(glow, *files(tmp_path, "none.png"), *given[2:])
    soft = np.linspace(0, 255, 64 * 64).astype(np.uint8).reshape(64, 64)
    Image.fromarray(soft).save(tmp_path / "mask.png")
    assert "are its edges soft?" in refused(glow, *given)
    Image.fromarray(soft).save(tmp_path / "soft.jpg")
    given = (*files(tmp_path, "new.png"), f"--mask={tmp_path / 'soft.jpg'}")
    assert "JPEG blurs the edges of a mask" in refused(glow, *given)


def test_a_model_that_never_saw_masks_takes_none(glow, refused, squares, tmp_path):
    glow.previous_mask = False
    Image.fromarray(squares).save(tmp_path / "rough.png")
    given = (*files(tmp_path), f"--mask={tmp_path / 'rough.png'}")
    assert "mask: this model was not trained with masks as prompts" in refused(glow, *given)
    assert not (tmp_path / "mask.png").exists()


def test_targets_of_a_head_are_objects(headed, predict, refused, squares, tmp_path, capsys):
    predict(headed, *files(tmp_path), "--target=bright; dark")
    assert np.array_equal(read(tmp_path / "mask.png"), np.where(squares > 0, 1, 2))
    assert "bright: 936 of 4096 pixels; dark: 3160" in capsys.readouterr().out
    assert "takes a target" in refused(headed, *files(tmp_path, "b.png"), "--clicks=1,1,1")


def test_adapters_can_be_left_out(run_folder, glow, refused, squares, tmp_path):
    def masks(*options: str) -> np.ndarray:
        output = tmp_path / f"mask{len(options)}.png"
        given = (f"--input={tmp_path / 'photo.png'}", f"--output={output}", f"--run={run_folder}")
        prompt = ("--clicks=10,10,1 30,50,0", "--device=cpu", "--no-overlay")
        run_program("finetune", COMMANDS, ["predict", *given, *prompt, *options])
        return read(output)

    assert not np.array_equal(masks(), masks("--no-adapters"))
    given = (*files(tmp_path, "new.png"), "--clicks=1,1,1", "--no-adapters")
    assert "adapters: the model of this run has none" in refused(glow, *given)
