"""e-Mix takes no other image of the same patient as a negative."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from pretrain.encoder.sam import SamEncoder
from pretrain.objectives import EMix, Inputs
from pretrain.objectives.together import PretrainModel
from pretrain.sizes import EncoderSize

BATCH, WIDTH = 6, 32
GROUPS = torch.tensor([7, 8, 7, 9, 8, 7])


def make_inputs(seed: int, groups: torch.Tensor | None) -> Inputs:
    images = torch.zeros(BATCH, 3, 224, 224)
    embeddings = torch.randn(BATCH, 196, WIDTH, generator=torch.Generator().manual_seed(seed))
    return Inputs(images, embeddings, (14, 14), torch.Generator().manual_seed(seed + 1), groups)


def encodings(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(BATCH, 196, WIDTH, generator=generator) for _ in range(2)]


def drawn(seed: int) -> tuple[list[float], list[int]]:
    """The shares and partners that a plan of `make_inputs(seed)` draws."""
    generator = torch.Generator().manual_seed(seed + 1)
    share = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    shares = share.beta(1.0, 1.0, BATCH)
    partners = torch.randperm(BATCH, generator=generator).tolist()
    return np.maximum(shares, 1 - shares).tolist(), partners


def literal_loss(
    project, encoded, candidates, candidate_groups, groups, first: int, seed: int
) -> torch.Tensor:
    """Sample by sample, with a list of the candidates that each may be compared with."""
    shares, partners = drawn(seed)
    total, excluded = torch.zeros(()), 0
    for i in range(BATCH):
        own, other = first + i, first + partners[i]
        patients = {int(groups[i]), int(groups[partners[i]])}
        allowed = [
            j
            for j in range(len(candidates))
            if j in (own, other) or int(candidate_groups[j]) not in patients
        ]
        excluded += len(candidates) - len(allowed)
        z = project(encoded[1])[i]
        logits = {j: z @ candidates[j] / 0.2 for j in allowed}
        normaliser = torch.stack(list(logits.values())).logsumexp(0)
        total -= shares[i] * (logits[own] - normaliser)
        total -= (1 - shares[i]) * (logits[other] - normaliser)
    assert excluded
    return total / BATCH


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_equals_the_formula_without_the_patients_of_the_mix(seed: int) -> None:
    torch.manual_seed(0)
    objective = EMix(WIDTH, keep_ratio=1.0)
    encoded = [e.requires_grad_() for e in encodings(seed)]
    loss = objective.plan(make_inputs(seed, GROUPS)).loss(encoded)
    project = lambda e: F.normalize(objective.project(e.mean(1)), dim=-1)  # noqa: E731
    clean = project(encoded[0])
    expected = literal_loss(project, encoded, clean, GROUPS, GROUPS, 0, seed)
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(
        torch.autograd.grad(loss, encoded), torch.autograd.grad(expected, encoded), strict=True
    ):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_patients_of_one_image_each_change_nothing() -> None:
    torch.manual_seed(0)
    alone, encoded = torch.arange(BATCH), encodings(0)
    objective, off = EMix(WIDTH, keep_ratio=1.0), EMix(WIDTH, keep_ratio=1.0, exclude_group=False)
    off.load_state_dict(objective.state_dict())
    plain = objective.plan(make_inputs(0, None)).loss(encoded)
    assert torch.equal(objective.plan(make_inputs(0, alone)).loss(encoded), plain)
    assert torch.equal(off.plan(make_inputs(0, GROUPS)).loss(encoded), plain)
    assert objective.plan(make_inputs(0, GROUPS)).loss(encoded) < plain


def test_the_model_hands_groups_to_its_objectives() -> None:
    torch.manual_seed(0)
    size = EncoderSize(width=WIDTH, depth=1, heads=2, global_blocks=(0,))
    model = PretrainModel(SamEncoder(size), {"emix": EMix(WIDTH)})
    images = torch.randn(BATCH, 3, 224, 224)
    with_groups, without = (
        model(images, torch.Generator().manual_seed(0), groups)["emix"] for groups in (GROUPS, None)
    )
    assert with_groups < without


def _gathered(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    objective = EMix(WIDTH, keep_ratio=1.0, gather_negatives=True)
    loss = objective.plan(make_inputs(rank, GROUPS + rank)).loss(encodings(rank))
    torch.save(loss.detach(), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_patients_are_known_across_processes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_gathered, args=(port, str(tmp_path)), nprocs=2)
    torch.manual_seed(0)
    objective = EMix(WIDTH, keep_ratio=1.0)
    project = lambda e: F.normalize(objective.project(e.mean(1)), dim=-1)  # noqa: E731
    candidates = torch.cat([project(encodings(rank)[0]) for rank in range(2)])
    candidate_groups = torch.cat([GROUPS, GROUPS + 1])
    for rank in range(2):
        expected = literal_loss(
            *(project, encodings(rank), candidates, candidate_groups, GROUPS + rank),
            first=BATCH * rank,
            seed=rank,
        )
        measured = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(measured, expected.detach())
