"""Raw medical images to WebDataset shards, and shards back to samples in a reproducible order."""
