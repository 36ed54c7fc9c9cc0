"""Stage two: adapt the encoder to segmentation with few labels, measure it and use it."""
