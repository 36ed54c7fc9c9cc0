"""The whole pipeline in minutes, and a report about it."""
