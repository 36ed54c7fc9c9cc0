"""What to do with one image, and what it must not write over."""

from dataclasses import dataclass
from pathlib import Path

from data_prep.common.errors import UserError
from finetune.inference.files.opening import stem
from finetune.inference.objects import Wanted
from finetune.inference.uncertainty import Spread


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to do with one image; see `PredictConfig`."""

    input: Path
    output: Path
    wanted: list[Wanted]
    """None: all targets of a model without prompts."""
    value: int | None = None
    numbered: bool = False
    mask: Path | None = None
    add: bool = False
    overlay: bool = True
    spread: Spread | None = None

    @property
    def picture(self) -> Path:
        """Where the picture of the mask over the image goes."""
        return self.output.with_name(f"{stem(self.output.name)}_overlay.png")

    @property
    def uncertainty(self) -> Path:
        """Where the map of uncertainty goes: PNG beside a PNG, else NIfTI."""
        name = self.output.name
        suffix = next((each for each in (".png", ".nii") if name.lower().endswith(each)), ".nii.gz")
        return self.output.with_name(f"{stem(name)}_uncertainty{suffix}")

    @property
    def outputs(self) -> tuple[Path, ...]:
        """All that it writes."""
        maps = [] if self.spread is None else [self.uncertainty]
        return (self.output, *([self.picture] if self.overlay else []), *maps)


def check_new(task: Task) -> None:
    """Refuse to overwrite anything but a mask that is added to, or to add to what is not there.

    Raises:
        UserError: Names the file.
    """
    for path in task.outputs:
        if path.exists() and path.samefile(task.input):
            raise UserError(f"output: {path} is the input itself; give another name")
        if path.exists() and not task.add:
            raise UserError(f"output: {path} is there already; give another name")
    if task.add and not task.output.is_file():
        raise UserError(f"add: {task.output} is not there; leave --add out")
    if task.mask is not None and task.mask.exists() and task.overlay:
        picture = task.picture
        if picture.exists() and picture.samefile(task.mask):
            raise UserError(f"mask: {picture} would be replaced by the picture; rename it")
