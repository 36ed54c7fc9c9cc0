"""Every command: its help, what starting it imports, and how options are read."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.common.given import options_of
from finetune.config import TrainConfig
from helpers.programs import PROGRAMS, ROOT, SCRIPTS, start

ALL = [(name, command) for name, commands in PROGRAMS.items() for command in commands]


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        *((name, (command, "--help")) for name, command in ALL),
        *((name, ("--help",)) for name in (*PROGRAMS, *SCRIPTS)),
        ("data_prep", ("shard", "--layout", "hf", "--help")),
        ("data_prep", ("shard-seg", "--help", "--layout=pairs")),
        ("data_prep", ("layouts",)),
        ("data_prep", ("layouts", "nnunet")),
    ],
)
def test_help_imports_nothing_heavy(program: str, arguments: tuple[str, ...]) -> None:
    status, output, errors, imported = start(program, *arguments)
    assert (status, errors, imported) == (0, "", set())
    assert len(output.splitlines()) > 2
    assert not re.search(r"<class|Literal|Union|Optional|Component|tuple\[|None", output)


def test_every_option_is_in_the_help() -> None:
    _, output, _, _ = start("finetune/train.py", "--help")
    for line in (
        "  --output              Run folder; made, or continued with --resume auto. (a",
        "                        path; required)",
        "  --data.cases          Use only this many groups (patients), the first of a",
        "How strongly training images are changed; 0 leaves a property as it is:",
        "                        (a number; default: 0.0)",
        "Options of finetune.prompts.simulate.ClicksAndBoxes, the default of --prompts:",
        "  --prompts.clicks.max_negative",
    ):
        assert line in output.splitlines()
    for name in options_of(TrainConfig):
        assert re.search(rf"^  --{re.escape(name)}( |$)", output, re.MULTILINE), name


def test_a_reader_that_wants_no_more_is_no_error() -> None:
    command = [sys.executable, "-m", "data_prep", "shard", "--help"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait(60)


@pytest.mark.parametrize("program", [*PROGRAMS, *SCRIPTS])
def test_version(program: str) -> None:
    status, output, errors, _ = start(program, "--version")
    assert (status, output, errors) == (0, "samaritan 0.1.0\n", "")


@pytest.mark.parametrize(
    ("lines", "seen"),
    [
        (["run_command('job', JOB)"], "False True True"),
        (["run_command('job', JOB, [])"], "True True False"),
        (["gc.disable()", "run_command('job', JOB, [])"], "False False False"),
        (
            [
                "with suppress(ImportError): run_command('job', Command('Absent.', 'absent:run'))",
                "run_command('job', JOB, [])",
            ],
            "True True False",
        ),
    ],
)
def test_what_a_program_imports_is_not_searched_for_garbage(lines, seen, tmp_path) -> None:
    """But a process that only calls a command searches, or not, as it did."""
    (tmp_path / "job.py").write_text(
        "import gc\nenabled = gc.isenabled()\n"
        "def run(words): print(enabled, gc.isenabled(), gc.get_freeze_count() > 0)\n"
    )
    imports = ["import gc", "from contextlib import suppress"]
    imports += ["from data_prep.common.cli import Command, run_command"]
    code = "\n".join([*imports, "JOB = Command('A job.', 'job:run')", *lines])
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == (f"{seen}\n", "")


@pytest.mark.parametrize(
    ("given", "planes"),
    [
        ("axial", ("axial",)),
        ("axial,coronal", ("axial", "coronal")),
        ("[axial, coronal]", ("axial", "coronal")),
        ("[axial]", ("axial",)),
    ],
)
def test_lists_are_taken_as_people_write_them(given: str, planes: tuple, tmp_path: Path) -> None:
    from data_prep.common.parsing import parse
    from data_prep.layouts.nifti_files import NiftiFiles

    config, _ = parse(NiftiFiles, "nifti", ["--input=x", "--planes", given])
    assert config.planes == planes
    (tmp_path / "planes.yaml").write_text(f"planes: {given}\n")
    config, _ = parse(NiftiFiles, "nifti", ["--input=x", f"--config={tmp_path / 'planes.yaml'}"])
    assert config.planes == planes


def test_one_case_one_target_one_weight() -> None:
    from data_prep.common.parsing import parse
    from finetune.config import TrainConfig
    from pretrain.config import PretrainConfig

    options = ["--data.shards=x", "--output=y", "--data.cases=5", "--data.targets=right kidney"]
    config, _ = parse(TrainConfig, "train", options)
    assert (config.data.cases, config.data.targets) == (5, ["right kidney"])
    config, _ = parse(TrainConfig, "train", [*options, "--data.cases", "null"])
    assert config.data.cases is None
    recipe = ["--config=configs/pretrain/quickstart.yaml", "--data.shards=x", "--output=y"]
    one, _ = parse(PretrainConfig, "train", [*recipe, "--data.weights=2", "--optim.betas=0.8,0.9"])
    assert one.data.weights == [2.0] and one.optim.betas == (0.8, 0.9)
