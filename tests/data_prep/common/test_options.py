"""What is given on command lines and in files, and the config that comes of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_prep.common.errors import UserError
from data_prep.common.parsing import parse, parse_file
from data_prep.options import ShardSegOptions
from finetune.config import EvaluateConfig, TrainConfig
from pretrain.config import PretrainConfig

ROOT = Path(__file__).parents[3]
STAGE_ONE = ["--data.shards=x", "--output=y"]
QUICKSTART = [f"--config={ROOT / 'configs/pretrain/quickstart.yaml'}", *STAGE_ONE]
STAGE_TWO = [f"--config={ROOT / 'configs/finetune/quickstart.yaml'}", *STAGE_ONE]


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return f"--config={path}"


def test_words_that_yaml_takes_for_truth_values_are_words(tmp_path):
    recipe = write(tmp_path / "recipe.yaml", "precision: no\n")
    for options in ([], ["--precision=no"], ["--precision", "no"], [recipe]):
        config, resolved = parse(PretrainConfig, "train", [*QUICKSTART, *options])
        assert config.precision == "no"
    assert parse_file(PretrainConfig, Path(write(tmp_path / "c.yaml", resolved)[9:]))[0] == config


def test_a_second_file_changes_what_it_names_and_leaves_the_rest(tmp_path):
    second = write(tmp_path / "second.yaml", "prompts: {rounds: 2, clicks: {max_negative: 4}}\n")
    config, _ = parse(TrainConfig, "train", [*STAGE_TWO, second])
    before, _ = parse(TrainConfig, "train", STAGE_TWO)
    expected = before.prompts.init_args | {"rounds": 2}
    expected["clicks"] = expected["clicks"] | {"max_negative": 4}
    assert config.prompts.init_args == expected
    same, _ = parse(TrainConfig, "train", [*STAGE_TWO, "--prompts={rounds: 2}"])
    assert same.prompts.init_args == before.prompts.init_args | {"rounds": 2}

    off = write(tmp_path / "off.yaml", "objectives: {emix: {weight: 0}}\ndata:\n")
    config, _ = parse(PretrainConfig, "train", [*QUICKSTART, off])
    before_one, _ = parse(PretrainConfig, "train", QUICKSTART)
    assert set(config.objectives) == {"mae", "emix", "shed"}
    emix = before_one.objectives["emix"].init_args | {"weight": 0}
    assert config.objectives["emix"].init_args == emix
    assert config.objectives["mae"] == before_one.objectives["mae"]


def test_an_option_of_a_component_inside_another_is_given_once(tmp_path):
    options = [f"--config={ROOT / 'configs/finetune/msa_text.yaml'}", *STAGE_ONE]
    second = write(tmp_path / "second.yaml", "prompts: {kinds: {text: {bank: x}}}\n")
    dotted = "--prompts.kinds.text.bank=x"
    for option in (dotted, second, "--prompts={kinds: {text: {bank: x}}}"):
        config, _ = parse(TrainConfig, "train", [*options, option])
        text = config.prompts.init_args["kinds"]["text"]
        assert text["init_args"] == {"bank": "x", "rounds": 1}
        assert set(text) == {"class_path", "init_args"}
    swapped = "--prompts.kinds.text.class_path=TargetsOnly"
    config, _ = parse(TrainConfig, "train", [*options, dotted, swapped])
    text = config.prompts.init_args["kinds"]["text"]
    assert text == {"class_path": "TargetsOnly", "init_args": {}}


def test_a_mapping_of_values_is_replaced_whole(tmp_path):
    """Fractions of a split, say, which must sum to 1."""
    recipe = write(tmp_path / "recipe.yaml", "split: {train: 0.6, val: 0.2, test: 0.2}\n")
    options = [recipe, "--layout=x", "--output=y", "--split={train: 0.5, test: 0.5}"]
    assert parse(ShardSegOptions, "shard-seg", options)[0].split == {"train": 0.5, "test": 0.5}


def test_another_class_starts_with_its_own_options():
    options = [*STAGE_TWO, "--model.encoder_adapter={class_path: MsaAdapter, scale: 2.0}"]
    config, _ = parse(TrainConfig, "train", [*options, "--prompts=TargetsOnly"])
    assert config.prompts.class_path == "finetune.prompts.prompting.TargetsOnly"
    assert config.prompts.init_args == {}
    assert config.model.encoder_adapter.init_args["scale"] == 2.0


def test_a_class_has_one_name_however_it_is_spelt():
    paths = ("SamDecoder", "finetune.model.SamDecoder", "finetune.model.mask_decoder.SamDecoder")
    resolved = {
        parse(TrainConfig, "train", [*STAGE_TWO, f"--model.decoder={path}"])[1] for path in paths
    }
    assert len(resolved) == 1
    assert yaml.safe_load(*resolved)["model"]["decoder"]["class_path"] == paths[1]


def test_a_plus_adds_to_what_was_given_or_to_the_default():
    options = ["--data.shards=a", "--data.shards+=b", "--output=y"]
    config, _ = parse(PretrainConfig, "train", [QUICKSTART[0], *options])
    assert config.data.shards == ["a", "b"]
    common = ["--run=x", *STAGE_ONE]
    before, _ = parse(EvaluateConfig, "evaluate", common)
    config, _ = parse(EvaluateConfig, "evaluate", [*common, "--protocols+=TargetOnly"])
    assert config.protocols[:-1] == before.protocols
    assert config.protocols[-1].class_path.endswith(".TargetOnly")


@pytest.mark.parametrize("text", ["[1, 5]", "1,5"])
def test_lists_of_a_class_are_written_as_other_lists_are(text):
    common = ["--run=x", *STAGE_ONE]
    options = [*common, f"--protocols=[{{class_path: Clicks, numbers: '{text}'}}]"]
    if text.startswith("["):
        options[-1] = options[-1].replace("'", "")
    config, _ = parse(EvaluateConfig, "evaluate", options)
    assert config.protocols[0].init_args["numbers"] == [1, 5]


@pytest.mark.parametrize("how", ["option", "class", "file"])
def test_null_takes_a_class_out_of_a_recipe(tmp_path, how):
    (tmp_path / "null.yaml").write_text("evaluators: {validation: null}\n")
    words = {
        "option": ["--evaluators.validation", "null"],
        "class": ["--evaluators.validation.class_path=null"],
        "file": ["--config", str(tmp_path / "null.yaml")],
    }[how]
    recipe = ["--config", "configs/baselines/unet.yaml", "--data.shards=x", "--output=y"]
    assert list(parse(TrainConfig, "train", recipe)[0].evaluators) == ["validation"]
    given, resolved = parse(TrainConfig, "train", [*recipe, *words])
    assert given.evaluators == {} and yaml.safe_load(resolved)["evaluators"] == {}
    if how != "file":
        typed = [words[0].replace("validation", "validaton"), *words[1:]]
        with pytest.raises(UserError, match="no 'validaton' in evaluators; did you mean valid"):
            parse(TrainConfig, "train", [*recipe, *typed])


def test_null_is_refused_where_it_means_nothing(tmp_path):
    for option in ("--seed=null", "--optim.lr=null", "--precision=null", "--evaluators=null"):
        with pytest.raises(UserError, match="null is not"):
            parse(PretrainConfig, "train", [*QUICKSTART, option])
    empty = write(tmp_path / "empty.yaml", "seed:\n")
    with pytest.raises(UserError, match=r"empty\.yaml: seed: null is not a whole number"):
        parse(PretrainConfig, "train", [*QUICKSTART, empty])
    assert parse(PretrainConfig, "train", [*QUICKSTART, "--optim.clip=null"])[0].optim.clip is None


SCRIPT = """
import os, sys
from data_prep.common.cli import Command, run_program
from pretrain.config import BenchmarkOptions

def measure(config, resolved):
    assert "torch" not in sys.modules
    spins = os.environ["GOMP_SPINCOUNT"]
    import torch
    print(spins, torch.get_num_threads())

run_program("x", {"y": Command("", "__main__:measure", (BenchmarkOptions,))}, ["y", *sys.argv[1:]])
"""


def test_threads_give_way_to_other_programs():
    """The variable is read when PyTorch is loaded, so it must be set before."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP", "OMP"))}
    for options, threads in (([], None), (["--threads=1"], 1)):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *options],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        spins, used = map(int, done.stdout.split())
        assert 0 < spins < 100_000
        assert used == threads or threads is None


@pytest.mark.parametrize("words", [["--extend"], ["--extend", "--workers=2"], ["--extend=true"]])
def test_what_is_true_or_false_needs_no_value(words):
    options = ["--layout=x", "--output=y", *words]
    assert parse(ShardSegOptions, "shard-seg", options)[0].extend is True
    for negative in (["--extend", "false"], ["--no-extend"], ["--no_extend", "--workers=2"]):
        assert parse(ShardSegOptions, "shard-seg", [*options, *negative])[0].extend is False
    for wrong in (["--no-workers"], ["--no-extend=true"], ["--no-extnd"]):
        with pytest.raises(UserError, match="there is no such option"):
            parse(ShardSegOptions, "shard-seg", [*options, *wrong])
