"""Adapted models on the Hugging Face Hub, with a model card."""
