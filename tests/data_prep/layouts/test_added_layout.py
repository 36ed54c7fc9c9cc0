"""A layout from outside the package, as CONTRIBUTING.md adds it."""

import pytest

from data_prep.__main__ import main
from data_prep.loader import ShardDataset


@pytest.mark.parametrize("workers", [1, 2])
def test_it_is_sharded_with_its_own_options(contributed, workers):
    output = contributed / "set"
    main(
        [
            "shard",
            "--layout=stripes.Stripes",
            "--count=6",
            f"--output={output}",
            f"--workers={workers}",
            "--shard_records=2",
        ]
    )
    dataset = ShardDataset(output)
    assert len(dataset) == 6 and dataset.info["source"]["count"] == 6
    assert {tuple(dataset.record(index).image[:3, 0]) for index in range(6)} >= {(0, 0, 255)}


def test_its_help_lists_its_options_and_no_other(contributed, capsys):
    main(["shard", "--layout", "stripes.Stripes", "--help"])
    text = capsys.readouterr().out
    assert "--count               Images to draw. (a whole number; default: 4)" in text
    assert "--window" not in text and "--min_size" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--class_folders=true"], "--class_folders: is an option of folder, not of layout str"),
        (["--cuont=3"], "--cuont: there is no such option; did you mean --count?"),
        (["--count=many"], "--count: 'many' is not a whole number"),
    ],
)
def test_other_options_are_refused_by_name(contributed, capsys, options, message):
    with pytest.raises(SystemExit):
        main(["shard", "--layout=stripes.Stripes", f"--output={contributed / 'set'}", *options])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert not (contributed / "set").exists()


def test_an_option_added_later_leaves_its_set_valid(contributed, capsys):
    """The class gains an option with a default; another value is another set."""
    command = ["shard", "--layout=stripes.Stripes", f"--output={contributed / 'set'}"]
    main(command)
    before = (contributed / "set" / "train-000000.tar").read_bytes()
    source = (contributed / "stripes.py").read_text()
    added = source.replace("    count: int = 4\n", "    bright: int = 255\n    count: int = 4\n")
    (contributed / "newer.py").write_text(added)
    for path in (contributed / "set").glob("*.index.json"):
        path.write_text(path.read_text().replace("stripes.Stripes", "newer.Stripes"))
    command[1] = "--layout=newer.Stripes"
    main(command)
    assert (contributed / "set" / "train-000000.tar").read_bytes() == before
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*command, "--bright=9"])
    assert "was made with --bright 255, not 9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.Stripes", "nowhere.Stripes cannot be imported"),
        ("stripes.Circles", "stripes.Circles cannot be imported"),
        ("stripes.Sample", "is not a subclass of data_prep.layouts.Layout"),
        ("data_prep.layouts.busi.Busi", "is for segmentation, not for pretraining"),
    ],
)
def test_classes_that_are_no_such_layout_are_refused(contributed, capsys, name, message):
    with pytest.raises(SystemExit):
        main(["shard", f"--layout={name}", f"--output={contributed / 'set'}"])
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
