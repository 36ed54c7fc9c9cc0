"""Clicks, boxes, masks and texts as a user would give them, and how a model is trained on them."""
