"""A table of prompts: one model for all its images, and a bad row stops no other."""

import nibabel
import numpy as np
import pytest
from PIL import Image

SQUARES = np.zeros((64, 64), np.uint8)
SQUARES[4:16, 4:16], SQUARES[40:60, 20:50] = 1, 2


@pytest.fixture
def folder(tmp_path, wander):
    """Three pictures of two squares, the last one in a folder, and a volume."""
    images = tmp_path / "images"
    (images / "more").mkdir(parents=True)
    for name in ("a.png", "b.png", "more/c.png"):
        Image.fromarray((SQUARES > 0).astype(np.uint8) * 200).save(images / name)
    data = wander(6, (1, 4)).astype(np.int16).T[::-1, ::-1]  # as it is shown
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), images / "scan.nii.gz")
    return images


@pytest.fixture
def run_table(predict, folder, tmp_path, monkeypatch):
    """Write a table and predict by it; gives how often the model was loaded."""

    def run(segmenter, text: str, *options: str, output: str = "masks") -> list[int]:
        (tmp_path / "table.csv").write_text(text)
        loads: list[int] = []
        from finetune.inference import table

        load = table.load
        monkeypatch.setattr(table, "load", lambda *given: loads.append(1) or load(*given))
        files = (f"--input={folder}", f"--output={tmp_path / output}")
        try:
            predict(segmenter, f"--prompts={tmp_path / 'table.csv'}", *files, *options)
        finally:
            monkeypatch.setattr(table, "load", load)
        return loads

    return run


def read(path):
    return np.array(Image.open(path))


TABLE = """file,object,clicks,box,slice
a.png,1,"10,10,1",,
a.png,2,,"19,39,51,61",
b.png,2,,"3,3,17,17",
more/c.png,,"10,10,1 12,12,1",,
scan.nii.gz,,"25,20,3,1",,
"""


def test_all_images_are_segmented_with_one_model(glow, run_table, tmp_path, capsys):
    assert run_table(glow, TABLE) == [1]
    masks = tmp_path / "masks"
    assert np.array_equal(read(masks / "a.png"), SQUARES)
    assert np.array_equal(read(masks / "b.png"), (SQUARES == 1) * 2)
    assert np.array_equal(read(masks / "more" / "c.png"), SQUARES == 1)
    volume = np.asarray(nibabel.load(masks / "scan.nii.gz").dataobj)
    assert volume.any((0, 1)).tolist() == [False, True, True, True, True, False]
    assert (masks / "more" / "c_overlay.png").is_file() and (masks / "config.yaml").is_file()
    said = capsys.readouterr()
    assert "4 masks written, 0 were there already" in said.out
    assert "predict: 100%" in said.err and "image" in said.err


def test_a_second_start_makes_what_is_missing(glow, run_table, tmp_path, capsys):
    run_table(glow, TABLE, "--no-overlay")
    before = (tmp_path / "masks" / "a.png").stat().st_mtime_ns
    assert run_table(glow, TABLE, "--no-overlay") == []
    (tmp_path / "masks" / "b.png").unlink()
    assert run_table(glow, TABLE, "--no-overlay") == [1]
    assert (tmp_path / "masks" / "a.png").stat().st_mtime_ns == before
    assert "1 masks written, 3 were there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('b.png,,"10,10,2",,', "clicks: '10,10,2' has the label 2"),
        ('b.png,,"70,10,1",,', "clicks: (70, 10) lies outside the image"),
        ("b.png,,,,", "no prompt: an object has neither clicks nor a box"),
        ('none.png,,"1,1,1",,', "does not exist"),
        ('../b.png,,"1,1,1",,', "is not a path below the input folder"),
        ('b.png,x,"1,1,1",,', "object: 'x' is not a whole number"),
        ('b.png,255,"1,1,1",,', "a mask holds objects 1 to 254"),
        ('b.png,,"1,1,1",,2', "slice"),
        ('scan.nii.gz,,"1,1,1",,9', "has 6 slices; choose one of 0 to 5"),
        ('scan.nii.gz,,"1,1,1",,', "has 6 slices"),
        ('b.png,0,"1,1,1",,', "object 0: a mask holds objects 1 to 254"),
        ('.,,"1,1,1",,', "'.' is not a path below the input folder"),
        (f'{"b" * 300}.png,,"1,1,1",,', "File name too long"),
        ('a.png,,"1,1,1",,', "object: must say which one, as its file has several rows"),
    ],
)
def test_a_bad_row_is_named_and_the_others_are_done(
    glow, run_table, folder, tmp_path, capsys, row, message
):
    (folder / "damaged.png").write_bytes(b"nothing")
    name = row.split(",")[0]
    good = "more/c.png" if name != "more/c.png" else "a.png"
    lines = ["file,object,clicks,box,slice", 'a.png,1,"10,10,1",,', row]
    with pytest.raises(SystemExit) as stop:
        run_table(glow, "\n".join([*lines, f'{good},,"10,10,1",,', 'damaged.png,,"1,1,1",,']))
    assert stop.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "table.csv, line 3: " in errors[0] and message in errors[0]
    assert "table.csv, line 5: " in errors[1] and "not an image" in errors[1]
    assert errors[2].startswith("error: prompts: 2 of ")
    assert (tmp_path / "masks" / "more" / "c.png").is_file()
    assert (tmp_path / "masks" / "a.png").is_file() == (name != "a.png")
    assert not (tmp_path / "masks" / "damaged.png").exists()


def test_clicks_may_have_a_row_each(glow, run_table, tmp_path):
    text = "file;object;x;y;label\na.png;1;10;10;\na.png;1;14;14;0\na.png;2;35;50;1\n"
    run_table(glow, text, "--no-overlay")
    found = read(tmp_path / "masks" / "a.png")
    assert found[5, 5] == 1 and found[14, 14] == 0 and found[50, 35] == 2


def test_a_slice_of_a_row_is_segmented_alone(glow, run_table, tmp_path):
    text = 'file,object,box,slice\nscan.nii.gz,1,"19,12,37,30",3\nscan.nii.gz,1,"19,10,37,28",1\n'
    run_table(glow, text, "--suffix=.nii")
    volume = np.asarray(nibabel.load(tmp_path / "masks" / "scan.nii").dataobj)
    assert volume.any((0, 1)).tolist() == [False, True, False, True, False, False]


def test_a_head_takes_names(headed, run_table, tmp_path):
    text = "file,object,target\na.png,1,bright\na.png,2,dark\nb.png,7,bright\n"
    run_table(headed, text, "--no-overlay")
    assert np.array_equal(read(tmp_path / "masks" / "a.png"), np.where(SQUARES > 0, 1, 2))
    assert read(tmp_path / "masks" / "b.png").max() == 7


def test_two_images_do_not_share_a_mask(glow, run_table, folder, tmp_path, capsys):
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(folder / "a.bmp")
    with pytest.raises(SystemExit):
        run_table(glow, 'file,clicks\na.png,"9,9,1"\na.bmp,"9,9,1"\n')
    assert (
        "line 3: a.png would be written for it, and is written for a.png" in capsys.readouterr().err
    )
    assert np.array_equal(read(tmp_path / "masks" / "a.png"), (SQUARES == 1) * 255)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("name,clicks\n", [], "has no column 'file'"),
        ("file,click\na.png,1\n", [], "there is no column 'click'; did you mean clicks?"),
        ("file,clicks\n", [], "has no rows below its header"),
        ("file,clicks\na.png,1\n", ["--clicks=1,1,1"], "clicks: is for one image; with --prompts"),
        ("file,clicks\na.png,1\n", ["--add"], "add: is for one image"),
        ("file,x,y\na.png,1,1,5,5,1\n", [], "table.csv, line 2: has more cells than the header"),
        ("file,clicks,clicks\na.png,,1\n", [], "table.csv: has two columns 'clicks'"),
        ("file,clicks\na.png,1\n", ["--input=a.png"], "is no folder"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(
    glow, run_table, tmp_path, capsys, text, options, message
):
    with pytest.raises(SystemExit):
        run_table(glow, text, *options)
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not (tmp_path / "masks").exists()


def test_masks_of_two_models_are_not_mixed(glow, run_table, tmp_path, capsys):
    run_table(glow, TABLE, "--no-overlay")
    with pytest.raises(SystemExit):
        run_table(glow, TABLE, "--no-overlay", "--window=full")
    assert "was begun with another window; give a new folder" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").write_text("mine")
    with pytest.raises(SystemExit):
        run_table(glow, TABLE, output="other")
    assert "holds other files" in capsys.readouterr().err
    assert (tmp_path / "other" / "a.png").read_text() == "mine"


def test_an_image_whose_rows_have_changed_is_done_again(glow, run_table, tmp_path, capsys):
    run_table(glow, TABLE, "--no-overlay")
    masks = tmp_path / "masks"
    before = {path: path.stat().st_mtime_ns for path in masks.rglob("*.*") if path.is_file()}
    changed = TABLE.replace('b.png,2,,"3,3,17,17"', 'b.png,2,,"19,39,51,61"')
    header, *lines = changed.splitlines()
    moved = "\n".join([header, *lines[2:], *lines[:2]])  # where a row stands says nothing
    capsys.readouterr()
    assert run_table(glow, moved, "--no-overlay") == [1]
    said = capsys.readouterr().out
    assert "b.png: its rows have changed, so it is done again" in said
    assert "1 masks written, 3 were there already" in said
    assert np.array_equal(read(masks / "b.png"), (SQUARES == 2) * 2)
    for name in ("a.png", "more/c.png", "scan.nii.gz"):
        assert (masks / name).stat().st_mtime_ns == before[masks / name]
    assert run_table(glow, moved, "--no-overlay") == []


def test_an_empty_column_of_numbers_changes_masks_too(glow, run_table, tmp_path) -> None:
    for text, value in (
        ('file,box\nb.png,"3,3,17,17"\n', 255),
        ('file,object,box\nb.png,,"3,3,17,17"\n', 1),
    ):
        run_table(glow, text, "--no-overlay")
        assert read(tmp_path / "masks" / "b.png").max() == value


def test_a_killed_run_does_again_what_it_did_not_note(glow, run_table, tmp_path, capsys):
    run_table(glow, TABLE, "--no-overlay")
    record = tmp_path / "masks" / "rows.jsonl"
    whole = record.read_bytes()
    record.write_bytes(whole[:-9])  # it was writing the line of the last image
    assert run_table(glow, TABLE, "--no-overlay") == [1]
    assert "1 masks written, 3 were there already" in capsys.readouterr().out
    assert record.read_bytes() == whole
    record.write_bytes(b"nonsense\n" + whole)
    with pytest.raises(SystemExit):
        run_table(glow, TABLE, "--no-overlay")
    assert "rows.jsonl: line 1 is damaged" in capsys.readouterr().err


def test_a_row_that_is_bad_when_it_is_changed_leaves_its_mask(glow, run_table, tmp_path, capsys):
    run_table(glow, TABLE, "--no-overlay")
    with pytest.raises(SystemExit):
        run_table(glow, TABLE.replace('"3,3,17,17"', '"3,3,99,17"'), "--no-overlay")
    assert "lies outside the image" in capsys.readouterr().err
    assert np.array_equal(read(tmp_path / "masks" / "b.png"), (SQUARES == 1) * 2)
    assert run_table(glow, TABLE, "--no-overlay") == []


def test_a_mask_is_not_the_picture_of_another(glow, run_table, folder, tmp_path, capsys):
    Image.fromarray(SQUARES).save(folder / "a_overlay.png")
    with pytest.raises(SystemExit):
        run_table(glow, 'file,clicks\na.png,"9,9,1"\na_overlay.png,"9,9,1"\n')
    line = "line 3: a_overlay.png would be written for it, and is written for a.png"
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("form", ["comma", "semicolon"])
def test_tables_of_spreadsheets_are_read(glow, run_table, tmp_path, form):
    """With a byte order mark, lines that end in CR and LF, and empty rows at the end."""
    mark = ";" if form == "semicolon" else ","
    rows = [["file", "object", "clicks"], ["a.png", "1", "10,10,1"], ["b.png", "", "10,10,1"]]
    cells = [[f'"{cell}"' if mark in cell else cell for cell in row] for row in rows]
    text = "".join(f"{mark.join(row)}\r\n" for row in [*cells, ["", "", ""]])
    run_table(glow, f"\ufeff{text}", "--no-overlay")
    for name in ("a.png", "b.png"):  # objects have numbers in this table
        assert np.array_equal(read(tmp_path / "masks" / name), SQUARES == 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file;x;y\na.png;10,5;12\n", "x: '10,5' has a decimal comma; write a point"),
        ('file,clicks,label\na.png,"9,9,1",1\n', "label: is that of x and y"),
        ('file,box,label\na.png,"3,3,9,9",1\n', "label: is that of x and y"),
        ("file,text\na.png,liver; spleen\n", "text: names several objects; give each a row"),
    ],
)
def test_cells_that_would_be_misread_or_ignored_are_refused(glow, run_table, capsys, text, message):
    with pytest.raises(SystemExit):
        run_table(glow, text)
    assert f"line 2: {message}" in capsys.readouterr().err


def test_a_folder_that_may_not_be_read_stops_no_other_row(
    glow, run_table, tmp_path, capsys, monkeypatch
):
    from finetune.inference import table

    kind_of = table.kind_of

    def denied(path):
        if path.name == "b.png":
            raise PermissionError(13, "Permission denied", str(path))
        return kind_of(path)

    monkeypatch.setattr(table, "kind_of", denied)
    with pytest.raises(SystemExit):
        run_table(glow, TABLE, "--no-overlay")
    assert "b.png: Permission denied" in capsys.readouterr().err
    assert (tmp_path / "masks" / "scan.nii.gz").is_file()
