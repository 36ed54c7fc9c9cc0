"""From a file to pixels: photographs, DICOM, NIfTI and masks."""
