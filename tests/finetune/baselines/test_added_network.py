"""A network as CONTRIBUTING.md adds one: nothing of the project is edited."""

import torch

from finetune.inference.loading import load_segmenter
from helpers.networks import train


def test_a_network_is_trained(contributed, labelled_shards) -> None:
    options = ("--model.network=two_layers.TwoLayers", "--model.network.width=5")
    run = train(labelled_shards, contributed / "run", *options, "--optim.steps=1")
    network = load_segmenter(run, torch.device("cpu")).image_encoder
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 2, 64, 64)
    assert network.layers[0].out_channels == 5
