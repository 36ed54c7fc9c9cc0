"""What judges stage one while it trains."""

from collections.abc import Sequence
from typing import Protocol, cast

from accelerate import Accelerator

from data_prep.common.errors import UserError
from data_prep.loader.mixture import ShardMixture
from pretrain.config import PretrainConfig
from pretrain.encoder.sam import SamEncoder
from pretrain.engine.evaluator import Evaluator, Judgement
from pretrain.engine.stage import Stage
from pretrain.objectives.together import PretrainModel


class StageOne(Protocol):
    """What of stage one is judged; its class is above this room."""

    config: PretrainConfig
    encoder: SamEncoder
    model: PretrainModel
    dataset: ShardMixture


class StageOneEvaluator(Evaluator):
    """Judges stage one; the base of those that a recipe may name without their package."""

    def prepare(self, stage: Stage, accelerator: Accelerator) -> None:
        """Refuse a stage that is not stage one."""
        self.of(stage)

    def of(self, stage: Stage) -> StageOne:
        """The stage as what it is.

        Raises:
            UserError: It has no encoder under objectives.
        """
        if not isinstance(stage.model, PretrainModel):
            raise UserError(f"evaluators: {type(self).__name__} judges stage one only")
        return cast(StageOne, stage)


class Figures(StageOneEvaluator):
    """What each objective draws of itself, as at the end of the run; the latest replaces it.

    Args:
        every: Steps between pictures.
    """

    names_pictures = False

    def evaluate(self, stage: Stage, accelerator: Accelerator) -> Judgement:
        """Draw, in the main process."""
        return Judgement(pictures=stage.draw() if accelerator.is_main_process else {})


def roots_of(config: PretrainConfig) -> Sequence[str]:
    """The shard sets of a run."""
    return [config.data.shards] if isinstance(config.data.shards, str) else config.data.shards
