"""`python -m pretrain probe`: an encoder judged by the labels of shard sets."""

import torch
from accelerate import Accelerator

from data_prep.common.cli import write_resolved_config
from data_prep.common.errors import UserError
from data_prep.common.files import write_text
from pretrain.engine.cpu import bf16_is_fast, use_cores
from pretrain.engine.figures import save_figure
from pretrain.probes.config import ProbeOptions
from pretrain.probes.features import THUMBNAIL, extract
from pretrain.probes.judge import Protocol, Row, judge
from pretrain.probes.labelled import read_sets
from pretrain.probes.sources import encoders_of
from pretrain.probes.tables import draw_probes, probes_csv, probes_markdown


def probe(config: ProbeOptions, resolved: str) -> None:
    """Probe an encoder and write what was found. Several processes divide the encoding.

    Raises:
        UserError: An encoder, sets or labels that cannot be used, or a used output folder.
    """
    folder = config.output
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"output {folder} is not an empty folder; name another")
    sets = read_sets(config.shards, config.max_images, config.seed)
    encoders, image_size = encoders_of(config.encoder, config.start_from)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    if accelerator.device.type == "cpu":
        use_cores(accelerator.num_processes, config.threads)
    for encoder in encoders.values():
        encoder.to(accelerator.device)
    protocol = Protocol(config.folds, config.neighbours, config.resamples, config.seed)
    features = []
    for labelled in sets:
        accelerator.print(labelled.describe())
        features.append(
            extract(
                labelled,
                encoders,
                config.image_size or image_size,
                accelerator,
                config.batch_size,
                config.workers,
                config.precision == "bf16" and bf16_is_fast(accelerator.device),
                progress=True,
            )
        )
    # After all sets, so that no process waits for the main one's classifiers.
    if accelerator.is_main_process:
        rows: list[Row] = []
        for labelled, vectors in zip(sets, features, strict=True):
            print(labelled.name)
            found = judge(labelled, vectors, protocol)
            rows += found
            for row in found:
                print("  " + _line(row), flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "probes.csv", probes_csv(rows))
        save_figure(draw_probes(rows), folder / "probes.png")
        text = probes_markdown(rows, [labelled.describe() for labelled in sets])
        write_text(folder / "probes.md", text)
        write_resolved_config(folder, resolved)
        print(f"written: {folder}/probes.md, probes.csv, probes.png")
    accelerator.end_training()


def _line(row: Row) -> str:
    values = "  ".join(f"{name} {found}" for name, found in row.metrics.items())
    return f"{row.probe:<6} {row.features:<{len(THUMBNAIL)}}  {values}"
