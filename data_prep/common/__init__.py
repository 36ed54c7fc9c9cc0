"""Command lines, errors and files: what every package uses. Knows no image."""
