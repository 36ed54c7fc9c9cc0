"""How good a segmenter is: simulated users, metrics, statistics and tables."""
