"""Writing shard sets: from a manifest of references to tars, indexes and `dataset.json`."""

from data_prep.shards.write import write_shards

__all__ = ["write_shards"]
