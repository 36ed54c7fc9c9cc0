"""Files of texts: all targets have some, held-out ones are not trained on, faults are one line."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.common.errors import UserError
from data_prep.layouts.acdc import LABELS as ACDC
from data_prep.layouts.brats import LABELS as BRATS
from data_prep.layouts.btcv import ORGANS as BTCV
from finetune.prompts.text_bank import TextBank

FOLDER = Path(__file__).parents[3] / "configs" / "text"
AMOS = (
    *("spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach"),
    *("arota", "postcava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum"),
    *("bladder", "prostate/uterus"),
)
"""As in AMOS22's dataset.json."""
DECATHLON = ("edema", "non-enhancing tumor", "enhancing tumour")
ABBREVIATED = ("rkid", "lkid", "gall", "eso", "sto", "aorta", "IVC", "veins", "rad", "lad")
"""As lists of BTCV for MONAI have them."""
TARGETS = {
    "acdc": (*ACDC, "RV", "MLV", "LVC"),
    "amos": AMOS,
    "brats": (*BRATS, *DECATHLON),
    "btcv": (*BTCV, *ABBREVIATED),
    "busi": ("lesion",),
    "ddti": ("nodule",),
    "hippocampus": ("Anterior", "Posterior"),
    "isic": ("lesion",),
    "lungs": ("lungs", "left lung", "right lung", "left", "right"),
    "polyps": ("polyp",),
    "refuge": ("optic disc", "optic cup", "disc", "cup"),
    "tnscui": ("nodule",),
}
"""What the data sets call their targets."""

SMALL = """
templates:
  train: ["{}", "segment the {}"]
  held_out: ["where is the {}?"]
targets:
  disc:
    labels: [Optic Disc]
    train: {names: [disc, round shape], definitions: [the bright circle]}
    held_out: {names: [circle], definitions: [a round bright thing]}
  square:
    train: {names: [square]}
"""


def bank_of(tmp_path: Path, text: str) -> TextBank:
    path = tmp_path / "texts.yaml"
    path.write_text(text)
    return TextBank(path)


def test_there_is_a_file_for_each_data_set() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(TARGETS)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_texts_are_many_unique_and_held_out_ones_are_never_trained_on(name: str) -> None:
    bank = TextBank(FOLDER / f"{name}.yaml")
    bank.check(TARGETS[name])
    assert len({id(bank._find(target)) for target in TARGETS[name]}) >= len(bank.targets)
    rng = np.random.default_rng(0)
    trained = [text for target in bank.targets for text in bank.texts(target)]
    new = [text for target in bank.targets for text in bank.texts(target, held_out=True)]
    assert len({text.lower() for text in trained + new}) == len(trained + new)
    for target in bank.targets:
        assert len(bank.texts(target)) > 15 and len(bank.texts(target, held_out=True)) > 5
        known = {word for text in bank.texts(target) for word in text.lower().split()}
        said = [bank.draw([target], rng) for _ in range(80)]
        asked = [bank.draw([target], rng, held_out=True) for _ in range(80)]
        assert set(said) <= set(bank.texts(target)) and len(set(said)) > 8
        assert set(asked) <= set(bank.texts(target, held_out=True)) and len(set(asked)) > 3
        # a held-out wording has words that a tower trained from nothing can have learned
        for text in bank.texts(target, held_out=True):
            assert known & set(text.lower().split()), text
    several = list(bank.targets)[:3]
    if len(several) > 1:
        together = [bank.draw(several, rng) for _ in range(80)]
        held = [bank.draw(several, rng, held_out=True) for _ in range(80)]
        assert not set(together) & set(held) and all(" and " in text for text in together)


def test_texts_of_a_small_file(tmp_path: Path) -> None:
    bank = bank_of(tmp_path, SMALL)
    trained = {"disc", "round shape", "segment the disc", "segment the round shape"}
    assert set(bank.texts("optic_disc")) == trained | {"the bright circle"}
    new = {"where is the disc?", "where is the round shape?", "where is the circle?", "circle"}
    new |= {"segment the circle", "a round bright thing"}
    assert set(bank.texts("disc", held_out=True)) == new
    rng = np.random.default_rng(0)
    both = {bank.draw(["disc", "square"], rng) for _ in range(99)}
    assert both == {
        *("disc and square", "round shape and square"),
        *("segment the disc and square", "segment the round shape and square"),
    }
    drawn = [bank.draw(["disc"], rng) for _ in range(400)]
    assert 150 < drawn.count("the bright circle") < 250


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "names: [square]",
            "names: []",
            r"targets\.square\.train\.names: expected a list of texts",
        ),
        (
            "names: [square]",
            "names: [disc]",
            r"'disc' is a text of disc \(train\) and again of squ",
        ),
        ("names: [circle]", "names: [disc]", r"'disc' is a text of disc \(train\) and again of d"),
        ("names: [square]", "names: [a, A]", r"square\.train\.names: a text stands there twice"),
        ("names: [square]", "names: [3]", r"square\.train\.names: expected a list of texts"),
        ("names: [square]", "name: [square]", r"no 'name'; there are names, definitions"),
        ("{names: [square]}", "{definitions: [a b]}", r"square\.train\.names: give at least one"),
        ('"segment the {}"', '"segment it"', r"template 'segment it' must have one \{\}"),
        ("[Optic Disc]", "[Square]", r"'square' is a label of disc and square"),
        ("templates:", "template:", r"there is no 'template'; there are templates, targets"),
        (
            "  square:\n    train: {names: [square]}",
            "  square: 3",
            r"targets\.square: expected a map",
        ),
        ("templates:", "templates: [", r"is not YAML"),
    ],
)
def test_faults_are_one_line_with_the_file(old, new, message, tmp_path: Path) -> None:
    assert old in SMALL
    with pytest.raises(UserError, match=message) as refused:
        bank_of(tmp_path, SMALL.replace(old, new, 1))
    assert "texts.yaml" in str(refused.value) and "\n" not in str(refused.value)


def test_targets_without_texts_are_named(tmp_path: Path) -> None:
    bank = bank_of(tmp_path, SMALL)
    with pytest.raises(UserError, match=r"no texts for target 'sqare'; did you mean square\?"):
        bank.check(["disc", "sqare"])
    with pytest.raises(UserError, match=r"no texts for target 'liver'; it has disc, square; add"):
        bank.draw(["liver"], np.random.default_rng(0))
    with pytest.raises(UserError, match=r"'nowhere\.yaml' is not a file of texts; give a file"):
        TextBank("nowhere.yaml")
    held = SMALL.replace('\n  held_out: ["where is the {}?"]', "")
    with pytest.raises(UserError, match=r"has no held-out text for square"):
        bank_of(tmp_path, held).draw(["square"], np.random.default_rng(0), held_out=True)
