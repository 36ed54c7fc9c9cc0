"""Runs that were evaluated on the same cases, side by side: tables, tests and pictures."""
