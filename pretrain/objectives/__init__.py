"""Self-supervised objectives of stage one, one file each."""

from pretrain.objectives.base import Inputs, Objective, Plan, View
from pretrain.objectives.emix import EMix
from pretrain.objectives.mae import MaskedAutoencoding
from pretrain.objectives.shed import ShED

__all__ = ["EMix", "Inputs", "MaskedAutoencoding", "Objective", "Plan", "ShED", "View"]
