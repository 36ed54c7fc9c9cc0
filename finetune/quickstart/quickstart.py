"""The whole pipeline in minutes, by the commands that a user types, and a report at the end.

Each command is printed before it runs. A step that is done is not run again, so the same command
continues after an interruption.
"""

import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from data_prep.common.cli import write_resolved_config
from data_prep.common.errors import UserError
from data_prep.common.files import atomic_path, sha256, write_json
from data_prep.format.codec import encode_png
from data_prep.format.index import read_json
from finetune.config import CaseSelection, QuickstartConfig
from finetune.data.cases import LabelledCases
from finetune.inference.loading import load_segmenter
from finetune.inference.prompted import PromptedImage
from finetune.quickstart.report import RUNS, write_report
from pretrain.engine.cpu import count_cores, has_fast_bf16
from pretrain.engine.progress import format_time

PROGRAMS = {
    "python": [sys.executable],
    "accelerate": [sys.executable, "-m", "accelerate.commands.accelerate_cli"],
}
"""What the first word of a command, as printed, stands for: programs of this environment."""

STATE_FILE = "state.json"
PREDICTION_CLICKS = 3
LAST_HEADLINE = 5


def quickstart(config: QuickstartConfig, resolved: str) -> None:
    """Run the whole pipeline on a small data set and write a report."""
    for path in (Path("pretrain/train.py"), config.pretrain_recipe, config.finetune_recipe):
        if not path.is_file():
            raise UserError(f"{path} is missing; run this in the folder that holds configs/")
    if config.input is not None and not config.input.is_dir():
        raise UserError(f"input: {config.input} is not a folder")
    steps = Steps(prepare_output(config, resolved))
    out = config.output
    images, labelled, encoder = out / "images", out / "labelled", out / "pretrain"

    threads = [] if config.threads is None else ["--threads", str(config.threads)]
    steps.headline(1, "Shards of real images")
    if config.input is None:
        # nothing to hide, and the same bytes on every machine
        source, held_out = ["--layout", "samples", "--salt", "samples"], []
        labelled_source = source
    else:
        # Stage one must not see what stage two is tested on; and such volumes may be small.
        source = ["--layout", "nifti", "--input", str(config.input), "--min-size", "16"]
        held_out = ["--held-out", str(labelled)]
        labelled_source = ["--layout", "nnunet", "--input", str(config.input)]
    shard = ["python", "-m", "data_prep"]
    steps.run("labelled shards", [*shard, "shard-seg", *labelled_source, "--output", str(labelled)])
    steps.run("image shards", [*shard, "shard", *source, *held_out, "--output", str(images)])

    steps.headline(2, "Pretraining of the encoder on unlabelled images")
    launch = ["accelerate", "launch", "--config_file", "configs/accelerate/single.yaml"]
    precision = "bf16" if torch.cuda.is_available() or has_fast_bf16() else "no"
    recipe = ["pretrain/train.py", "--config", str(config.pretrain_recipe)]
    options = ["--data.shards", str(images), "--output", str(encoder), "--resume", "auto"]
    options += ["--precision", precision, *threads]
    steps.run("pretraining", [*launch, *recipe, *options])

    steps.headline(3, "Adaptation to clicks and boxes, from the pretrained and from a new encoder")
    # On a CPU both at once: small matrices gain more from one run per core than from threads.
    together = not torch.cuda.is_available() and count_cores() > 1
    cores = config.threads or count_cores()
    each = ["--threads", str(max(1, cores // len(RUNS)))] if together else threads
    recipe = ["finetune/train.py", "--config", str(config.finetune_recipe)]
    commands = {}
    for run, start in zip(RUNS, (["--encoder", str(encoder)], []), strict=True):
        options = ["--data.shards", str(labelled), *start]
        options += ["--output", str(out / "finetune" / run), "--resume", "auto"]
        options += ["--precision", precision, *each]
        commands[f"adaptation, {run}"] = [*launch, *recipe, *options]
    if together:
        steps.run_together(commands)
    else:
        for name, command in commands.items():
            steps.run(name, command)

    steps.headline(4, "Evaluation on held-out images")
    few = _few_cases(labelled, config.cases)
    for run in RUNS:
        folder = out / "evaluate" / run
        command = ["python", "-m", "finetune", "evaluate", "--run", str(out / "finetune" / run)]
        command += ["--data.shards", str(labelled), *few, "--protocols", "[Clicks, Box]", *threads]
        steps.run(f"evaluation, {run}", [*command, "--output", str(folder)], fresh=folder)

    steps.headline(5, "Prediction on a held-out image, and the report")
    folder = out / "predict"
    if not steps.is_done("prediction"):
        export_image(out / "finetune" / RUNS[0], labelled, folder)
    prompt = read_json(folder / "prompt.json")
    command = ["python", "-m", "finetune", "predict", "--run", str(out / "finetune" / RUNS[0])]
    command += ["--input", str(folder / "image.png"), "--clicks", prompt["clicks"], *threads]
    steps.run("prediction", [*command, "--output", str(folder / "mask.png")])
    print(f"\n{write_report(out)}: done in {format_time(steps.total())}")


def prepare_output(config: QuickstartConfig, resolved: str) -> Path:
    """Make the output folder, or take up the one that is there.

    Raises:
        UserError: It holds other files, or what was made with other options or recipes.
    """
    output = config.output
    recipes = {str(p): sha256(p) for p in (config.pretrain_recipe, config.finetune_recipe)}
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not (output / STATE_FILE).is_file() or not (output / "config.yaml").is_file():
            raise UserError(f"output: {output} holds other files; give a new or empty folder")
        before = yaml.safe_load((output / "config.yaml").read_text(encoding="utf-8"))
        now = yaml.safe_load(resolved)
        changed = [name for name in now if name != "output" and now[name] != before.get(name)]
        kept = read_json(output / STATE_FILE)["recipes"]
        changed += [f"the text of {path}" for path in recipes if recipes[path] != kept.get(path)]
        if changed:
            raise UserError(
                f"output: {output} was made with another {changed[0]}; remove it or give another"
                " --output"
            )
        return output
    output.mkdir(parents=True, exist_ok=True)
    write_resolved_config(output, resolved)
    write_json(output / STATE_FILE, {"recipes": recipes, "done": [], "seconds": {}})
    return output


class Steps:
    """Commands that are run once each; which are done, and how long they took, is kept on disk."""

    def __init__(self, output: Path) -> None:
        self.path = output / STATE_FILE
        self.state: dict[str, Any] = read_json(self.path)
        self.start = time.perf_counter()

    def headline(self, part: int, text: str) -> None:
        """Print a part of the quickstart and the time since the start."""
        elapsed = format_time(time.perf_counter() - self.start)
        print(f"\n[{part}/{LAST_HEADLINE}] {text} ({elapsed} so far)", flush=True)

    def is_done(self, name: str) -> bool:
        """Whether this step was finished, now or by an earlier call."""
        return name in self.state["done"]

    def total(self) -> float:
        """Seconds taken by all steps, over all calls."""
        return sum(self.state["seconds"].values())

    def run(self, name: str, command: list[str], fresh: Path | None = None) -> None:
        """Print a command and run it, unless it is done.

        Args:
            name: Name of the step.
            command: The command as a user types it; its first word is one of PROGRAMS.
            fresh: Folder of the command that cannot be continued, and is removed first.

        Raises:
            UserError: The command failed.
        """
        if fresh is not None and fresh.exists() and not self.is_done(name):
            shutil.rmtree(fresh)
        self.run_together({name: command})

    def run_together(self, commands: dict[str, list[str]]) -> None:
        """Print commands by step and run those that are not done, all at the same time.

        Of several, each line of output begins with the step's name.

        Raises:
            UserError: A command failed; all have ended.
        """
        for name in commands:
            if self.is_done(name):
                print(f"{name}: done before", flush=True)
        left = {name: command for name, command in commands.items() if not self.is_done(name)}
        if not left:
            return
        begun = time.perf_counter()
        processes: dict[str, subprocess.Popen[str]] = {}
        readers = []
        for name, command in left.items():
            print(f"$ {shlex.join(command)}", flush=True)
            arguments = [*PROGRAMS[command[0]], *command[1:]]
            if len(left) == 1:
                processes[name] = subprocess.Popen(arguments, text=True)
                continue
            processes[name] = subprocess.Popen(
                arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            readers.append(threading.Thread(target=_pass_on, args=(processes[name], name)))
            readers[-1].start()
        statuses = {}
        for name, process in processes.items():
            try:
                statuses[name] = process.wait()
            except KeyboardInterrupt:  # the commands got it too, and may still be saving
                statuses[name] = process.wait()
        for reader in readers:
            reader.join()
        seconds, together = self.state["seconds"], " and ".join(left)
        seconds[together] = seconds.get(together, 0.0) + time.perf_counter() - begun
        self.state["done"] += [name for name, status in statuses.items() if status == 0]
        write_json(self.path, self.state)
        for name, status in statuses.items():
            if status != 0:
                raise UserError(
                    f"step '{name}' ended with exit status {status}, its message is above; the"
                    " same command continues from there"
                )


def _pass_on(process: subprocess.Popen[str], name: str) -> None:
    """Print a command's lines as they come, each after the step's name."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip():
            print(f"{name} | {line.rstrip()}", flush=True)


def _few_cases(labelled: Path, limit: int) -> list[str]:
    """Options of `evaluate` for at most `limit` patients of the test split."""
    groups = read_json(labelled / "dataset.json")["splits"]["test"]["groups"]
    return ["--data.cases", str(limit)] if groups > limit else []


def export_image(run: Path, labelled: Path, folder: Path) -> None:
    """Write the held-out image with the largest object, its truth, and clicks on it.

    The clicks are those of a user who corrects the model's mask: `image.png`, `truth.png`, and
    `prompt.json` with the target's name and the clicks as `predict` takes them.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    cases = LabelledCases(CaseSelection(shards=labelled, split="test"))
    largest = 0
    for image in cases.images:
        _, pixels, masks = cases.read(image)
        areas = masks.sum(axis=(1, 2))
        if areas.max() > largest:
            largest, index = int(areas.max()), int(areas.argmax())
            shown, truth, target = pixels, masks[index], cases.names(image)[index]

    prompted = PromptedImage(load_segmenter(run, torch.device("cpu")), shown)
    taken = prompted.click_by_click(truth[None], PREDICTION_CLICKS)[0][-1]
    clicks = [f"{x},{y},{label}" for (x, y), label in zip(taken.points, taken.labels, strict=True)]
    for name, array in (("image", shown), ("truth", truth.astype(np.uint8) * 255)):
        with atomic_path(folder / f"{name}.png") as temporary:
            temporary.write_bytes(encode_png(array))
    write_json(folder / "prompt.json", {"target": target, "clicks": " ".join(clicks)})
