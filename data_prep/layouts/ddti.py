"""DDTI, thyroid ultrasound (Pedraza et al. 2015, doi:10.1117/12.2073532).

Case 7 is described in `7.xml`, its images are `7_1.jpg`, `7_2.jpg` and so on. Each `<mark>` names
an image by number and outlines nodules in a JSON list, `<svg>[{"points": [{"x": 1, "y": 2}, ...]},
...]</svg>`. The case is the group, its TI-RADS score the class; age and sex are not read.
"""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw

from data_prep.layouts._find import find_files
from data_prep.options import ShardSegConfig
from data_prep.readers.images import read_image
from data_prep.records import NotAnImage, Reference, Sample, Source, Unreadable

IMAGE = re.compile(r"(\d+)_(\d+)\.jpe?g", re.IGNORECASE)
Polygon = list[tuple[float, float]]


def segmentation(config: ShardSegConfig) -> Source:
    """One reference for each image whose case has an XML file."""
    root = config.root()
    files = find_files(root)
    cases = {name for name in files if name.endswith(".xml")}
    references = []
    for name in files:
        path = PurePosixPath(name)
        if match := IMAGE.fullmatch(path.name):
            case = (path.parent / f"{match[1]}.xml").as_posix()
            masks = (case,) if case in cases else ()
            references.append(Reference(name, part=match[2], group=match[1], masks=masks))
    read = partial(_read, root=root, config=config)
    return Source(config.layout, references, read, config.recipe(), {"nodule": [1]})


def _read(reference: Reference, root: Path, config: ShardSegConfig) -> Iterator[Sample]:
    if not reference.masks:
        raise NotAnImage("its case has no XML file")
    polygons, score = read_case(root / reference.masks[0], int(reference.part))
    if not polygons:
        raise NotAnImage("has no outline")
    picture = read_image(root / reference.path, config)
    height, width = picture.array.shape[:2]
    canvas = Image.new("L", (width, height))
    for polygon in polygons:
        ImageDraw.Draw(canvas).polygon(polygon, fill=1)
    meta = {"modality": "US", "label": score}
    yield Sample(picture.array, np.array(canvas), encoded=picture.encoded, meta=meta)


def read_case(path: Path, image: int) -> tuple[list[Polygon], str | None]:
    """Outlines on one image of a case, as (x, y) pixels, and the case's TI-RADS score.

    Raises:
        Unreadable: if the file is no XML, or an outline no JSON list of points.
    """
    polygons = []
    try:
        case = ElementTree.parse(path).getroot()
        for mark in case.iter("mark"):
            text = (mark.findtext("svg") or "").strip()
            if int(mark.findtext("image") or 0) != image or not text:
                continue
            for shape in json.loads(text):
                points = [(float(point["x"]), float(point["y"])) for point in shape["points"]]
                if len(points) > 2:
                    polygons.append(points)
    except (ElementTree.ParseError, ValueError, KeyError, TypeError) as error:
        raise Unreadable(f"its outlines cannot be read ({type(error).__name__})") from error
    score = (case.findtext("tirads") or "").strip()
    return polygons, f"TI-RADS {score}" if score else None
