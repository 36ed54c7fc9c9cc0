"""Options, commands and figures that the documents name; nothing is started here."""

import re
import shlex
from collections.abc import Iterator

import pytest

from data_prep.__main__ import COMMANDS as DATA_PREP
from data_prep.common.given import options_of
from data_prep.common.parsing import parse_all
from data_prep.common.signatures import read_parameters
from data_prep.layouts import list_layouts
from data_prep.options import ShardOptions, ShardSegOptions
from finetune.__main__ import COMMANDS as FINETUNE
from finetune.config import TrainConfig
from finetune.train import COMMAND as FINETUNE_TRAIN
from helpers.documents import commands_of
from helpers.recipes import ROOT
from pretrain.__main__ import COMMANDS as PRETRAIN
from pretrain.config import PretrainConfig
from pretrain.train import COMMAND as PRETRAIN_TRAIN

README = (ROOT / "README.md").read_text()


def options_named_in(text: str) -> Iterator[str]:
    """Options in inline code, not in code blocks."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for code in re.findall(r"`([^`]+)`", prose):
        for word in shlex.split(code.replace("'", "")) if "--" in code else ():
            if word.startswith("--"):
                yield word[2:].partition("=")[0].replace("-", "_")


def test_options_that_the_readme_names_exist():
    configs = [TrainConfig, PretrainConfig, ShardOptions, ShardSegOptions]
    for command in (*DATA_PREP.values(), *FINETUNE.values(), *PRETRAIN.values()):
        configs += () if isinstance(command.configs, str) else command.configs
    configs += (layout for layouts in list_layouts().values() for layout in layouts)
    known = {"help", "config", "version"}
    known |= {"array", "dependency", "exclude"}  # of sbatch, of rsync
    known |= {f"evaluators.{name}" for name in ("probe", "held_out", "figures", "validation")}
    known |= {name for config in configs for name in options_of(config)}
    known |= {f"objectives.emix.{name}" for name in read_parameters("pretrain.objectives.EMix")}
    prompting = read_parameters("finetune.prompts.simulate.ClicksAndBoxes")
    known |= {f"prompts.{name}" for name in prompting}
    known |= {f"training.{name}" for name in options_of(TrainConfig)}  # of studies
    known |= {f"no_{name}" for name in known}  # of those that are true or false
    named = set(options_named_in(README))
    assert len(named) > 10
    assert named <= known, named - known


PROGRAMS = {
    "python -m data_prep ": DATA_PREP,
    "python -m pretrain ": PRETRAIN,
    "python -m finetune ": FINETUNE,
}
SCRIPTS = {"pretrain/train.py ": PRETRAIN_TRAIN, "finetune/train.py ": FINETUNE_TRAIN}


def parsed(command: str) -> None:
    """Check the options of a command line of ours, as the program does before anything else."""
    for start, commands in PROGRAMS.items():
        if command.startswith(start):
            name, *words = shlex.split(command.removeprefix(start))
            found = commands[name]
            words = found.named(words)
            parse_all(found.find_configs(words), name, words)
            return
    (script,) = (script for script in SCRIPTS if script in command)
    words = shlex.split(command.partition(script)[2])
    parse_all(SCRIPTS[script].find_configs(words), script, words)


@pytest.mark.parametrize(
    "document", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name
)
def test_commands_in_the_documents_have_options_that_are_taken(document, monkeypatch):
    """Their data are not here. `accelerate launch ...` stands for the command before it."""
    monkeypatch.chdir(ROOT)
    before = ""
    for command in commands_of(document):
        if command.startswith("accelerate launch ..."):
            command = before + command.removeprefix("accelerate launch ...")
        elif command.startswith("accelerate launch"):
            before = command
        parsed(command)


def test_figures_in_the_readme_are_those_of_the_benchmarks():
    measured = (ROOT / "docs" / "results.md").read_text().splitlines()
    section = README.partition("\n## Speed\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    assert len(rows) > 10
    for row in rows:
        assert row in measured, row
