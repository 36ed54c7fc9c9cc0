"""Probes while a run trains."""

from collections.abc import Iterable, Sequence

from accelerate import Accelerator

from data_prep.common.errors import UserError
from pretrain.encoder.sam import build_encoder
from pretrain.engine.evaluator import Judgement
from pretrain.engine.stage import Stage
from pretrain.probes.evaluator import StageOneEvaluator, roots_of
from pretrain.probes.features import extract
from pretrain.probes.judge import ENCODER, KNN, LINEAR, Protocol, Row, judge
from pretrain.probes.labelled import Labelled, read_sets
from pretrain.probes.sources import START, UNTRAINED, untrained
from pretrain.probes.tables import draw_probes


class Probe(StageOneEvaluator):
    """Nearest neighbours and a linear classifier on the labels of shard sets.

    The numbers are `SET_knn_accuracy` and so on. With the first ones come those of an untrained
    encoder, of the encoder that the run started from, and of thumbnails.

    Args:
        every: Steps between judgements.
        shards: Shard sets with labels; none: those of the run that have some.
        max_images: Use about so many images of each set, whole groups drawn at random.
        linear: Fit a linear classifier too, which takes longer than nearest neighbours.
        neighbours: Neighbours that vote.
        batch_size: Images encoded at once, in each process.
        seed: Seed of the choice of images and of the folds.
    """

    def __init__(
        self,
        every: int = 500,
        shards: tuple[str, ...] = (),
        max_images: int = 1000,
        linear: bool = True,
        neighbours: int = 20,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__(every)
        if min(max_images, neighbours, batch_size) < 1:
            raise UserError("max_images, neighbours and batch_size must be at least 1")
        self.shards, self.max_images, self.linear = shards, max_images, linear
        self.batch_size, self.seed = batch_size, seed
        self.protocol = Protocol(folds=1, neighbours=neighbours, resamples=200, seed=seed)
        self.sets: list[Labelled] = []
        self.baselines: dict[str, list[Row]] = {}

    def prepare(self, stage: Stage, accelerator: Accelerator) -> None:
        """Read the labels.

        Raises:
            UserError: See `read_sets`; no set of the run has labels.
        """
        trained = self.of(stage)
        roots: Sequence[str] = self.shards
        if not roots:
            pairs = zip(roots_of(trained.config), trained.dataset.sets, strict=True)
            roots = [root for root, part in pairs if len(part.info.get("classes", {})) > 1]
            if not roots:
                raise UserError("evaluators: no shard set of the run has labels; give Probe shards")
        self.sets = read_sets(roots, self.max_images, self.seed)

    def evaluate(self, stage: Stage, accelerator: Accelerator) -> Judgement:
        """Probe the encoder as it is now."""
        trained = self.of(stage)
        first = not self.baselines
        encoders = {ENCODER: trained.encoder}
        if first:
            others = {UNTRAINED: untrained(trained.encoder.size, trained.config.seed)}
            if trained.config.start_from is not None:
                others[START] = build_encoder(None, trained.config.start_from)
            encoders |= {name: other.to(accelerator.device) for name, other in others.items()}
        new: list[Row] = []
        shown: list[Row] = []
        for labelled in self.sets:
            features = extract(
                labelled,
                encoders,
                trained.config.image_size,
                accelerator,
                self.batch_size,
                bf16=trained.config.precision == "bf16",
                thumbnails=first,
            )
            rows = []
            if accelerator.is_main_process:
                probes = (KNN, LINEAR) if self.linear else (KNN,)
                rows = judge(labelled, features, self.protocol, probes)
            if first:
                self.baselines[labelled.name] = [row for row in rows if row.features != ENCODER]
            new += rows
            shown += [row for row in rows if row.features == ENCODER]
            shown += self.baselines[labelled.name]
        return Judgement(_numbers(new), {"bars": draw_probes(shown)} if shown else {})


def _numbers(rows: Iterable[Row]) -> dict[str, float]:
    """Values by name, such as `chest_knn_accuracy` or `chest_untrained_linear_auroc`."""
    return {
        "_".join(
            [row.set]
            + ([] if row.features == ENCODER else [row.features])
            + [row.probe.lower(), metric.lower().replace(" ", "_")]
        ): found.value
        for row in rows
        for metric, found in row.metrics.items()
    }
