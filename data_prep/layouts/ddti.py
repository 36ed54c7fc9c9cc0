"""DDTI, thyroid ultrasound (Pedraza et al. 2015, doi:10.1117/12.2073532).

Age and sex in the XML files are not read.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw

from data_prep.layouts.base import FolderLayout
from data_prep.options import ReadOptions
from data_prep.readers.images import read_image
from data_prep.records import NotAnImage, Reference, Sample, Unreadable

IMAGE = re.compile(r"(\d+)_(\d+)\.jpe?g", re.IGNORECASE)
Polygon = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Ddti(FolderLayout, ReadOptions):
    """Thyroid ultrasound with nodules outlined in XML; the case is the group."""

    stage = "segmentation"
    summary = "DDTI: thyroid ultrasound, nodules outlined in XML"
    tree = """
7.xml     case 7: outlines as JSON in <mark><image>1</image><svg>[{"points": ...}]</svg></mark>,
          <tirads> is the class
7_1.jpg   its images
7_2.jpg
"""

    def targets(self) -> dict[str, list[int]]:
        """One target."""
        return {"nodule": [1]}

    def references(self) -> list[Reference]:
        """One reference for each image."""
        files = self.files()
        cases = {name for name in files if name.endswith(".xml")}
        references = []
        for name in files:
            path = PurePosixPath(name)
            if match := IMAGE.fullmatch(path.name):
                case = (path.parent / f"{match[1]}.xml").as_posix()
                masks = (case,) if case in cases else ()
                references.append(Reference(name, part=match[2], group=match[1], masks=masks))
        return references

    def read(self, reference: Reference) -> Iterator[Sample]:
        """The image with its outlines filled in."""
        if not reference.masks:
            raise NotAnImage("its case has no XML file")
        polygons, score = read_case(self.input / reference.masks[0], int(reference.part))
        if not polygons:
            raise NotAnImage("has no outline")
        picture = read_image(self.input / reference.path, self)
        height, width = picture.array.shape[:2]
        canvas = Image.new("L", (width, height))
        for polygon in polygons:
            ImageDraw.Draw(canvas).polygon(polygon, fill=1)
        meta = {"modality": "US", "label": score}
        yield Sample(picture.array, np.array(canvas), encoded=picture.encoded, meta=meta)


def read_case(path: Path, image: int) -> tuple[list[Polygon], str | None]:
    """Outlines on one image of a case, as (x, y) pixels, and the case's TI-RADS score.

    Raises:
        Unreadable: The file is not XML, or an outline is not a JSON list of points.
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
