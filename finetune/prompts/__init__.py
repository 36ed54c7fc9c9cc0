"""Clicks and boxes as a user would place them, and how a model is trained on them."""
