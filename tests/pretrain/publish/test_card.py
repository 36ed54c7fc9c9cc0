"""A model card says what made an encoder, and nothing that others must not know."""

import json
from dataclasses import replace

import pytest
import yaml
from PIL import Image

from data_prep.common.errors import UserError
from data_prep.loader.dataset import ShardDataset
from pretrain.encoder import SamEncoder
from pretrain.publish.card import model_card
from pretrain.publish.config import PublishOptions
from pretrain.publish.facts import describe_set, public_options, read_run, without_paths


def test_a_dry_run_writes_what_would_be_published(publish, run, image_shards, tmp_path, capsys):
    publish("--dry_run=true")
    output = run.with_name("publish-run")
    assert f"written: {output}; nothing was uploaded" in capsys.readouterr().out
    files = {p.relative_to(output).as_posix(): p for p in output.rglob("*") if p.is_file()}
    assert set(files) == {
        "README.md",
        "encoder.safetensors",
        "encoder.json",
        "figures/losses.png",
        "figures/mix_similarity.png",
        "figures/rates.png",
    }
    for name in ("README.md", "encoder.json"):
        text = files[name].read_text()
        for word in ("secret", "shards/", str(tmp_path), str(image_shards), "start_from"):
            assert word not in text, (name, word)
    assert SamEncoder.from_pretrained(output).image_size == 224

    _, head, text = files["README.md"].read_text().split("---\n", 2)
    assert yaml.safe_load(head) == {
        "license": "cc-by-4.0",
        "library_name": "samaritan",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["medical", "segment-anything", "self-supervised", "vision"],
    }
    dataset = ShardDataset(image_shards)
    for line in (
        f"| fingerprint | {dataset.fingerprint[:12]} |",
        "| records | 40 |",
        "| kind | pretraining (folder) |",
        "| steps | 3 of 3 |",
        "| images seen | 12 |",
        "| `image_size` | 224 |",
        "| `optim.batch_size` | 4 |",
        "| `objectives.mae.class_path` | pretrain.objectives.MaskedAutoencoding |",
        "| started from | new weights |",
        "No probe was run on it.",
        "![figures/losses.png](figures/losses.png)",
    ):
        assert line in text.splitlines(), line
    assert "**It is not a medical device**" in text and "it is as it was initialised" in text
    with pytest.raises(SystemExit):
        publish("--dry_run=true")
    assert "is there already; give a new or empty folder" in capsys.readouterr().err


def test_pictures_and_probes_are_published_on_request(publish, run, tmp_path, capsys) -> None:
    publish("--dry_run=true")
    pictures = ["moved_tokens.png", "reconstructions.png"]
    left_out = f"patients' images: {', '.join(pictures)} (--pictures true)"
    assert left_out in capsys.readouterr().out
    probe = tmp_path / "probe"
    probe.mkdir()
    probe.joinpath("probes.md").write_text(
        "# Probes\n\n## isic\n\n| probe | features | accuracy |\n|---|---|---|\n"
        "| kNN | /home/secret/run | 0.74 (0.70, 0.78) |\n\n`python -m pretrain probe --run x`\n"
    )
    Image.new("L", (4, 4)).save(probe / "probes.png")
    output = tmp_path / "out"
    publish("--dry_run=true", f"--output={output}", f"--probe={probe}", "--pictures=true")
    names = {path.name for path in (output / "figures").iterdir()}
    curves = {"losses.png", "rates.png", "mix_similarity.png"}
    assert names == {*curves, *pictures, "probes.png"}
    lines = (output / "README.md").read_text().splitlines()
    assert "| kNN | run | 0.74 (0.70, 0.78) |" in lines and "### isic" in lines
    assert not [line for line in lines if "pretrain probe" in line or "secret" in line]


def test_results_of_evaluators_and_hours_are_those_of_the_metrics(run) -> None:
    rows = [
        {"step": 1, "mae": 1.0, "images_per_second": 2.0},
        {"step": 1, "knn/accuracy": 0.5, "knn/auroc": 0.6},
        {"step": 3, "mae": 0.5, "images_per_second": 8.0},
        {"step": 3, "knn/accuracy": 0.75},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "metrics.jsonl").write_text(text)
    facts = read_run(run)
    assert facts.hours == pytest.approx((4 / 2 + 8 / 8) / 3600)
    assert facts.results == [("knn/accuracy", 0.75, 3), ("knn/auroc", 0.6, 1)]
    encoder = SamEncoder.from_pretrained(run)
    options = PublishOptions(run=run, repo="clinic/encoder", license="other")
    lines = model_card(options, facts, encoder, [], []).splitlines()
    assert "| knn/accuracy | 0.7500 | 3 |" in lines
    base = replace(facts, started_from="hf:org/sam@v1")
    card = model_card(options, base, encoder, [], [])
    assert "base_model: org/sam\n" in card
    assert "it is that of the weights that training started from" in card


def test_options_that_name_files_or_records_are_left_out(tmp_path, monkeypatch) -> None:
    (tmp_path / "smiths").mkdir()
    monkeypatch.chdir(tmp_path)
    files = {"file": "/a/b", "bank": "smith.yaml", "all": ["a.pth"], "folder": "smiths"}
    config = {
        "output": "runs/x",
        "start_from": "hf:org/name",
        "data": {"shards": ["A", "B"], "weights": [1, 2.5], "split": "train", "workers": 3},
        "objectives": {"mae": {"class_path": "mine.Loss", "init_args": {**files, "n": 3}}},
        "optim": {"lr": 0.1, "betas": [0.9, 0.95], "clip": None},
        "evaluators": {"knn": {"init_args": {"shards": ["C"]}}},
        "skip_keys": ["0f3a"],
        "anything_new": "word",
        "seed": 0,
    }
    assert public_options(config) == {
        "data.weights": [1, 2.5],
        "data.split": "train",
        "objectives.mae.class_path": "mine.Loss",
        "objectives.mae.init_args.n": 3,
        "optim.lr": 0.1,
        "optim.betas": [0.9, 0.95],
        "optim.clip": None,
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("| /data/patients/1234 | 0.74 |", "| 1234 | 0.74 |"),
        ("`../runs/pretrain` of ~/x", "`pretrain` of x"),
        ("0.74/0.80, C:\\Users\\me, a\\|b", "0.74/0.80, me, a\\|b"),
        ("https://host/set and 8 x 8", "set and 8 x 8"),
    ],
)
def test_only_the_last_part_of_a_path_is_kept(text, expected) -> None:
    assert without_paths(text) == expected


def test_sets_that_are_gone_or_changed_are_named_by_their_fingerprint(image_shards) -> None:
    digest = ShardDataset(image_shards).fingerprint[:12]
    assert ("records", "40") in describe_set(str(image_shards), "train", digest).figures
    for root, split in ((str(image_shards / "absent"), "train"), (str(image_shards), "other")):
        gone = describe_set(root, split, digest)
        assert (gone.fingerprint, gone.figures) == (digest, [])
    assert describe_set(str(image_shards), "train", "0" * 12).figures == []


def test_a_set_of_many_classes_does_not_list_them(image_shards, monkeypatch) -> None:
    """They are names of folders, which may be those of patients where there are many."""
    read = ShardDataset.__init__

    def with_classes(dataset, *arguments):
        read(dataset, *arguments)
        dataset.info["classes"] = dict.fromkeys(map(str, range(21)), 1)

    monkeypatch.setattr(ShardDataset, "__init__", with_classes)
    figures = describe_set(str(image_shards), "train", "").figures
    assert ("classes", "21") in figures
    assert not [name for name, _ in figures if name.startswith("classes ")]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(run, capsys) -> None:
    newest = read_run(run).checkpoint
    with newest.weights_file("encoder").open("r+b") as file:
        file.truncate(1000)
    facts = read_run(run)
    assert (facts.step, facts.checkpoint.folder.name) == (2, "step-00000002")
    facts.checkpoint.weights_file("encoder").unlink()
    with pytest.raises(UserError, match=r"step-00000002: encoder\.safetensors is missing"):
        read_run(run)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--run=absent",), "run: absent is not a run folder of pretrain/train.py"),
        (("--repo=encoder",), "repo: 'encoder' is not a name such as clinic/thyroid"),
        (("--output=x",), "output: is for --dry_run true"),
        (("--dry_run=true", "--probe=absent"), "probe: absent has no probes.md, as `pretrain pro"),
    ],
)
def test_bad_options_are_one_line(refused, options, reason, run) -> None:
    assert reason in refused(*options)
    assert [path.name for path in run.parent.iterdir()] == ["run"]
