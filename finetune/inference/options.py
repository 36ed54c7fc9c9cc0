"""Options of `python -m finetune predict`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_prep.common.errors import UserError
from data_prep.options import Plane, Window, check_window
from finetune.config import ModelSource

SERIES = (".dcm", ".nii", ".nii.gz", ".png")
"""Ends of the masks of a DICOM series."""
MAX_OBJECTS = 254
"""Largest value of an object in a mask: 255 means the only object of a PNG."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig(ModelSource):
    """Segment objects in an image, in a volume, or in a folder of images.

    Coordinates are pixels (x, y) of the image or slice shown upright, from 0 at the top left, and
    slices count from 0. Writes a mask in which the objects are 1, 2, ..., and beside it a picture
    of it over the image, at most 1600 pixels wide and high: OUTPUT with `_overlay.png`. Where
    objects overlap, the later one counts.
    """

    input: Path
    """Image file (PNG, JPEG, TIFF and the like, DICOM or NIfTI), or the folder of a DICOM series.
    With `prompts`: the folder of the files in the table. For a model whose decoder takes no
    prompts, also a folder of pictures, NIfTI files and folders of DICOM series: all of them."""
    output: Path
    """Mask to write, which must not be there yet: .png for pictures (255 on a single object),
    .nii or .nii.gz for NIfTI, and .dcm (DICOM-SEG), .nii, .nii.gz, or .png for a single slice of
    DICOM. A DICOM-SEG names the patient and study of its images, as its standard demands. With
    `prompts` or a folder of images: a folder."""
    prompts: Path | None = None
    """CSV table of many images, whose model is loaded once. Columns: `file`; then `clicks`, or `x`,
    `y` and `label` (default 1) of one click per row; `box`; `mask`, the file of a rough mask in the
    input folder, of one object or of several with their values; `target`; `text`; `slice`, which
    alone is then segmented; and `object`, its value in the mask, which must be there where a file
    has several rows. Masks that are there already are skipped, unless their rows have changed. A
    model whose decoder takes no prompts needs none but `file`."""
    clicks: str = ""
    """Clicks as "x,y,label x,y,label": label 1 on the object, 0 on the background. Objects are
    separated by ";". In a volume "x,y,slice,label", or `slice` says the slice of all."""
    box: str = ""
    """Box around the object as "x0,y0,x1,y1": its left, upper, right and lower edge. The pixel in
    column x covers x to x + 1, so x1 and y1 are one more than the object's last column and row.
    Objects are separated by ";". In a volume "x0,y0,x1,y1,slice"."""
    mask: Path | None = None
    """Rough mask to improve, by itself or with clicks and boxes: a file in the geometry of the
    input, of one object, or of several with their values."""
    target: str | None = None
    """Target to segment, or several separated by ";", for a model whose decoder takes no prompts;
    null: all that it was trained on, in their order. It sees every slice of a volume."""
    text: str | None = None
    """What is wanted in words, or several texts separated by ";", for a model that was trained with
    texts. Clicks may correct it. By itself it is for every slice of a volume."""
    slice: int | None = None
    """The only slice of a volume, or frame of a DICOM file, that is segmented. null: prompts name
    their slices, and the mask is carried on to the others, each from the nearest prompted one."""
    plane: Plane | None = None
    """Plane of the slices of a volume; they count from the feet, the back or the left. null: axial
    for NIfTI, and for DICOM the plane in which it was acquired."""
    channel: int = 0
    """Which volume of a 4D NIfTI image."""
    series: int | None = None
    """Which of several volumes in a folder of DICOM files, as a refusal without it lists them."""
    window: Window | None = None
    """Intensities shown as black and white: `auto` (the file's own window, else percentiles),
    `percentile` (0.5 to 99.5), `full` or two numbers such as [-160, 240]. null: as in the data that
    the run was trained on, and `auto` without a run."""
    value: int | None = None
    """Value of the first object in the mask; further ones count up. null: 1, or with `mask` alone
    the values in its file."""
    add: bool = False
    """Add to the mask that is there: a slice or pixels to an object of the same value, or another
    object with --value 2 and so on."""
    uncertainty: int = 0
    """Number of boxes, such as 10, drawn around each given one (SAM-U, arXiv 2307.04973). The mask
    is where the mean of their predictions is above one half, and the entropy of that mean in bits
    is written beside it: OUTPUT with `_uncertainty`, a PNG of 0 to 255 beside a PNG and otherwise
    NIfTI of 0 to 1. At each pixel it is that of the least certain object. Without a box there is
    one prediction, whose entropy it is. 0: no map."""
    jitter: float = 0.1
    """With `uncertainty`: standard deviation of the boxes' edges as a share of their side (SAM:
    0.1, by at most 20 pixels of 1024; the bound grows in proportion)."""
    adapters: bool = True
    """Use the adapters of the run; --no-adapters leaves them out."""
    overlay: bool = True
    """Write the picture of the mask over the image; --no-overlay leaves it out."""
    suffix: Literal[".png", ".nii", ".nii.gz", ".dcm"] | None = None
    """With `prompts` or a folder of images: format of the masks. null: .nii.gz for volumes, .png
    for others."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto`: a GPU if there is one."""
    threads: int | None = None
    """CPU threads; null: all cores."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window(self.window)
        if self.value is not None and not 1 <= self.value <= MAX_OBJECTS:
            raise UserError(f"value is {self.value}; it must be 1 to {MAX_OBJECTS}")
        if self.uncertainty < 0:
            raise UserError(f"uncertainty is {self.uncertainty}; it must not be negative")
        if self.jitter < 0:
            raise UserError(f"jitter is {self.jitter}; it must not be negative")
        if self.jitter != type(self).jitter and not self.uncertainty:
            raise UserError("jitter: is for --uncertainty; give both, or leave it out")
        if self.add and self.uncertainty:
            raise UserError(
                "uncertainty: a mask that is added to keeps none; leave one of them out"
            )
        if self.run is None and not self.adapters:
            raise UserError("adapters: SAM as it is has none; leave --no-adapters out")
        if self.prompts is None and not self.is_folder:
            if self.suffix is not None:
                raise UserError("suffix: is for --prompts; --output says the format of one mask")
            return
        alone = ("clicks", "box", "mask", "target", "text", "slice", "value", "add")
        defaults = type(self).__dataclass_fields__
        given = [name for name in alone if getattr(self, name) != defaults[name].default]
        if given and self.prompts is not None:
            raise UserError(f"{given[0]}: is for one image; with --prompts the table says it")
        if given:
            raise UserError(
                f"{given[0]}: is for one image; name those of a folder in a table (--prompts), and"
                f" for a DICOM series give an --output that ends in {', '.join(SERIES)}"
            )

    @property
    def is_folder(self) -> bool:
        """Whether `input` is a folder of images, and not of one series, as `output` says."""
        if self.prompts is not None or not self.input.is_dir():
            return False
        return not self.output.name.lower().endswith(SERIES)
