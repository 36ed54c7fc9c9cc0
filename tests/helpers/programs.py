"""The programs and scripts, and how to start one in a process of its own."""

import subprocess
import sys
from pathlib import Path

from data_prep.__main__ import COMMANDS as DATA_PREP
from finetune.__main__ import COMMANDS as FINETUNE
from finetune.train import COMMAND as FINETUNE_TRAIN
from pretrain.__main__ import COMMANDS as PRETRAIN
from pretrain.train import COMMAND as PRETRAIN_TRAIN

ROOT = Path(__file__).parents[2]

HEAVY = {
    *("torch", "open_clip", "accelerate", "datasets", "transformers", "matplotlib", "sklearn"),
    "nilearn",
}
"""Packages that take longer to import than a help text or a refusal may take."""

PROGRAMS = {"data_prep": DATA_PREP, "pretrain": PRETRAIN, "finetune": FINETUNE}
SCRIPTS = {"pretrain/train.py": PRETRAIN_TRAIN, "finetune/train.py": FINETUNE_TRAIN}


def start(program: str, *arguments: str) -> tuple[int, str, str, set[str]]:
    """Run a program in a process of its own: status, output, errors, heavy packages imported."""
    script = f"""
import atexit, runpy, sys
atexit.register(lambda: print("IMPORTED", *({HEAVY!r} & set(sys.modules)), file=sys.stderr))
sys.argv = {[program, *arguments]!r}
sys.path.insert(0, "")
if {program.endswith(".py")}:
    runpy.run_path({program!r}, run_name="__main__")
else:
    runpy.run_module({program!r}, run_name="__main__", alter_sys=True)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    errors, _, imported = done.stderr.rpartition("IMPORTED")
    return done.returncode, done.stdout, errors, set(imported.split())
