"""Options of `python -m finetune score` and `nnunet`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from data_prep.common.errors import UserError
from finetune.config import CaseSelection, HeldOut


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """How masks are scored, as by `evaluate`."""

    tolerance: float = 1.0
    """Distance within which surfaces agree for the NSD: mm, or pixels where spacing is unknown."""
    hd95: Literal["surface", "monai"] = "surface"
    """Definition of the HD95: `surface` as DeepMind's surface-distance, `monai` for comparison with
    papers that used MONAI. docs/metrics.md says how they differ."""
    absent: bool = True
    """Score targets that a case does not hold, too: the mask should have nothing of them."""

    def __post_init__(self) -> None:
        if self.tolerance < 0:
            raise UserError(f"tolerance is {self.tolerance}; it must not be negative")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(ScoringOptions):
    """Measure masks that another program made of the cases of a shard set.

    They lie in the pixels of the files that `python -m finetune nnunet --until files` writes of
    these cases, and are named after them without the channel: the mask of KEY_0000.png is KEY.png.
    A program that was trained on the labels of those files gives masks with other values than the
    shard set's; that command prints the `values` to give.
    """

    data: HeldOut
    """The cases."""
    masks: Path
    """Folder with a mask of each case: KEY.png of a picture, KEY.nii.gz or KEY.nii of a volume."""
    output: Path
    """Folder for the tables and figures; must be new or empty."""
    values: dict[str, list[int]] | None = None
    """Values of each target in these masks, e.g. {lesion: [255]}; null: those of the shard set. Any
    other value than these and 0 is refused."""
    seed: int = 0
    """Seed of the choice of few cases."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, values in (self.values or {}).items():
            if not values or min(values) < 1:
                raise UserError(f"values: those of {name} are {values}; give one or more above 0")


@dataclass(frozen=True, kw_only=True)
class NnunetConfig(ScoringOptions):
    """Train nnU-Net on labelled cases by its own planning, and measure it on held-out ones.

    The same command continues after an interruption.
    """

    MAY_CHANGE: ClassVar[tuple[str, ...]] = (
        *("output", "device", "workers", "until", "tolerance", "hd95", "absent", "data.shards"),
    )
    """Options that may differ when a run is continued."""

    data: CaseSelection
    """The labelled cases to train on."""
    test_split: str = "test"
    """Split of the shard set that is segmented and scored."""
    output: Path
    """Folder for everything that is made; taken up where it is there already."""
    configuration: Literal["2d", "3d_fullres", "3d_lowres"] | None = None
    """nnU-Net's configuration; null: 2d for pictures, 3d_fullres for volumes."""
    planner: str = "ExperimentPlanner"
    """Class of nnU-Net's planner, such as nnUNetPlannerResEncM."""
    trainer: str = "nnUNetTrainer"
    """Class of nnU-Net's trainer, which decides how long is trained: 1000 epochs, or 250 by
    nnUNetTrainer_250epochs."""
    folds: list[int | Literal["all"]] | None = None
    """Folds to train, whose answers are averaged: [0, 1, 2, 3, 4] is nnU-Net's cross-validation,
    which keeps the cases of a group together here. `all` trains one network on every case, as null
    does."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; `auto`: a GPU if there is one."""
    workers: int = 4
    """Processes in which nnU-Net prepares and changes images; 0 does it in the training process."""
    until: Literal["files", "plans", "training", "masks", "scores"] = "scores"
    """Last step to take: the cases as files of nnU-Net's layout, which needs no nnU-Net; its plans;
    the trained networks; the masks of the test split; their scores."""
    seed: int = 0
    """Seed of the choice of few cases and of the folds. nnU-Net's training has none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 0:
            raise UserError(f"workers is {self.workers}; it must be 0 or more")
        folds = self.chosen_folds
        if not folds or len(set(folds)) < len(folds) or ("all" in folds and len(folds) > 1):
            raise UserError(f"folds: {folds}; give different ones, such as [0, 1, 2], or [all]")
        if any(fold != "all" and not 0 <= fold < 5 for fold in folds):
            raise UserError(f"folds: {folds}; there are folds 0 to 4, and all")

    @property
    def chosen_folds(self) -> list[int | Literal["all"]]:
        """The folds, at least one."""
        return ["all"] if self.folds is None else self.folds
