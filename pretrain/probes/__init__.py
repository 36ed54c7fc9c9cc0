"""Judgement of encoders: probes on labels, losses on held-out images, pictures while training."""
