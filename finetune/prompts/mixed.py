"""Several kinds of prompts in one training, each in a share of the steps."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from data_prep.common.components import Component
from data_prep.common.errors import UserError
from data_prep.common.given import component_mapping
from finetune.data.dataset import SegmentationBatch
from finetune.model.segmenter import Segmenter
from finetune.prompts.prompting import Prompting, Round
from finetune.prompts.replaced import ReplacedPoints
from finetune.prompts.simulate import ClicksAndBoxes

BASE = "finetune.prompts.prompting.Prompting"


class Chosen(NamedTuple):
    """Which kind prompts a batch, and what it has prepared."""

    kind: str
    first: Any


@dataclass
class Mixed(Prompting):
    """Each step is prompted by one of several kinds, drawn at random."""

    kinds: dict[str, Component] = field(default_factory=dict)
    """Ways of prompting by a name of your own, each with its class_path and options."""
    shares: dict[str, float] = field(default_factory=dict)
    """Share of the steps that each kind has, by its name; without any, all have the same."""

    def __post_init__(self) -> None:
        if not self.kinds:
            raise UserError("prompts.kinds: give at least one, such as {clicks: ClicksAndBoxes}")
        if self.shares and self.shares.keys() != self.kinds.keys():
            raise UserError(f"prompts.shares: give one each for {', '.join(self.kinds)}")
        if self.shares and (min(self.shares.values()) < 0 or not sum(self.shares.values())):
            raise UserError("prompts.shares must not be negative, and not all 0")
        kinds = [kind for name, kind in self._built.items() if self.shares.get(name, 1.0)]
        giving = {kind.gives_masks for kind in kinds} - {None}
        if len(giving) > 1:
            raise UserError("prompts.kinds: previous_mask must be the same in all of them")
        if len({kind.steps for kind in kinds}) > 1:
            raise UserError("prompts.kinds: steps per batch must be the same in all of them")
        pointing = [kind for kind in kinds if isinstance(kind, ClicksAndBoxes | ReplacedPoints)]
        if len({kind.multimask for kind in pointing}) > 1:
            raise UserError("prompts.kinds: multimask must be the same in all with clicks or boxes")
        self._gives_masks = next(iter(giving), None)
        self.multimask = next((kind.multimask for kind in kinds if kind.multimask), False)
        self.steps = kinds[0].steps
        self.text_multimask = any(kind.text_multimask for kind in kinds)
        self.rough_masks = any(kind.rough_masks for kind in kinds)
        self.asks_for_absent = any(kind.asks_for_absent for kind in kinds)
        self.for_stacks = any(kind.for_stacks for kind in kinds)

    @property
    def gives_masks(self) -> bool | None:
        """As those of its kinds do that say it."""
        return self._gives_masks

    @cached_property
    def _built(self) -> dict[str, Prompting]:
        built = {}
        for name, value in self.kinds.items():
            place = f"prompts.kinds.{name}"
            try:
                chosen = Component.from_value(component_mapping(value, place))
            except ValueError:
                raise UserError(f"{place}: names no class (class_path)") from None
            built[name] = chosen.checked(BASE, place).build(Prompting)
            if not built[name].gives_prompts:
                raise UserError(f"{place}: {type(built[name]).__name__} gives no prompts")
        return built

    def begin(self, segmenter: Segmenter) -> None:
        """Let every kind begin."""
        for kind in self._built.values():
            kind.begin(segmenter)
        digests = [kind.digest for kind in self._built.values() if kind.digest is not None]
        self.digest = " ".join(digests) or None

    def posed(self, batch: SegmentationBatch, rng: np.random.Generator) -> SegmentationBatch:
        """The batch as one kind asks for its objects; where it has none, one that needs none."""
        fit = {
            name: self.shares.get(name, 1.0)
            for name, kind in self._built.items()
            if (len(batch.masks) or kind.asks_for_absent) and self.shares.get(name, 1.0)
        }
        weights = np.array(list(fit.values()))
        name = list(fit)[int(rng.choice(len(fit), p=weights / weights.sum()))]
        posed = self._built[name].posed(batch, rng)
        return replace(posed, first=Chosen(name, posed.first))

    def predictions(
        self,
        segmenter: Segmenter,
        embeddings: Tensor,
        batch: SegmentationBatch,
        rng: np.random.Generator,
    ) -> Iterator[Round]:
        """Those of the chosen kind."""
        if batch.first is None:
            raise ValueError("the batch must come from `posed`")
        kind, first = batch.first
        inner = replace(batch, first=first)
        yield from self._built[kind].predictions(segmenter, embeddings, inner, rng)
