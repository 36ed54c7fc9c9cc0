"""e-Mix (DABS, arXiv 2111.12062): contrast mixed patch embeddings with the clean ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from lightly.utils.dist import gather, rank, world_size
from matplotlib.figure import Figure
from torch import Tensor, nn

from pretrain.encoder.sam import SamEncoder, take
from pretrain.objectives.base import Inputs, Objective, Plan, View
from pretrain.objectives.pictures import draw_similarities


@dataclass(frozen=True)
class Mix:
    """Images mixed with others."""

    clean: View
    mixed: View
    share: Tensor
    """(B,) lambda, the share of each image itself in its mix, at least one half."""
    partner: Tensor
    """(B,) index of the image that each is mixed with."""


class EMix(Objective):
    """Each image mixed with another must be recognised as both, in the proportion of the mix.

    With lambda_i ~ Beta(alpha, alpha), lambda_i <- max(lambda_i, 1 - lambda_i), a permutation pi:

        mix_i = lambda_i e_i + (1 - lambda_i) stopgrad(e_pi(i))
        loss = mean_i[lambda_i CE(logits_i, i) + (1 - lambda_i) CE(logits_i, pi(i))]

    where logits = z_mix z^T / temperature of projected, L2-normalised mean tokens, and each sample
    has its own lambda. Other images of the patients of i and pi(i) are not among the negatives:
    neighbouring slices of a volume would be pushed apart although they show the same.

    Args:
        width: Token width of the encoder.
        weight: Factor of this loss in the sum.
        keep_ratio: Share of tokens that the encoder sees; 1 is the paper's form.
        alpha: Parameter of the Beta distribution.
        temperature: Temperature of the logits.
        projection: Width of the projected vectors.
        gather_negatives: Contrast with the clean images of all processes, not only of this one.
        exclude_group: Take no other image of the same patient (the `group` of a record) as a
            negative. Switch it off where nearly all images are of one patient, which would leave
            no negatives.
    """

    def __init__(
        self,
        width: int,
        weight: float = 1.0,
        keep_ratio: float = 0.25,
        alpha: float = 1.0,
        temperature: float = 0.2,
        projection: int = 128,
        gather_negatives: bool = False,
        exclude_group: bool = True,
    ) -> None:
        super().__init__(weight, keep_ratio)
        self.alpha, self.temperature = alpha, temperature
        self.gather_negatives, self.exclude_group = gather_negatives, exclude_group
        self.project = nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.Linear(width, projection))

    def contrasted(self, per_pass: int, processes: int) -> int:
        """The candidates of each mixed image."""
        return per_pass * processes if self.gather_negatives else per_pass

    def mix(self, inputs: Inputs) -> Mix:
        """The clean view and the mixed one.

        Images are mixed position by position. Of the mixed ones other tokens are kept than of the
        clean ones, or else the mask would tell which belong together.
        """
        clean = inputs.clean(self.keep_ratio)
        batch = len(clean.embeddings)
        device = clean.embeddings.device
        # PyTorch's Beta distribution takes no generator; numpy's does.
        seed = int(torch.randint(2**62, (), generator=inputs.generator))
        drawn = np.random.default_rng(seed).beta(self.alpha, self.alpha, batch)
        share = torch.from_numpy(np.maximum(drawn, 1 - drawn)).to(
            device, torch.float32, non_blocking=True
        )  # (B,)
        partner = torch.randperm(batch, generator=inputs.generator)
        partner = partner.to(device, non_blocking=True)  # (B,)
        keep = inputs.draw_keep(self.keep_ratio)
        ours, theirs = inputs.embeddings, inputs.embeddings.detach()
        if keep is None:
            theirs = theirs[partner]
        else:
            index = keep.to(device, non_blocking=True)  # (B, n)
            ours, theirs = take(ours, index), theirs[partner[:, None], index]
        # In fp32 also under autocast: bf16 would round lambda to 8 bits.
        mixed = torch.lerp(theirs.float(), ours.float(), share[:, None, None])
        return Mix(clean, View(mixed.to(clean.embeddings.dtype), keep), share, partner)

    def vectors(self, encoded: Tensor) -> Tensor:
        """The compared vectors (B, projection), of length 1, of encoded tokens (B, n, C)."""
        vectors: Tensor = F.normalize(self.project(encoded.float().mean(dim=1)), dim=-1)
        return vectors

    def plan(self, inputs: Inputs) -> Plan:
        """The clean view and the mixed one; see `mix`."""
        mix = self.mix(inputs)
        share, partner = mix.share, mix.partner
        batch, device = len(share), share.device
        groups = inputs.groups if self.exclude_group else None
        if groups is not None:
            groups = groups.to(device, non_blocking=True)  # (B,)

        def loss(encoded: Sequence[Tensor]) -> Tensor:
            with torch.autocast(device.type, enabled=False):  # nor are logits rounded
                z, z_mix = map(self.vectors, encoded)
                first, candidates = 0, groups
                if self.gather_negatives and not self.alone and world_size() > 1:
                    first = rank() * batch
                    z = torch.cat(gather(z.contiguous()))
                    candidates = None if groups is None else torch.cat(gather(groups))
                logits = z_mix @ z.T / self.temperature  # (B, B * processes)
                own = first + torch.arange(batch, device=device)
                other = first + partner
                if groups is not None and candidates is not None:
                    excluded = same_patient(groups, partner, candidates, own, other)
                    logits = logits.masked_fill(excluded, -torch.inf)
                cross_entropy = nn.CrossEntropyLoss(reduction="none")
                by_sample: Tensor = share * cross_entropy(logits, own)
                by_sample = by_sample + (1 - share) * cross_entropy(logits, other)
                return by_sample.mean()

        return Plan([mix.clean, mix.mixed], loss)

    def draw(self, encoder: SamEncoder, images: Tensor) -> dict[str, Figure]:
        """How alike mixed images are to the clean ones, and how they should be."""
        return {"mix_similarity": draw_similarities(encoder, self, images)}


def same_patient(
    groups: Tensor, partner: Tensor, candidates: Tensor, own: Tensor, other: Tensor
) -> Tensor:
    """(B, M) bool: which candidates are no negatives of a mix, as they show one of its patients.

    The two images of the mix itself stay candidates.

    Args:
        groups: (B,) patient of each image.
        partner: (B,) index of the image that each is mixed with.
        candidates: (M,) patient of each candidate.
        own, other: (B,) index among the candidates of each image, and of its partner.
    """
    excluded = (groups[:, None] == candidates) | (groups[partner][:, None] == candidates)
    return excluded.scatter(1, torch.stack([own, other], dim=1), False)
