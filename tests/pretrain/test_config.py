"""How stage one's data are named on the command line and in YAML."""

import pytest
import yaml

from data_prep.common.parsing import parse
from pretrain.config import PretrainConfig

RECIPE = "--config=configs/pretrain/quickstart.yaml"


@pytest.mark.parametrize(
    ("options", "shards", "weights"),
    [
        (["--data.shards", "a b/c"], "a b/c", None),
        (["--data.shards=https://host/set"], "https://host/set", None),
        (["--data.shards", "[A, https://host/B]"], ["A", "https://host/B"], None),
        (["--data.shards=[A, B]", "--data.weights", "[2, 1]"], ["A", "B"], [2.0, 1.0]),
        (["--data.shards+=A", "--data.shards+=B"], ["A", "B"], None),
    ],
)
def test_one_shard_set_or_several(options, shards, weights, tmp_path) -> None:
    arguments = [RECIPE, f"--output={tmp_path / 'run'}"]
    config, resolved = parse(PretrainConfig, "train", [*arguments, *options])
    assert config.data.shards == shards
    assert config.data.weights == weights
    written = tmp_path / "config.yaml"
    written.write_text(resolved)
    again, _ = parse(PretrainConfig, "train", [f"--config={written}"])
    assert again.data == config.data


def test_lists_in_a_yaml_file(tmp_path) -> None:
    lists = {"shards": ["A", "s3://bucket/B"], "weights": [3, 0.5]}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"data": lists}))
    options = [RECIPE, f"--config={tmp_path / 'data.yaml'}", f"--output={tmp_path}"]
    config, _ = parse(PretrainConfig, "train", options)
    assert (config.data.shards, config.data.weights) == (["A", "s3://bucket/B"], [3.0, 0.5])
