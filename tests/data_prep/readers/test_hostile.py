"""Input as it should not be: refused with a reason, and nothing else lost."""

import gzip
import io
import os
import struct
import subprocess
import sys
import unicodedata
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from data_prep.commands.verify import find_problems
from data_prep.common.errors import UserError
from data_prep.loader.dataset import ShardDataset

ROOT = Path(__file__).parents[3]


def picture(seed, shape=(40, 48)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(stream, kind, **options)
    return stream.getvalue()


def bomb():
    """A PNG that claims 60000 x 60000 pixels."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def animated(kind):
    frames = [Image.fromarray(picture(seed)) for seed in (8, 9)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


REFUSED = {
    "empty.png": (b"", "the file is empty"),
    "truncated.png": (encoded(picture(1), "PNG")[:900], "truncated or damaged"),
    "truncated.jpg": (encoded(picture(1), "JPEG")[:900], "truncated or damaged"),
    "truncated.tif": (encoded(picture(1), "TIFF")[:900], "damaged"),
    "text.png": (b"Jane Roe, 1 January 1970", "not an image"),
    "program.jpg": (b"\x7fELF" + bytes(100), "not an image"),
    "pickle.png": (b"\x80\x04\x8c\x05posix\x94.", "not an image"),
    "postscript.tif": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "bomb.png": (bomb(), "more pixels than any image may have"),
    "animated.gif": (animated("GIF"), "holds 2 frames"),
    "animated.png": (animated("PNG"), "holds 2 frames"),
    "animated.webp": (animated("WEBP"), "holds 2 frames"),
    "pages.tif": (animated("TIFF"), "holds 2 frames"),
}


def images(output):
    dataset = ShardDataset(output)
    return [dataset.record(index).image for index in range(len(dataset))]


def holds(stored, expected):
    return any(np.array_equal(image, expected) for image in stored)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason_and_nothing_else_lost(
    name, tmp_path, save_image, shard_folder, left_out
):
    data, reason = REFUSED[name]
    for seed in (10, 11):
        save_image(tmp_path / "images" / f"{seed}.png", picture(seed))
    (tmp_path / "images" / name).write_bytes(data)
    document = shard_folder(tmp_path / "images", tmp_path / "set", max_bad=0.5)
    assert (document["records"], document["unreadable"]) == (2, 1)
    ((path, (_, reason_given)),) = left_out(tmp_path / "set").items()
    assert path == name and reason in reason_given
    stored = images(tmp_path / "set")
    assert holds(stored, picture(10)) and holds(stored, picture(11))
    everything = b"".join(file.read_bytes() for file in (tmp_path / "set").glob("*.*"))
    assert b"Jane Roe" not in everything


def palette():
    image = Image.fromarray(picture(2) % 3, "L").convert("P")
    image.putpalette([0, 0, 0, 250, 10, 20, 30, 240, 40])
    return image, np.array([[0, 0, 0], [250, 10, 20], [30, 240, 40]], np.uint8)[picture(2) % 3]


def transparent():
    array = picture(3, (40, 48, 4))
    array[..., 3] = np.where(array[..., 3] > 127, 255, 0)
    return Image.fromarray(array), array[..., :3] * (array[..., 3:] > 127)


def inks():
    """A smooth picture in CMYK, as JPEG changes noise."""
    rows, columns = np.mgrid[:40, :48].astype(np.uint8)
    colour = np.dstack([rows * 4, columns * 4, rows + columns])
    return Image.fromarray(colour).convert("CMYK"), colour


def deep():
    values = np.arange(40 * 48, dtype=np.uint16).reshape(40, 48) * 30
    return Image.fromarray(values), np.rint(values / values.max() * 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("make", "kind"),
    [(make, kind) for make in (palette, transparent, deep) for kind in ("PNG", "TIFF")]
    + [(inks, "TIFF"), (inks, "JPEG")],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_unusual_pixels_become_plain(make, kind, tmp_path, shard_folder):
    image, expected = make()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / f"a.{kind.lower()}").write_bytes(encoded(image, kind))
    shard_folder(tmp_path / "images", tmp_path / "set", window="full")
    (stored,) = images(tmp_path / "set")
    assert stored.shape == expected.shape and stored.dtype == np.uint8
    assert np.abs(stored.astype(int) - expected).max() <= (16 if kind == "JPEG" else 1)


def test_a_wrong_suffix_is_read_for_what_it_is(tmp_path, shard_folder):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(encoded(picture(1), "TIFF"))
    (tmp_path / "images" / "b.JPEG").write_bytes(encoded(picture(2), "PNG"))
    shard_folder(tmp_path / "images", tmp_path / "set")
    stored = images(tmp_path / "set")
    assert holds(stored, picture(1)) and holds(stored, picture(2))


def volume():
    rows, columns, depths = np.mgrid[:40, :40, :40]
    return ((rows - 20) ** 2 + (columns - 20) ** 2 + (depths - 20) ** 2 < 225) * 900.0


def test_nifti_with_nan_is_read_and_one_that_lies_is_not(tmp_path, shard_folder, left_out):
    holes = volume()
    holes[:4] = np.nan
    whole = nibabel.Nifti1Image(volume(), np.eye(4)).to_bytes()
    lying = bytearray(whole)
    lying[42:48] = np.array([40, 40, 30000], "<i2").tobytes()  # 384 MB, in a file of 512 kB
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "lying.nii").write_bytes(lying)
    lying[42:48] = np.array([4000, 4000, 30000], "<i2").tobytes()  # 3.8 TB
    (tmp_path / "in" / "lying.nii.gz").write_bytes(gzip.compress(lying))
    (tmp_path / "in" / "text.nii").write_bytes(b"Jane Roe" * 100)
    (tmp_path / "in" / "nan.nii").write_bytes(nibabel.Nifti1Image(holes, np.eye(4)).to_bytes())
    (tmp_path / "in" / "good.nii").write_bytes(whole)
    options = {"layout": "nifti", "planes": ("axial",), "max_bad": 0.6}
    document = shard_folder(tmp_path / "in", tmp_path / "set", **options)
    quarantined = {name: reason for name, (_, reason) in left_out(tmp_path / "set").items()}
    assert set(quarantined) == {"lying.nii", "lying.nii.gz", "text.nii"}
    assert "fewer than the header says" in quarantined["lying.nii"]
    assert "fewer than the header says" in quarantined["lying.nii.gz"]
    assert document["splits"]["train"]["groups"] == 2
    expected = (volume()[::-1, ::-1, 20].T > 0) * np.uint8(255)
    assert holds(images(tmp_path / "set"), expected)


def test_links_are_followed_once(tmp_path, save_image, shard_folder, left_out):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "images"
    for seed, path in enumerate((elsewhere / "a.png", elsewhere / "b.png", folder / "c.png")):
        save_image(path, picture(seed))
    (folder / "linked").symlink_to(elsewhere)
    (folder / "again").symlink_to(elsewhere)
    (elsewhere / "circle").symlink_to(folder)
    (folder / "file.png").symlink_to(elsewhere / "a.png")
    (folder / "broken.png").symlink_to(tmp_path / "gone.png")
    document = shard_folder(folder, tmp_path / "set", max_bad=0.5)
    assert document["records"] == 4  # a (also by its own link), b, c
    assert left_out(tmp_path / "set") == {
        "broken.png": ("unreadable", "cannot be read (No such file or directory)")
    }


def test_a_folder_that_cannot_be_listed_is_told_before_anything_is_written(
    tmp_path, save_image, shard_folder, monkeypatch
):
    save_image(tmp_path / "images" / "secret" / "a.png", picture(1))
    scan = os.scandir

    def forbidden(path):  # the tests may run as root, who may list anything
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(UserError, match=r"secret: cannot be listed \(Permission denied\)"):
        shard_folder(tmp_path / "images", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_file_that_may_not_be_read_is_left_out(
    tmp_path, save_image, shard_folder, monkeypatch, left_out
):
    for name in ("a.png", "b.png"):
        save_image(tmp_path / "images" / name, picture(1))
    read = Path.read_bytes

    def forbidden(path):
        if path.name == "a.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    document = shard_folder(tmp_path / "images", tmp_path / "set", max_bad=0.5)
    assert document["records"] == 1
    assert left_out(tmp_path / "set") == {
        "a.png": ("unreadable", "cannot be read (Permission denied)")
    }


def test_a_disk_that_fills_up_loses_no_finished_shard(tmp_path, save_image, shard_folder):
    """Writing fails at 90 kB a file, as on a full disk; afterwards the run is completed."""
    for seed in range(12):
        save_image(tmp_path / "images" / f"{seed}.png", picture(seed, (40 + 40 * seed, 90)))
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (90000, 90000))\n"
        "from data_prep.__main__ import main; main(sys.argv[1:])"
    )
    output = tmp_path / "set"
    arguments = ["shard", "--layout=folder", f"--input={tmp_path / 'images'}", f"--output={output}"]
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--shard-records=4", "--seed=1", "--salt=tests"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].endswith("set: cannot be written: File too large")
    left = [path.name for path in output.iterdir()]
    assert not [name for name in left if name.endswith(".partial")]
    assert "train-000000.tar" in left and "train-000002.tar" not in left
    assert not (output / "dataset.json").exists()
    assert shard_folder(tmp_path / "images", output, seed=1)["records"] == 12
    assert find_problems(output) == []


def test_names_of_every_kind(tmp_path, save_image, shard_folder):
    composed = unicodedata.normalize("NFC", "é.png")
    names = [
        "a b (1).png",
        "a.png",
        "A.PNG",
        "a.jpg.png",
        "x/a.png",
        "日本.png",
        "-rf.png",
        "'\".png",
    ]
    names += [composed, unicodedata.normalize("NFD", composed), "line\nbreak.png", "50%.png"]
    for seed, name in enumerate(names):
        save_image(tmp_path / "images" / name, picture(seed))
    # not UTF-8, as on old disks
    bytes_name = os.path.join(os.fsencode(tmp_path / "images"), b"\xff\xfe.png")  # noqa: PTH118
    with open(bytes_name, "wb") as file:  # noqa: PTH123
        file.write(encoded(picture(len(names)), "PNG"))
    document = shard_folder(tmp_path / "images", tmp_path / "set", workers=2)
    assert (document["records"], document["unreadable"]) == (len(names) + 1, 0)
    stored = images(tmp_path / "set")
    assert all(holds(stored, picture(seed)) for seed in range(len(names) + 1))


def test_an_unreadable_file_of_a_strange_name_is_told(tmp_path, save_image, shard_folder, left_out):
    save_image(tmp_path / "images" / "a.png", picture(1))
    (tmp_path / "images" / os.fsdecode(b"\xff\n.png")).touch()
    shard_folder(tmp_path / "images", tmp_path / "set", max_bad=0.5)
    assert left_out(tmp_path / "set") == {"ÿ\n.png": ("unreadable", "the file is empty")}


@pytest.mark.parametrize("layout", ["folder", "dicom", "nifti", "radimagenet", "eyepacs"])
def test_an_empty_folder_is_told(layout, tmp_path, shard_folder):
    (tmp_path / "images" / "empty").mkdir(parents=True)
    with pytest.raises(UserError, match=f"layout {layout}: found no image in the input"):
        shard_folder(tmp_path / "images", tmp_path / "set", layout=layout)


@pytest.mark.parametrize("layout", ["folder", "dicom"])
def test_pipes_and_links_in_a_circle_hang_nothing(layout, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded(picture(1), "PNG"))
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe.dcm")
    (folder / "linked.png").symlink_to(folder / "pipe.png")
    (folder / "self.png").symlink_to(folder / "self.png")
    command = [
        sys.executable,
        "-m",
        "data_prep",
        "shard",
        f"--layout={layout}",
        f"--input={folder}",
    ]
    done = subprocess.run(
        [*command, f"--output={tmp_path / 'set'}", "--max_bad=0.9"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if layout == "folder":  # the link to itself leads to nothing, which reading it says
        assert done.returncode == 0, done.stderr
        assert "1 records, 0 files skipped, 1 unreadable" in done.stdout
    else:
        assert "error: layout dicom: found no image in the input" in done.stderr
