"""DICOM images below a folder, whatever their names: loose files, or folders of series.

Every frame of a multi-frame file is a record. DICOM files without pictures (reports, plans,
segmentations, directories) are passed over.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from data_prep.layouts._find import find_files
from data_prep.options import ShardConfig
from data_prep.readers.dicom import is_dicom, patient, read_frames, read_header
from data_prep.records import NotAnImage, Reference, Sample, Source


def pretraining(config: ShardConfig) -> Source:
    """One reference for each DICOM file."""
    root = config.root()
    references = [Reference(name, group=name) for name in find_files(root) if is_dicom(root / name)]
    read = partial(_read, root=root, config=config)
    return Source(config.layout, references, read, config.recipe())


def _read(reference: Reference, root: Path, config: ShardConfig) -> Iterator[Sample]:
    yield from read_file(root / reference.path, config)


def read_file(path: Path, config: ShardConfig) -> Iterator[Sample]:
    """The frames of a DICOM file.

    Raises:
        NotAnImage: no picture, or one with a side shorter than `config.min_size`.
        Unreadable: see `read_frames`.
    """
    dataset = read_header(path)
    for frame in read_frames(dataset, config.bits, config.window, config.max_pixels):
        height, width = frame.image.shape[:2]
        if min(height, width) < config.min_size:
            raise NotAnImage(f"{height} x {width} pixels are smaller than min_size")
        yield Sample(frame.image, group=patient(dataset), meta=frame.meta)
