"""Labelled images: which there are, and how they become training samples."""
