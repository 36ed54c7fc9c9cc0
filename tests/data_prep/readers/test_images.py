"""Image files of every kind to plain pixels, without what was written beside them."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from data_prep.format.codec import decode
from data_prep.options import ReadOptions
from data_prep.readers.images import read_image
from data_prep.records import Unreadable

OPTIONS = ReadOptions()


def smooth(height=60, width=80, channels=3):
    """A smooth picture, which JPEG keeps well, brighter to the right and to the bottom."""
    y, x = np.mgrid[:height, :width]
    levels = [(x * 2 + y * (k + 1)) % 512 for k in range(channels)]
    picture = np.stack([np.minimum(level, 511 - level) for level in levels], axis=-1)
    return picture.astype(np.uint8).squeeze()


def save(path, image, **options):
    Image.fromarray(image).save(path, **options)
    return path


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_plain_files_keep_their_bytes(tmp_path, channels, suffix):
    path = save(tmp_path / f"a.{suffix}", smooth(channels=channels))
    picture = read_image(path, OPTIONS, max_size=80)
    assert picture.encoded == (suffix, path.read_bytes())
    assert np.array_equal(picture.array, np.asarray(Image.open(path)))
    assert picture.array.ndim == (2 if channels == 1 else 3)


def test_a_progressive_jpeg_keeps_its_bytes(tmp_path):
    path = save(tmp_path / "a.jpg", smooth(), progressive=True, restart_marker_blocks=2)
    assert read_image(path, OPTIONS).encoded[1] == path.read_bytes()


def test_a_wrong_suffix_does_not_matter(tmp_path):
    path = save(tmp_path / "a.jpg", smooth(), format="PNG")
    assert read_image(path, OPTIONS).encoded == ("png", path.read_bytes())


def exif(orientation):
    header = Image.Exif()
    header[0x0112] = orientation
    header[0x010E] = "Jane Roe, 1 Jan 1970"
    return header


def test_exif_and_comments_are_dropped_without_encoding_again(tmp_path):
    plain = save(tmp_path / "plain.jpg", smooth())
    path = save(tmp_path / "a.jpg", smooth(), exif=exif(1), comment=b"Jane Roe")
    path.write_bytes(path.read_bytes() + b"Jane Roe behind the end")
    assert path.read_bytes().count(b"Jane Roe") == 3
    picture = read_image(path, OPTIONS)
    assert picture.encoded == ("jpg", plain.read_bytes())


def test_png_text_is_dropped_without_encoding_again(tmp_path):
    plain = save(tmp_path / "plain.png", smooth())
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", "Jane Roe")
    text.add_itxt("Comment", "Jane Roe")
    path = save(tmp_path / "a.png", smooth(), pnginfo=text, exif=exif(1))
    assert b"Jane Roe" in path.read_bytes()
    assert read_image(path, OPTIONS).encoded == ("png", plain.read_bytes())


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
@pytest.mark.parametrize("max_size", [None, 40])
def test_rotated_photographs_become_upright(tmp_path, orientation, max_size):
    upright = smooth()
    stored = {
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        6: np.rot90(upright),
        8: np.rot90(upright, -1),
    }[orientation]
    path = save(tmp_path / "a.jpg", np.ascontiguousarray(stored), exif=exif(orientation))
    picture = read_image(path, OPTIONS, max_size)
    expected = np.asarray(Image.fromarray(upright).resize((40, 30), Image.Resampling.BOX))
    expected = upright if max_size is None else expected
    assert picture.array.shape == expected.shape
    assert np.abs(picture.array.astype(int) - expected).mean() < 4
    assert b"Jane Roe" not in picture.encoded[1]
    assert np.array_equal(decode(*picture.encoded), picture.array)


def chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="3"/></x:xmpmeta>'


@pytest.mark.parametrize(
    "turned",
    [
        chunk(b"eXIf", exif(3).tobytes().removeprefix(b"Exif\0\0")),
        chunk(
            b"tEXt",
            b"Raw profile type exif\0\nexif\n%d\n" % len(exif(3).tobytes())
            + exif(3).tobytes().hex().encode(),
        ),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.encode()),
    ],
    ids=["chunk", "text", "XMP"],
)
def test_a_png_that_says_behind_its_pixels_that_it_is_turned(turned, tmp_path):
    path = save(tmp_path / "a.png", smooth())
    end = chunk(b"IEND", b"")
    path.write_bytes(path.read_bytes().removesuffix(end) + turned + end)
    assert np.array_equal(read_image(path, OPTIONS).array, smooth()[::-1, ::-1])


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_large_photographs_are_scaled_once(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", smooth(400, 600))
    picture = read_image(path, OPTIONS, max_size=100)
    expected = Image.fromarray(smooth(400, 600)).resize((100, 67), Image.Resampling.BOX)
    assert picture.array.shape == (67, 100, 3)
    assert np.abs(picture.array.astype(int) - np.asarray(expected)).mean() < 4
    assert picture.encoded[0] == ("jpg" if suffix == "jpg" else "png")
    assert np.array_equal(decode(*picture.encoded), picture.array)


def test_palette_alpha_and_cmyk_become_grey_or_rgb(tmp_path):
    colours = np.array([[0, 0, 0], [250, 10, 20], [30, 240, 40]], np.uint8)
    indices = np.arange(40 * 40, dtype=np.uint8).reshape(40, 40) % 3
    palette = Image.fromarray(indices, "L").convert("P")
    palette.putpalette(colours.tobytes())
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "palette.png", OPTIONS).array, colours[indices])

    alpha = np.dstack([smooth(), np.full((60, 80), 255, np.uint8)])
    alpha[:30, :, 3] = 0
    expected = smooth()
    expected[:30] = 0
    path = save(tmp_path / "alpha.png", alpha)
    assert np.array_equal(read_image(path, OPTIONS).array, expected)

    Image.fromarray(smooth()).convert("CMYK").save(tmp_path / "cmyk.tif")
    assert np.array_equal(read_image(tmp_path / "cmyk.tif", OPTIONS).array, smooth())

    Image.fromarray(smooth(channels=1) > 99).save(tmp_path / "binary.png")
    binary = read_image(tmp_path / "binary.png", OPTIONS).array
    assert np.array_equal(binary, (smooth(channels=1) > 99) * np.uint8(255))


@pytest.mark.parametrize("bits", [8, 16])
def test_sixteen_bit_grey_is_windowed(tmp_path, bits):
    values = np.arange(10000, dtype=np.uint16).reshape(100, 100) // 3
    path = save(tmp_path / "a.png", values)
    top = (1 << bits) - 1
    options = ReadOptions(bits=bits, window=(100.0, 2100.0))
    picture = read_image(path, options)
    expected = np.floor(np.clip((values - 100.0) / 2000, 0, 1) * top + 0.5)
    assert np.abs(picture.array.astype(int) - expected).max() <= (0 if bits == 8 else 1)
    assert np.array_equal(decode(*picture.encoded), picture.array)
    whole = read_image(path, ReadOptions(bits=bits, window="full")).array
    assert (whole.min(), whole.max()) == (0, top)


def png(chunks):
    """A PNG file of the given chunks."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def test_sixteen_bit_rgb_is_not_copied(tmp_path):
    rows = b"".join(b"\0" + struct.pack(">120H", *range(0, 65520, 546)) for _ in range(40))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 40, 40, 16, 2, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(png(chunks))
    picture = read_image(tmp_path / "a.png", OPTIONS)
    expected = (np.arange(0, 65520, 546) >> 8).reshape(40, 3)
    assert np.array_equal(picture.array, np.broadcast_to(expected, (40, 40, 3)))
    assert np.array_equal(decode(*picture.encoded), picture.array)


def test_damaged_and_huge_files_are_refused(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(smooth()).save(stream, "JPEG")
    whole = stream.getvalue()
    cases = {
        b"": "the file is empty",
        b"GIF89a nonsense": "not an image",
        whole[:-300]: "truncated or damaged",
        whole[:-2]: "truncated",
    }
    for data, reason in cases.items():
        (tmp_path / "a.jpg").write_bytes(data)
        with pytest.raises(Unreadable, match=reason):
            read_image(tmp_path / "a.jpg", OPTIONS)
    (tmp_path / "a.jpg").write_bytes(whole)
    with pytest.raises(Unreadable, match="80 x 60 pixels exceed max_pixels"):
        read_image(tmp_path / "a.jpg", ReadOptions(max_pixels=4799))
    frames = [Image.fromarray(smooth()), Image.fromarray(smooth()[::-1].copy())]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(Unreadable, match="holds 2 frames"):
        read_image(tmp_path / "a.gif", OPTIONS)


def test_a_decompression_bomb_is_refused_unread(tmp_path):
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))]
    (tmp_path / "a.png").write_bytes(png([*chunks, (b"IDAT", zlib.compress(bytes(10**6)))]))
    with pytest.raises(Unreadable, match="more pixels than any image may have"):
        read_image(tmp_path / "a.png", OPTIONS)


def colours_with_one_clear():
    image = Image.fromarray(smooth(channels=1) // 16).convert("P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 48, np.uint8).tobytes())
    return image


UNUSUAL = {
    "grey": (Image.fromarray(smooth(channels=1)), "PNG", {}),
    "one clear grey": (Image.fromarray(smooth(channels=1)), "PNG", {"transparency": 7}),
    "colour": (Image.fromarray(smooth()), "TIFF", {}),
    "one clear colour": (Image.fromarray(smooth()), "PNG", {"transparency": (4, 6, 8)}),
    "palette": (colours_with_one_clear(), "GIF", {}),
    "clear entries": (colours_with_one_clear(), "PNG", {"transparency": bytes([0, 99, 200])}),
    "alpha": (Image.fromarray(np.dstack([smooth(), smooth(channels=1)])), "PNG", {}),
    "grey with alpha": (Image.fromarray(smooth(channels=2)), "PNG", {}),
    "CMYK": (Image.fromarray(smooth()).convert("CMYK"), "JPEG", {}),
    "16 bits": (Image.fromarray(smooth(channels=1).astype(np.uint16) * 200), "PNG", {}),
    "floats": (Image.fromarray(smooth(channels=1) / np.float32(3)), "TIFF", {}),
    "one bit": (Image.fromarray(smooth(channels=1) > 90), "PNG", {}),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_a_large_picture_is_converted_some_rows_at_a_time(kind, monkeypatch):
    image, form, options = UNUSUAL[kind]
    stream = io.BytesIO()
    image.save(stream, form, **options)
    expected = read_image(stream.getvalue(), OPTIONS)
    crops = []
    crop = Image.Image.crop
    monkeypatch.setattr(Image.Image, "crop", lambda *each: crops.append(each) or crop(*each))
    monkeypatch.setattr("data_prep.readers.images.BAND_PIXELS", 7 * 80)
    found = read_image(stream.getvalue(), OPTIONS)
    assert np.array_equal(found.array, expected.array) and found.encoded == expected.encoded
    assert len(crops) >= 9 or kind == "grey"  # which libpng decodes
    assert len(np.unique(found.array)) > 1


def test_bytes_of_the_file_and_of_its_pixels_count_against_max_bytes(tmp_path):
    path = save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (60, 80), np.uint8))
    size = path.stat().st_size
    assert size > 4800
    read_image(path, ReadOptions(max_bytes=size))
    with pytest.raises(Unreadable, match="a file of more bytes than max_bytes"):
        read_image(path, ReadOptions(max_bytes=size - 1))
    path = save(tmp_path / "b.png", smooth())
    with pytest.raises(Unreadable, match=r"19200 bytes of pixels exceed max_bytes \(19199\)"):
        read_image(path, ReadOptions(max_bytes=19199))


def test_a_jpeg_of_many_scans_or_segments_is_refused():
    stream = io.BytesIO()
    Image.fromarray(smooth()).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    whole = read_image(data[:-2] + scan * 90 + data[-2:], OPTIONS)
    assert whole.array.shape == (60, 80, 3)
    with pytest.raises(Unreadable, match="a JPEG of 110 scans, more than 100"):
        read_image(data[:-2] + scan * 100 + data[-2:], OPTIONS)
    comment = b"\xff\xfe\0\x02"
    assert read_image(data[:2] + comment * 1000 + data[2:], OPTIONS).encoded[1] == data
    with pytest.raises(Unreadable, match="more than 10000 segments"):
        read_image(data[:2] + comment * 10_000 + data[2:], OPTIONS)


def tiled(side):
    """A TIFF of 100 x 100 pixels in one tile."""
    pixels = zlib.compress(bytes(side * side))
    start = 8 + len(pixels) + len(pixels) % 2
    tags = {256: 100, 257: 100, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8}
    entries = [struct.pack("<HHII", *each) for each in ((t, 4, 1, v) for t, v in tags.items())]
    entries.append(struct.pack("<HHII", 325, 4, 1, len(pixels)))
    head = b"II*\0" + struct.pack("<I", start) + pixels.ljust(start - 8, b"\0")
    return head + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


def test_a_tiff_of_one_tile_far_larger_than_its_picture_is_refused():
    assert read_image(tiled(112), OPTIONS).array.shape == (100, 100)
    with pytest.raises(Unreadable, match="tiles are far larger than its picture"):
        read_image(tiled(2064), OPTIONS)
