"""Segmenters that are programs of their own: cases as files, their masks scored, nnU-Net."""
