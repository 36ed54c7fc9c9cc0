"""README, recipes and scripts: every command in them starts as it is printed, on tiny data.

Options are only added at the end of a command, so that it takes seconds.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import open_clip
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage
from safetensors.torch import save_file
from segment_anything.build_sam import _build_sam

from helpers.documents import commands_of
from helpers.recipes import ROOT
from pretrain.sizes import SIZES

README = (ROOT / "README.md").read_text()
RECIPES = (
    *("configs/pretrain/quickstart.yaml", "configs/pretrain/three_objectives.yaml"),
    "configs/finetune/quickstart.yaml",
)
"""Started through `accelerate launch`; the others in `pretrain/test_recipes.py` and
`finetune/test_recipes.py`, where their headers are checked."""

STEPS = "--optim.steps 2 --optim.batch_size 2 --optim.warmup_steps 1 --data.workers 0"
STEPS += " --optim.epochs null --optim.warmup_epochs null --optim.accumulate 1"
FEW = "--cases 1 --evaluation '{data.cases: 1, protocols: [Box]}'"
FEW += " --training '{optim.steps: 2, optim.batch_size: 2, optim.warmup_steps: 1,"
FEW += " data.workers: 0, model.image_size: 64}'"
ADDED = {
    " pretrain/train.py ": f"{STEPS} --encoder_size vit_t",
    " slurm/pretrain.sbatch ": f"{STEPS} --encoder_size vit_t",
    " slurm/sweep.sbatch ": f"{STEPS} --encoder_size vit_t",
    " slurm/finetune.sbatch ": f"{STEPS} --model.image_size 64",
    " finetune/train.py ": f"{STEPS} --model.image_size 64",
    " --model.text.pretrained ": "--model.text.width 32 --model.text.heads 2 --model.text.layers 1",
    " finetune evaluate ": "--data.cases 1",
    " finetune nnunet ": "--until files",
    " finetune simclr ": f"{STEPS} --image_size 64 --network.features '[4, 8, 8, 8, 8]'",
    " configs/baselines/unet.yaml ": "--model.network.features '[4, 8, 8, 8, 8]'",
    " finetune evaluate --sam ": "--image_size 64",
    " finetune predict --sam ": "--image_size 64",
    " finetune few_shot ": f"{FEW} --tasks 6",
    " slurm/few_shot.sbatch ": FEW,
    " data_prep benchmark": "--images 6 --photographs 2 --workers 1 --repeats 1",
    " pretrain benchmark": "--encoder_size vit_t --sizes 224 --repeats 1 --parts attention",
    " finetune benchmark": "--encoder_size vit_t --image_size 64 --parts click --repeats 1",
}
"""What is added to a command that holds these words, so that it takes seconds."""

VIT_T = SIZES["vit_t"]
SMALL_SAM = (VIT_T.width, VIT_T.depth, VIT_T.heads, list(VIT_T.global_blocks))
"""A vit_t, as segment_anything describes encoders: it stands in for vit_b."""
REGISTRY = f"""
from functools import partial
from segment_anything import sam_model_registry
from segment_anything.build_sam import _build_sam
sam_model_registry["vit_b"] = partial(_build_sam, *{SMALL_SAM})
"""

SBATCH = """#!/usr/bin/env bash
# Stands in for sbatch: runs the tasks of an array one after the other, of a training array two.
set -euo pipefail
export SLURM_JOB_ID=7 SLURM_JOB_NUM_NODES=1 SLURM_CPUS_ON_NODE=8
first="" last=0
while [[ $1 == --* ]]; do
  [[ $1 =~ ^--array=([0-9]+)-([0-9]+) ]] && first=${BASH_REMATCH[1]} last=${BASH_REMATCH[2]}
  [[ $1 == --nodes=* ]] && SLURM_JOB_NUM_NODES=${1#*=}
  [[ $1 == --gpus-per-node=* ]] && export SLURM_GPUS_ON_NODE=${1#*=}
  shift
done
[[ -n $first ]] || exec bash "$@"
export SLURM_ARRAY_TASK_MIN=$first SLURM_ARRAY_TASK_MAX=$last
export SLURM_ARRAY_TASK_COUNT=$((last - first + 1)) SLURM_ARRAY_JOB_ID=7
[[ $1 == slurm/shard.sbatch || $last -le $first ]] || last=$((first + 1))
for task in $(seq "$first" "$last"); do SLURM_ARRAY_TASK_ID=$task bash "$@"; done
"""
SRUN = """#!/usr/bin/env bash
# Stands in for srun: one process.
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
STAND_INS = {"sbatch": SBATCH, "srun": SRUN, "scontrol": "echo ArrayTaskThrottle=1"}


def write_pictures(folder: Path) -> None:
    """Photographs, retinas with their masks in both forms, and an image to predict on."""
    rng = np.random.default_rng(0)
    for number in range(6):
        pixels = rng.integers(0, 256, (90, 80, 3), dtype=np.uint8)
        label = np.zeros((90, 80), np.uint8)
        label[20:70, 20:60] = 1
        label[30:50, 30:50] = 2
        name = f"p{number // 2}_{number % 2}.png"
        pictures = {f"photographs/{name}": pixels, f"retina/images/{name}": pixels}
        pictures |= {f"retina/labels/{name}": label}
        pictures |= {f"retina/disc/{name}": (label > 0).astype(np.uint8) * 255}
        if number:  # one image without a cup
            pictures[f"retina/cup/{name}"] = (label == 2).astype(np.uint8) * 255
        for path, array in pictures.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / path)
    Image.fromarray(rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)).save(folder / "image.png")
    rows = ["file,object,clicks,box", 'p0_0.png,1,,"20,20,60,70"', 'p0_0.png,2,"30,40,1 5,5,0",']
    (folder / "boxes.csv").write_text("\n".join([*rows, 'p0_1.png,,,"5,5,40,30"']) + "\n")
    (folder / "lesions").mkdir()
    names = [f"{number:02d}.png" for number in range(20)]
    for number, name in enumerate(names):
        pixels = rng.integers(0, 100, (60, 60, 3), dtype=np.uint8) + np.uint8(100 * (number % 2))
        Image.fromarray(pixels).save(folder / "lesions" / name)
    rows = [
        f"{name},lesion{number // 4}-{number % 2},{('naevus', 'melanoma')[number % 2]}"
        for number, name in enumerate(names)
    ]
    (folder / "lesions.csv").write_text("\n".join(["file,group,label", *rows]) + "\n")


def write_volumes(folder: Path) -> None:
    """Volumes without labels, and a data set of the Decathlon."""
    rng = np.random.default_rng(0)
    x, y, z = np.ogrid[:40, :44, :12]
    for number in range(5):
        label = np.zeros((40, 44, 12), np.uint8)
        label[((x - 12) / 8) ** 2 + ((y - 14) / 9) ** 2 + ((z - 6) / 4) ** 2 < 1] = 1
        label[((x - 28) / 6) ** 2 + ((y - 30) / 6) ** 2 + ((z - 6) / 3) ** 2 < 1] = 2
        image = (60.0 * label + rng.normal(20, 8, label.shape)).astype(np.float32)
        arrays = {"imagesTr": image, "labelsTr": label}
        for path, array in arrays.items():
            path = folder / "Task04_Hippocampus" / path / f"case{number}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    document = {"labels": {"0": "background", "1": "Anterior", "2": "Posterior"}}
    (folder / "Task04_Hippocampus" / "dataset.json").write_text(json.dumps(document))
    (folder / "volumes").mkdir()
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / "volumes" / "scan.nii.gz")


def write_series(folder: Path) -> None:
    """CT series of three patients, each with an RTSTRUCT of one region."""
    for patient in range(3):
        images = []
        for index in range(6):
            image = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
            image.PatientID, image.SeriesInstanceUID = f"P{patient}", f"1.2.{patient}"
            image.SOPInstanceUID = f"1.2.{patient}.{index}"
            image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
            image.ImagePositionPatient = [-40.0, -40.0, 5.0 * index]
            images.append(image)
        regions = pydicom.Dataset()
        regions.file_meta = pydicom.dataset.FileMetaDataset()
        regions.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        regions.SOPClassUID, regions.SOPInstanceUID = RTStructureSetStorage, f"1.3.{patient}"
        regions.Modality, regions.PatientID = "RTSTRUCT", images[0].PatientID
        regions.StudyInstanceUID, regions.SeriesInstanceUID = "1.2", f"1.4.{patient}"
        series, study, frame = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        series.SeriesInstanceUID = images[0].SeriesInstanceUID
        study.RTReferencedSeriesSequence = [series]
        frame.RTReferencedStudySequence = [study]
        regions.ReferencedFrameOfReferenceSequence = [frame]
        regions.StructureSetROISequence, regions.ROIContourSequence = [], []
        for number, name in enumerate(("Liver", "GTV 1"), start=1):
            named, drawn, contour = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
            named.ROINumber = drawn.ReferencedROINumber = number
            named.ROIName = name
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", 4
            corners = ((-20, -20), (10, -20), (10, 5 * number), (-20, 5 * number))
            contour.ContourData = [each for x, y in corners for each in (x, y, 10)]
            drawn.ContourSequence = [contour]
            regions.StructureSetROISequence.append(named)
            regions.ROIContourSequence.append(drawn)
        for index, dataset in enumerate([*images, regions]):
            path = folder / "series" / f"patient{patient}" / f"{index}"
            path.parent.mkdir(parents=True, exist_ok=True)
            dataset.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The repository's folder as a user has it: with data and a SAM checkpoint beside the code."""
    folder = tmp_path_factory.mktemp("workspace")
    linked = ("configs", "pretrain", "finetune", "slurm", "Makefile", "pyproject.toml")
    for name in (*linked, "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)
    write_pictures(folder)
    write_volumes(folder)
    write_series(folder)
    (folder / "scans").mkdir()
    for name in ("CT_small.dcm", "MR_small.dcm", "examples_rgb_color.dcm", "SC_rgb_rle.dcm"):
        shutil.copy(str(get_testdata_file(name)), folder / "scans")
    torch.manual_seed(0)
    torch.save(_build_sam(*SMALL_SAM).state_dict(), folder / "sam_vit_b_01ec64.pth")
    text = {"width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    save_file(open_clip.CLIP(512, vision, text).state_dict(), folder / "clip_vit_b_16.safetensors")
    (folder / "bin").mkdir()
    for name, text in STAND_INS.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def run(workspace: Path) -> Callable[[str], str]:
    """Runs a command in the workspace and returns what it printed; `printed` has that of each."""
    places = [workspace / "bin", Path(sys.executable).parent, os.environ["PATH"]]
    environment = os.environ | {"PATH": os.pathsep.join(map(str, places))}

    def call(command: str) -> str:
        added = [options for words, options in ADDED.items() if words in f" {command} "]
        line = " ".join(["set -o pipefail;", command, *added])
        done = subprocess.run(
            ["bash", "-c", line], cwd=workspace, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        call.printed[command] = done.stdout
        return done.stdout

    call.printed = {}
    return call


@pytest.fixture(scope="module")
def after_readme(workspace, run) -> Path:
    """The workspace after all commands of the README, in order, as a reader would run them."""
    for command in commands_of(ROOT / "README.md"):
        if command.startswith("make "):
            run(command.replace("make", "make --dry-run", 1))
            continue
        run(command)
    return workspace


def test_the_readme_runs_as_printed(after_readme):
    for path in (
        "shards/volumes/dataset.json",
        "runs/pretrain/DONE",
        "runs/hippocampus/DONE",
        "results/hippocampus/summary.md",
        "results/probe/probes.md",
        "sam_medical.pth",
        "exported/transformers/config.json",
        "runs/publish-pretrain/README.md",
        "runs/cluster/DONE",
        "mask_overlay.png",
        "two.png",
        "volume.nii.gz",
        "liver.dcm",
        "predicted/p0_1.png",
        "results/comparison/comparison.html",
        "all.nii.gz",
        "exported/samed.pth",
        "sure_uncertainty.png",
        "results/sam_u/calibration.md",
        "results/unet/summary.md",
        "runs/simclr/DONE",
        "results/few_shot/few_shot.md",
        "docs/results.md",
    ):
        assert (after_readme / path).is_file(), path
    targets = {
        name: set(json.loads((after_readme / f"shards/{name}/dataset.json").read_text())["labels"])
        for name in ("retina", "retina-values", "series")
    }
    discs = {"disc", "cup"}
    assert targets == {"retina": discs, "retina-values": discs, "series": {"liver", "tumour"}}
    slices = json.loads((after_readme / "shards/slices/dataset.json").read_text())
    assert (slices["records"], slices["skipped"]) == (12, 1)  # two of three patients

    script = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    checks = "\nassert features.shape == (1, 256, 14, 14) and tokens.shape == (1, 196, 192)"
    checks += "\nassert len(list(Path('masks').iterdir())) == 6"
    command = [sys.executable, "-c", REGISTRY + script + checks]
    done = subprocess.run(command, cwd=after_readme, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_starts_as_its_header_says(recipe, after_readme, run):
    (command,) = commands_of(ROOT / recipe)
    assert f"--config {recipe} " in command
    # eight processes and a large encoder are for GPUs
    command = command.replace("gpus.yaml", "gpus.yaml --num_processes 2")
    if "--encoder runs/quickstart " in command and not (after_readme / "runs/quickstart").exists():
        run(*commands_of(ROOT / "configs/pretrain/quickstart.yaml"))
    done = run(command)
    assert re.search(r"2 steps of [28], ", done)
    output = re.search(r"--output (\S+)", command)
    assert output is not None and (after_readme / output[1] / "DONE").is_file()


def test_the_shard_script_starts_as_its_header_says(after_readme, run):
    for command in commands_of(ROOT / "slurm/shard.sbatch"):
        if command not in run.printed:
            shutil.rmtree(after_readme / command.rpartition("--output ")[2], ignore_errors=True)
            run(command)
        assert "records" in run.printed[command]


@pytest.mark.parametrize("script", ["pretrain.sbatch", "sweep.sbatch", "finetune.sbatch"])
def test_a_training_script_starts_as_its_header_says(script, after_readme, run):
    for command in commands_of(ROOT / "slurm" / script):
        output = after_readme / command.rpartition("--output ")[2]
        if command not in run.printed:  # the README has some of them, too
            shutil.rmtree(output, ignore_errors=True)
            run(command)
        printed = run.printed[command]
        done = list(output.rglob("DONE"))
        assert len(done) == (2 if "--array=0" in command else 1)
        assert ("is done already" in printed) == ("%1" in command)  # the second task of a chain


def test_the_few_shot_script_starts_as_its_header_says(after_readme, run):
    (command,) = commands_of(ROOT / "slurm/few_shot.sbatch")
    if not (after_readme / "runs/quickstart").exists():
        run(*commands_of(ROOT / "configs/pretrain/quickstart.yaml"))
    assert "runs: 6, 1 of them of this task" in run(command)
    done = sorted((after_readme / "results/few_shot_quickstart/evaluations").glob("*/*/run.json"))
    assert [path.parts[-3] for path in done] == ["new", "pretrained"]


def test_several_nodes_start_by_hand_as_their_configuration_says(after_readme, run):
    (command,) = commands_of(ROOT / "configs/accelerate/nodes.yaml")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ours = f"nodes.yaml --num_processes 2 --main_process_port {port}"
    here = command.replace("nodes.yaml", ours).replace("10.0.0.1", "127.0.0.1")
    nodes = [here, here.replace("--machine_rank 0", "--machine_rank 1")]
    assert nodes[0] != nodes[1] and "127.0.0.1" in here
    with ThreadPoolExecutor() as pool:
        printed = list(pool.map(run, nodes))
    assert all("2 processes on" in text for text in printed)
    assert (after_readme / "runs/nodes/DONE").is_file()
