"""nnU-Net (Isensee et al. 2021, Nature Methods 18) on a shard set, by its own commands.

The cases are written as files, nnU-Net plans, prepares, trains and predicts, and its masks are
scored as `evaluate` scores. Each step that is done is noted, and is not done again.
"""

import json
import shlex
from pathlib import Path

import yaml

from data_prep.common.cli import write_resolved_config
from data_prep.common.errors import UserError
from data_prep.common.files import write_json
from data_prep.format.index import read_json
from finetune.config import HeldOut
from finetune.data.cases import LabelledCases
from finetune.external.config import NnunetConfig
from finetune.external.files import find_mask, read_mask
from finetune.external.programs import find_program, run_logged
from finetune.external.raw import RawData, folds_of, split_groups
from finetune.external.score import Masks, records_of, write_scores
from finetune.inference.loading import find_device
from pretrain.engine.lock import RunLock
from pretrain.engine.run import flat_options

NAME, NUMBER = "Dataset001_Cases", "1"
"""What nnU-Net calls the data set."""
STATE_FILE = "state.json"
PLAN, TRAIN, PREDICT = "nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict"
STEPS = ("files", "plans", "training", "masks", "scores")


def run_nnunet(config: NnunetConfig, resolved: str) -> None:
    """Train nnU-Net on labelled cases by its own planning, and measure it on held-out ones."""
    train = LabelledCases(config.data, config.seed)
    test = LabelledCases(
        HeldOut(shards=config.data.shards, split=config.test_split, targets=config.data.targets),
        config.seed,
    )
    run = NnunetRun(config, train, test)
    run.check()
    lock = RunLock()
    run.take_folder(resolved, lock)
    try:
        for step in STEPS[: STEPS.index(config.until) + 1]:
            getattr(run, f"make_{step}")()
    finally:
        lock.release()


class NnunetRun:
    """One training of nnU-Net in its folder.

    Args:
        train: The cases to train on.
        test: Those to segment.
    """

    def __init__(self, config: NnunetConfig, train: LabelledCases, test: LabelledCases) -> None:
        self.config, self.train, self.test = config, train, test
        self.data = RawData(train, test)
        self.folds = config.chosen_folds
        usual = "3d_fullres" if self.data.volumes else "2d"
        self.configuration = config.configuration or usual
        self.raw = config.output / "raw" / NAME
        self.preprocessed = config.output / "preprocessed" / NAME
        self.results = config.output / "trained" / NAME
        self.masks = config.output / "masks"
        self.programs: dict[str, Path] = {}

    def check(self) -> None:
        """See that all can be done that is to be done.

        Raises:
            UserError: Pictures are to be volumes, there are fewer groups than folds, or nnU-Net is
                not installed.
        """
        if not self.data.volumes and self.configuration != "2d":
            raise UserError(f"configuration: {self.configuration} is for volumes; pictures take 2d")
        if self.config.test_split == self.config.data.split:
            raise UserError(
                f"test_split: {self.config.test_split} is what is trained on; give another split"
            )
        parts = split_groups(self.train, self.config.seed)
        if self.folds != ["all"] and (highest := max(map(int, self.folds))) >= len(parts):
            raise UserError(
                f"folds: {highest} needs {max(2, highest + 1)} groups, and there are"
                f" {max(1, sum(map(len, parts)))}; give --folds [all]"
            )
        for name in (PLAN, TRAIN, PREDICT) if self.config.until != "files" else ():
            if (found := find_program(name)) is None:
                raise UserError(
                    f"nnunet: {name} is not installed; `pip install 'samaritan[baselines]'` brings"
                    " nnU-Net"
                )
            self.programs[name] = found

    def take_folder(self, resolved: str, lock: RunLock) -> None:
        """Make the output folder, or take up what is there.

        Raises:
            UserError: It holds other files, or what was made with other options or cases.
        """
        folder = self.config.output
        state, options = folder / STATE_FILE, folder / "config.yaml"
        if folder.exists() and not folder.is_dir():
            raise UserError(f"output: {folder} is a file; name a folder")
        begun = state.is_file() and options.is_file()
        others = {each.name for each in folder.glob("[!.]*")} - {state.name, options.name}
        if others and not begun:
            raise UserError(f"output: {folder} holds other files; give a new or empty folder")
        lock.take(folder)
        cases = {name: each.shards.fingerprint for name, each in self._parts().items()}
        if begun:
            before = flat_options(yaml.safe_load(options.read_text(encoding="utf-8")))
            now = flat_options(yaml.safe_load(resolved))
            for name in now:
                if name not in NnunetConfig.MAY_CHANGE and now[name] != before.get(name):
                    raise UserError(
                        f"output: {folder} was made with {name} {before.get(name)}, not"
                        f" {now[name]}; continue it with the same options or name another folder"
                    )
            if read_json(state)["cases"] != cases:
                raise UserError(
                    f"output: {folder} was made of other shards than {self.config.data.shards};"
                    " name another folder"
                )
            if any(now[name] != before.get(name) for name in ("tolerance", "hd95", "absent")):
                for name in ("results.csv", "summary.csv", "summary.md"):
                    # `compare` would take them for those of the new options
                    (folder / name).unlink(missing_ok=True)
        else:
            write_json(state, {"cases": cases, "done": []})
        write_resolved_config(folder, resolved)

    def make_files(self) -> None:
        """The cases as nnU-Net's raw data set."""
        if not self.raw.is_dir():
            self.data.write(self.raw)
        if self.config.until == "files":
            print(f"masks that another program makes of imagesTs: {self._score_command()}")

    def make_plans(self) -> None:
        """nnU-Net's plans and prepared cases, and folds that do not cut a group in two.

        Raises:
            UserError: nnU-Net fails, or plans no such configuration.
        """
        if not self._is_done("plans"):
            workers = str(max(1, self.config.workers))
            words: list[str] = ["-d", NUMBER, "-c", self.configuration, "-pl", self.config.planner]
            words += ["-npfp", workers, "-np", workers, "--verify_dataset_integrity", "--clean"]
            self._run(PLAN, words, "plans")
            write_json(
                self.preprocessed / "splits_final.json", folds_of(self.train, self.config.seed)
            )
            self._note("plans")
        planned = read_json(self.preprocessed / f"{self._plans()}.json")["configurations"]
        if self.configuration not in planned:
            raise UserError(
                f"configuration: nnU-Net plans no {self.configuration} for these cases, only"
                f" {', '.join(planned)}; give another one, and another --output"
            )

    def make_training(self) -> None:
        """A network per fold; one that was interrupted goes on at its last checkpoint."""
        for fold in self.folds:
            if self._is_done(f"fold {fold}"):
                continue
            words = [NAME, self.configuration, str(fold), *self._which(), *self._device()]
            if list(self._model().glob(f"fold_{fold}/checkpoint_*.pth")):
                words.append("--c")
            self._run(TRAIN, words, f"fold_{fold}")
            self._note(f"fold {fold}")

    def make_masks(self) -> None:
        """The masks of the test split; those that are there already are kept."""
        if self._is_done("masks"):
            return
        words = ["-i", str(self.raw / "imagesTs"), "-o", str(self.masks), "-d", NAME]
        words += ["-c", self.configuration, "-f", *map(str, self.folds), *self._which()]
        workers = str(min(3, self.config.workers))  # nnU-Net's own number
        words += [*self._device(), "-npp", workers, "-nps", workers]
        if self._drop_damaged_masks():
            words.append("--continue_prediction")
        self._run(PREDICT, words, "masks")
        self._note("masks")

    def make_scores(self) -> None:
        """Tables and figures of the masks, as `evaluate` writes them."""
        masks = Masks(self.masks, self.test, self.data.encoding.values)
        print("\n" + write_scores(masks, self.config, self.config.output, "nnU-Net"), end="")

    def _score_command(self) -> str:
        """How masks are scored whose values are the labels of the files."""
        data, values = self.config.data, self.data.encoding.values
        words = ["python", "-m", "finetune", "score", "--data.shards", str(data.shards)]
        words += ["--data.split", self.config.test_split]
        words += ["--data.targets", json.dumps(data.targets)] if data.targets else []
        words += ["--values", json.dumps(values), "--masks", "MASKS", "--output", "RESULTS"]
        return shlex.join(words)

    def _parts(self) -> dict[str, LabelledCases]:
        return {"train": self.train, "test": self.test}

    def _drop_damaged_masks(self) -> bool:
        """Whether there are masks already, once those are removed that a killed process left cut
        off."""
        kept = False
        for index in records_of(self.test) if self.masks.is_dir() else ():
            record = self.test.shards.record(index)
            if (path := find_mask(self.masks, record.key, record.meta)) is None:
                continue
            try:
                read_mask(path, record)
                kept = True
            except UserError:
                path.unlink()
        return kept

    def _plans(self) -> str:
        """What nnU-Net calls the plans that this planner made."""
        found = sorted(path.stem for path in self.preprocessed.glob("*Plans.json"))
        if len(found) != 1:
            raise UserError(
                f"{self.preprocessed}: holds {len(found)} plans; delete"
                f" {self.config.output} and start again"
            )
        return found[0]

    def _which(self) -> list[str]:
        return ["-tr", self.config.trainer, "-p", self._plans()]

    def _device(self) -> list[str]:
        return ["-device", find_device(self.config.device).type]

    def _model(self) -> Path:
        parts = self.config.trainer, self._plans(), self.configuration
        return self.results / "__".join(parts)

    def _run(self, program: str, words: list[str], log: str) -> None:
        output, workers = self.config.output.resolve(), self.config.workers
        environment = {
            "nnUNet_raw": str(output / "raw"),
            "nnUNet_preprocessed": str(output / "preprocessed"),
            "nnUNet_results": str(output / "trained"),
            # its planner makes this its number of threads, of which there must be one
            "nnUNet_n_proc_DA": str(workers if program == TRAIN else max(1, workers)),
            "nnUNet_def_n_proc": str(max(1, workers)),
            "PYTHONUNBUFFERED": "1",
        }
        folder = self.config.output / "logs"
        run_logged([self.programs[program], *words], folder / f"{log}.txt", environment)

    def _is_done(self, step: str) -> bool:
        return step in read_json(self.config.output / STATE_FILE)["done"]

    def _note(self, step: str) -> None:
        state = read_json(self.config.output / STATE_FILE)
        state["done"].append(step)
        write_json(self.config.output / STATE_FILE, state)
