"""`shard-seg --max_size`: images and labels become smaller together, and stay on each other."""

import json

import nibabel
import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.readers.shrink import nearest_pixels, shrink_sample
from data_prep.records import Sample

PAIRS = ("--layout=pairs", "--image=photo/*", "--mask=label/*.png", "--split={train: 1.0}")
LABELS = "--labels={disc: [1, 2], cup: [2]}"


def labels(height: int, width: int) -> np.ndarray:
    """A disc with a smaller one in it, off the middle."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - height * 0.4, columns - width * 0.6)
    return ((distance < width * 0.2).astype(np.uint8)) + (distance < width * 0.1)


@pytest.fixture
def folder(tmp_path, save_image):
    """Photographs that show their labels as brightness; the last one is small."""
    for case, (shape, suffix) in enumerate(
        [((90, 120), "png"), ((200, 150), "jpg"), ((40, 30), "jpg")]
    ):
        mask = labels(*shape)
        grey = (mask * 100).astype(np.uint8)
        save_image(tmp_path / f"photo/{case}.{suffix}", np.stack([grey] * 3, -1))
        save_image(tmp_path / f"label/{case}.{suffix}.png", mask)
    return tmp_path


def test_images_and_labels_become_smaller_together(folder, read_layout):
    options = (*PAIRS[1:], LABELS, "--max_size=50")
    records = read_layout("shard-seg", "pairs", folder, *options)["train"]
    assert sorted(record.image.shape for record in records) == [
        (38, 50, 3),
        (40, 30, 3),
        (50, 38, 3),
    ]
    originals = {38: (90, 120), 40: (40, 30), 50: (200, 150)}  # by height
    for record in records:
        assert record.mask.shape == record.image.shape[:2]
        assert record.meta["present"] == ["disc", "cup"]
        seen = np.rint(record.image[..., 0] / 100)
        assert (seen != record.mask).mean() < 0.05  # pixels on the edge show a mixture
        original = labels(*originals[len(record.mask)])
        for value in (1, 2):
            share = (original == value).mean()
            assert (record.mask == value).mean() == pytest.approx(share, rel=0.1)


def test_what_is_small_enough_keeps_its_bytes(folder, tmp_path):
    arguments = ["shard-seg", *PAIRS, LABELS, f"--input={folder}", f"--output={tmp_path / 'set'}"]
    main([*arguments, "--max_size=50"])
    written = b"".join(path.read_bytes() for path in (tmp_path / "set").glob("*.tar"))
    assert (folder / "photo" / "2.jpg").read_bytes() in written
    assert (folder / "photo" / "1.jpg").read_bytes() not in written
    assert written.count(b".jpg\0") == 2  # of a large JPEG, too, a JPEG is made


def test_each_new_pixel_takes_the_label_under_its_centre():
    generator = np.random.default_rng(0)
    for shape, size in (((60, 90), 40), ((7, 100), 33), ((1, 5), 2)):
        mask = generator.integers(0, 3, shape).astype(np.uint8)
        small = shrink_sample(Sample(mask * np.uint8(80), mask), size).mask
        rows, columns = small.shape
        for row in range(rows):
            for column in range(columns):
                y, x = (row + 0.5) * shape[0] / rows, (column + 0.5) * shape[1] / columns
                assert small[row, column] == mask[int(y + 1e-9), int(x + 1e-9)]


def test_nearest_pixels_of_an_unchanged_side_are_all():
    assert nearest_pixels(17, 17).tolist() == list(range(17))


@pytest.mark.parametrize("bits", [8, 16])
def test_volumes_keep_their_depth_and_their_extent(tmp_path, read_layout, bits):
    mask = np.stack([labels(60, 80) * (depth > 0) for depth in range(5)], axis=-1).astype(np.uint8)
    affine = np.diag([0.5, 0.7, 3.0, 1.0])
    for name, array in (("images", mask * np.int16(500)), ("labels", mask)):
        (tmp_path / f"data/{name}Tr").mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / f"data/{name}Tr/a.nii.gz")
    document = {"labels": {"0": "background", "1": "ring", "2": "middle"}, "modality": {"0": "MRI"}}
    (tmp_path / "data/dataset.json").write_text(json.dumps(document))
    options = ("--max_size=30", f"--bits={bits}", "--window=full", "--split={train: 1.0}")
    (record,) = read_layout("shard-seg", "nnunet", tmp_path / "data", *options)["train"]
    assert record.image.shape == record.mask.shape == (5, 30, 22)
    white = np.iinfo(record.image.dtype).max
    assert record.image.dtype == (np.uint8, np.uint16)[bits == 16]
    assert (np.rint(record.image / white * 2) != record.mask).mean() < 0.05
    extent = np.multiply(record.meta["spacing"], record.image.shape)
    assert extent == pytest.approx([3.0 * 5, 0.7 * 80, 0.5 * 60], rel=1e-5)
    assert record.meta["slices"] == {"ring": [1, 2, 3, 4], "middle": [1, 2, 3, 4]}


def test_bytes_do_not_depend_on_workers_or_tasks(folder, tmp_path, folder_bytes):
    def run(name: str, *options: str) -> dict[str, bytes]:
        fixed = [
            "--max_size=50",
            "--salt=tests",
            "--shard_records=1",
            f"--output={tmp_path / name}",
        ]
        main(["shard-seg", *PAIRS, LABELS, f"--input={folder}", *fixed, *options])
        return {k: v for k, v in folder_bytes(tmp_path / name).items() if "config" not in k}

    one = run("one")
    assert sum(name.endswith(".tar") for name in one) == 3
    assert run("two", "--workers=2") == one
    run("tasks", "--task=0", "--tasks=2")
    assert run("tasks", "--task=1", "--tasks=2") == one


def test_another_size_is_refused_and_a_set_without_one_stays(folder, tmp_path, capsys):
    arguments = ["shard-seg", *PAIRS, LABELS, f"--input={folder}", f"--output={tmp_path / 'set'}"]
    main(arguments)
    main(arguments)  # as made before there was the option
    with pytest.raises(SystemExit):
        main([*arguments, "--max_size=32"])
    assert "was made with --max_size null, not 32; give another" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--max_size=0"])
    assert "max_size: 0 is not at least 1, or null" in capsys.readouterr().err


def test_a_mask_of_another_shape_is_refused_as_ever(folder, tmp_path):
    Image.new("L", (10, 10)).save(folder / "label" / "0.png.png")
    arguments = ["shard-seg", *PAIRS, LABELS, f"--input={folder}", f"--output={tmp_path / 'set'}"]
    with pytest.raises(SystemExit):
        main([*arguments, "--max_size=50"])
    reasons = (tmp_path / "set" / "quarantine.jsonl").read_text()
    assert "a mask of (10, 10) for an image of (90, 120)" in reasons
