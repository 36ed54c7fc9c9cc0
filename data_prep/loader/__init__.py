"""Reading shard sets: samples in an order that is a pure function of the seed."""

from data_prep.loader.batches import build_loader
from data_prep.loader.dataset import Record, ShardDataset
from data_prep.loader.mixture import ShardMixture

__all__ = ["Record", "ShardDataset", "ShardMixture", "build_loader"]
