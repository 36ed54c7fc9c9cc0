"""A labelled shard set with a test split, and programs that behave as nnU-Net's."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.options import WriteOptions
from data_prep.records import Reference, Sample, Source
from data_prep.shards.write import write_shards

PLAN = """
cd "$nnUNet_raw/Dataset001_Cases"
for label in labelsTr/*; do
  image=$(basename "$label" | sed 's/\\./_0000./')
  [ -f "imagesTr/$image" ] || exit 3
done
grep -q "\\"numTraining\\": $(ls labelsTr | wc -l)" dataset.json || exit 4
mkdir -p "$nnUNet_preprocessed/Dataset001_Cases"
echo '{"configurations": {"2d": {}, "3d_fullres": {}}}' \\
  > "$nnUNet_preprocessed/Dataset001_Cases/nnUNetPlans.json"
"""
TRAIN = """
fold="$nnUNet_results/$1/nnUNetTrainer__nnUNetPlans__$2/fold_$3"
[[ " $* " != *" --c "* || -f $fold/checkpoint_latest.pth ]] || exit 5
mkdir -p "$fold" && echo > "$fold/checkpoint_latest.pth"
echo "Epoch 0"
[ -f "$nnUNet_results/../../broken" ] && { echo "RuntimeError: no memory"; echo; exit 1; }
echo > "$fold/checkpoint_final.pth"
"""
PREDICT = """
while [ $# -gt 0 ]; do
  [ "$1" = -i ] && images=$2
  [ "$1" = -o ] && output=$2
  shift
done
mkdir -p "$output"
for image in "$images"/*_0000.*; do
  name=$(basename "$image" | sed 's/_0000//')
  cp -n "$nnUNet_raw/../../truth/$name" "$output"
done
echo '{}' > "$output/plans.json"
"""
HEAD = '#!/usr/bin/env bash\necho "$(basename "$0") $*" >> "$nnUNet_raw/../../calls.txt"\n'


@pytest.fixture
def make_split(tmp_path: Path) -> Callable[..., Path]:
    """Write samples as a shard set, the last `test` of them as its test split."""

    def make(samples: list[Sample], labels: dict[str, list[int]], test: int = 2) -> Path:
        first = len(samples) - test
        references = [
            Reference(f"{n:04d}", group=each.group, split="train" if n < first else "test")
            for n, each in enumerate(samples)
        ]

        def read(reference: Reference) -> list[Sample]:
            return [samples[int(reference.path)]]

        source = Source("test", references, read, {}, labels)
        write_shards(source, WriteOptions(output=tmp_path / "set"))
        return tmp_path / "set"

    return make


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs called as nnU-Net's, beside this Python as far as it knows.

    They check the raw data set, leave what nnU-Net leaves, and `predict` copies the masks in the
    folder `truth`; each call is a line of calls.txt. While there is a file `broken`, training fails
    after its first checkpoint.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    programs = {"plan_and_preprocess": PLAN, "train": TRAIN, "predict": PREDICT}
    for name, text in programs.items():
        (folder / f"nnUNetv2_{name}").write_text(HEAD + text)
        (folder / f"nnUNetv2_{name}").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    return folder
