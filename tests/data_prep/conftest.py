"""Small inputs made on the fly."""

import csv
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from data_prep.__main__ import main
from data_prep.format.index import read_json
from data_prep.layouts import find_layout
from data_prep.loader.dataset import ShardDataset
from data_prep.options import WriteOptions
from data_prep.shards import write_shards


@pytest.fixture(scope="session")
def make_images():
    """Write PNG files, grey and RGB in turn, each of another size and content, in two folders."""

    def make(folder: Path, count: int = 24, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        for number in range(count):
            path = folder / ("healthy", "ill")[number % 2] / f"image {number:03d} é.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (40 + number, 36) if number % 3 else (40 + number, 36, 3)
            Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(path)

    return make


@pytest.fixture(scope="session")
def shard_folder():
    """Shard a folder, by default one of images, and four records per shard."""

    def shard(folder: Path, output: Path, layout: str = "folder", **options):
        writing = {"output": output, "shard_records": 4, "salt": "tests"}
        for field in fields(WriteOptions):
            if field.name in options:
                writing[field.name] = options.pop(field.name)
        found = find_layout(layout, "pretraining")(input=folder, **options)
        return write_shards(found.source(layout, found.references()), WriteOptions(**writing))

    return shard


@pytest.fixture
def read_layout(tmp_path):
    """Shard a folder by command line; gives the records of each split, darkest first."""

    def read(command: str, layout: str, folder: Path, *options: str) -> dict[str, list]:
        output = tmp_path / f"{layout}-shards"
        arguments = [command, "--layout", layout, "--input", str(folder), "--output", str(output)]
        main([*arguments, *options])
        splits = read_json(output / "dataset.json")["splits"]
        records = {}
        for split in splits:
            dataset = ShardDataset(output, split)
            found = [dataset.record(index) for index in range(len(dataset))]
            records[split] = sorted(found, key=lambda record: record.image.mean())
        return records

    return read


@pytest.fixture(scope="session")
def save_image():
    """Write an image file, with its folders."""

    def save(path: Path, image: np.ndarray, **options) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, **options)

    return save


@pytest.fixture(scope="session")
def folder_bytes():
    """Contents of every file below a folder, hidden ones too."""

    def read(folder: Path) -> dict[str, bytes]:
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    return read


@pytest.fixture(scope="session")
def left_out():
    """What a set left out: kind and reason of each file, as its private folder says."""

    def read(output: Path) -> dict[str, tuple[str, str]]:
        with (output / "private" / "quarantine.csv").open(newline="", encoding="utf-8") as file:
            return {row["file"]: (row["kind"], row["reason"]) for row in csv.DictReader(file)}

    return read


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory, make_images) -> Path:
    folder = tmp_path_factory.mktemp("images")
    make_images(folder)
    return folder


@pytest.fixture(scope="session")
def shard_set(image_folder, tmp_path_factory, shard_folder) -> Path:
    """24 records in shards of four."""
    output = tmp_path_factory.mktemp("set")
    shard_folder(image_folder, output, class_folders=True)
    return output


@pytest.fixture(scope="session")
def make_series():
    """Write a series of single-frame DICOM files, their names in no order."""

    def make(
        folder: Path,
        volume: np.ndarray,
        origin=(-20.0, 10.0, 5.0),
        orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        step=(0.0, 0.0, 2.5),
        spacing=(0.8, 0.6),
        each=lambda index: {},
        series="1.2.7",
        **header,
    ) -> list[Path]:
        """Files by slice of `volume`, (slices, rows, columns) of stored integers.

        Args:
            origin, step: Place of the first slice, and from each to the next, mm (LPS).
            each: Header values of a slice by its number; those of `header` are of all.
        """
        folder.mkdir(parents=True, exist_ok=True)
        names = np.random.default_rng(len(volume)).permutation(len(volume))
        paths = []
        for index, pixels in enumerate(volume):
            dataset = Dataset()
            dataset.file_meta = FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            dataset.SOPClassUID = CTImageStorage
            dataset.SOPInstanceUID = generate_uid(entropy_srcs=[str(folder), series, str(index)])
            dataset.SeriesInstanceUID, dataset.StudyInstanceUID = series, "1.2.3"
            dataset.FrameOfReferenceUID, dataset.PatientID = "1.2.4", "ID-4711"
            dataset.PatientName, dataset.PatientBirthDate, dataset.PatientSex = "Roe^Jane", "", ""
            dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = dataset.StudyID = ""
            dataset.ReferringPhysicianName, dataset.SliceThickness = "", 2.5
            dataset.Modality, dataset.InstanceNumber = "CT", index + 1
            dataset.ImagePositionPatient = (np.array(origin) + index * np.array(step)).tolist()
            dataset.ImageOrientationPatient = list(orientation)
            dataset.PixelSpacing = list(spacing)
            dataset.Rows, dataset.Columns = pixels.shape[:2]
            dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
            dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
            dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
            for name, value in (header | each(index)).items():
                setattr(dataset, name, value)
            dataset.HighBit = dataset.BitsStored - 1
            dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            dataset.PixelData = pixels.tobytes()
            dataset["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
            paths.append(folder / f"image {names[index]}")
            dataset.save_as(paths[-1], enforce_file_format=True)
        return paths

    return make
