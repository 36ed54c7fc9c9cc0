"""A trained segmenter at work: loading it, prompting it, and masks for new images."""
