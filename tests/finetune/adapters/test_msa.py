"""MSA adapters: identity at the start, the paper's formulas afterwards, and gone when off."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from data_prep.common.components import Component
from data_prep.common.errors import UserError
from data_prep.common.parsing import parse, parse_file
from finetune.adapters import Adapter, MsaAdapter, MsaDecoderAdapter
from finetune.config import ModelConfig
from finetune.model.building import build_model
from finetune.model.mask_decoder import DecoderBlock
from finetune.model.prompt_encoder import Prompts
from finetune.model.segmenter import Segmenter
from pretrain.encoder.sam import SamEncoder
from pretrain.encoder.windows import dense_groups
from pretrain.sizes import SIZES, EncoderSize

TINY = EncoderSize(width=32, depth=2, heads=2, global_blocks=(1,))
PROMPTS = Prompts(
    image=torch.tensor([0, 1]),
    points=torch.tensor([[[30.0, 40.0]], [[200.0, 9.0]]]),
    labels=torch.tensor([[1], [0]]),
)
ADAPTERS = {
    "encoder_adapter": Component("finetune.adapters.MsaAdapter"),
    "decoder_adapter": Component("finetune.adapters.MsaDecoderAdapter"),
}
RECIPES = Path(__file__).parents[3] / "configs" / "finetune"


@dataclass
class Options:
    """A command with a model and nothing else."""

    model: ModelConfig
    """Composition of the model."""


@pytest.fixture(autouse=True)
def tiny_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "tiny", TINY)
    torch.manual_seed(0)


def randomise(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)


def adapted() -> Segmenter:
    return build_model(ModelConfig("tiny", 224, **ADAPTERS))


def literal(adapter: Adapter, x: Tensor, added: Tensor | float = 0.0) -> Tensor:
    """The bottleneck written out; `added` joins before the ReLU."""
    inside = x @ adapter.down.weight.T + adapter.down.bias + added
    return inside.clamp(min=0) @ adapter.up.weight.T + adapter.up.bias


def test_bottleneck_has_the_width_asked_for() -> None:
    adapter = Adapter(32, ratio=0.25)
    assert adapter.down.weight.shape == (8, 32) and adapter.up.weight.shape == (32, 8)
    assert Adapter(2, ratio=0.1).down.out_features == 1
    randomise(adapter)
    x = torch.randn(3, 5, 32)
    torch.testing.assert_close(adapter(x), literal(adapter, x))


def test_the_bottleneck_of_the_authors_code() -> None:
    torch.manual_seed(3)
    like_any = nn.Linear(32, 8), nn.Linear(8, 32)
    torch.manual_seed(3)
    adapter = MsaAdapter(TINY, activation="gelu", zero_start=False)
    assert all(not (each.up.weight == 0).any() for each in adapter.children())
    down, up = like_any
    x = torch.randn(3, 5, 32)
    inside = x @ down.weight.T + down.bias
    inside = inside * (1 + torch.erf(inside / 2**0.5)) / 2
    expected = inside @ up.weight.T + up.bias
    torch.testing.assert_close(adapter.after_attention(x), expected)
    with pytest.raises(UserError, match="activation is 'swish'; there are relu, gelu"):
        MsaAdapter(TINY, activation="swish")


def test_adapted_model_starts_as_the_model_it_adapts_and_learns() -> None:
    segmenter = adapted()
    images = torch.randn(2, 3, 224, 224)
    out = segmenter(images, PROMPTS)
    with torch.no_grad(), segmenter.without_adapters():
        plain = segmenter(images, PROMPTS)
    torch.testing.assert_close(out.low_res, plain.low_res, atol=1e-6, rtol=0)
    torch.testing.assert_close(out.iou, plain.iou, atol=1e-6, rtol=0)

    (out.low_res.square().mean() + out.iou.sum()).backward()
    ups = {n: p for n, p in segmenter.named_parameters() if ".adapter." in n and ".up." in n}
    assert len(ups) == 2 * (2 * TINY.depth + 3)
    for name, parameter in ups.items():
        assert parameter.grad.abs().max() > 0, name


def test_without_adapters_is_the_base_model_and_they_come_back() -> None:
    segmenter = adapted()
    base = build_model(ModelConfig("tiny", 224))
    state = segmenter.state_dict()
    base.load_state_dict({key: value for key, value in state.items() if ".adapter." not in key})
    for name, module in segmenter.named_modules():
        if name.endswith(".adapter"):
            randomise(module)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        before = segmenter(images, PROMPTS).low_res
        with segmenter.without_adapters():
            off = segmenter(images, PROMPTS).low_res
        with pytest.raises(KeyError), segmenter.without_adapters():
            raise KeyError
        after = segmenter(images, PROMPTS).low_res
        expected = base(images, PROMPTS).low_res
    torch.testing.assert_close(off, expected, atol=0, rtol=0)
    torch.testing.assert_close(after, before, atol=0, rtol=0)
    assert (before - off).abs().max() > 1e-2
    assert segmenter.state_dict().keys() == state.keys()


@pytest.mark.parametrize("side", [14, 20])
def test_encoder_block_follows_the_formula(side: int) -> None:
    encoder = SamEncoder(TINY)
    block = encoder.blocks[0]
    block.adapter = MsaAdapter(TINY, ratio=0.5, scale=0.3)
    randomise(block)
    adapter = block.adapter
    groups = dense_groups(side, side, 14, torch.device("cpu"))
    tokens = torch.randn(2, side * side, TINY.width)

    attended = block.attention(block.norm1(tokens), groups)
    middle = tokens + attended + literal(adapter.after_attention, attended)
    normed = block.norm2(middle)
    expected = middle + block.mlp(normed) + 0.3 * literal(adapter.beside_mlp, normed)
    torch.testing.assert_close(block(tokens, groups), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("first", [True, False])
def test_decoder_block_follows_the_formula(first: bool) -> None:
    block = DecoderBlock(first)
    adapter = MsaDecoderAdapter(256, ratio=0.125, scale=0.3)
    randomise(adapter)
    block.adapter = adapter
    tokens, image = torch.randn(2, 7, 256), torch.randn(2, 12, 256)
    prompt, position = torch.randn(2, 7, 256), torch.randn(2, 12, 256)
    expected_tokens, expected_image = literal_block(block, tokens, image, prompt, position)
    out_tokens, out_image = block(tokens, image, prompt, position)
    torch.testing.assert_close(out_tokens, expected_tokens, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out_image, expected_image, atol=1e-4, rtol=1e-4)


def literal_block(
    block: DecoderBlock, tokens: Tensor, image: Tensor, prompt: Tensor, position: Tensor
) -> tuple[Tensor, Tensor]:
    """SAM's two-way block with MSA's three adapters, step by step."""
    adapter = block.adapter
    if block.skip_first_layer_pe:
        tokens = block.self_attn(tokens, tokens, tokens)
    else:
        tokens = tokens + block.self_attn(tokens + prompt, tokens + prompt, tokens)
    tokens = block.norm1(tokens)

    attended = block.cross_attn_token_to_image(tokens + prompt, image + position, image)
    hint = prompt @ adapter.after_token_attention.down_prompt.weight.T
    change = literal(adapter.after_token_attention, attended, hint)
    tokens = block.norm2(tokens + attended + change)

    change = 0.3 * literal(adapter.beside_mlp, tokens)
    tokens = block.norm3(tokens + block.mlp(tokens) + change)

    attended = block.cross_attn_image_to_token(image + position, tokens + prompt, tokens)
    image = image + attended
    image = image + literal(adapter.after_image_attention, image)
    return tokens, block.norm4(image)


def test_decoder_adapter_sits_in_the_first_block_only() -> None:
    first, second = adapted().mask_decoder.transformer.layers
    assert isinstance(first.adapter, MsaDecoderAdapter) and second.adapter is None


def test_recomputed_blocks_give_the_adapters_the_same_gradients() -> None:
    images = torch.randn(1, 3, 224, 224)
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(3)
        adapter = ADAPTERS["encoder_adapter"]
        config = ModelConfig("tiny", 224, adapter, recompute_blocks=recompute)
        encoder = build_model(config).image_encoder
        for block in encoder.blocks:
            randomise(block.adapter)
        encoder(images).square().mean().backward()
        gradients.append([p.grad for b in encoder.blocks for p in b.adapter.parameters()])
    torch.testing.assert_close(*gradients)


def read_recipe(name: str, folder: Path, *overrides: str) -> tuple[ModelConfig, str]:
    """The model part of a recipe, as a command line reads it, and its resolved YAML."""
    part = folder / "model.yaml"
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    part.write_text(yaml.safe_dump({"model": recipe["model"]}))
    options, resolved = parse(Options, "test", ["--config", str(part), *overrides])
    return options.model, resolved


def test_recipe_composes_adapters_with_overrides_and_reads_back(tmp_path: Path) -> None:
    scale = "--model.encoder_adapter.init_args.scale=0.7"
    config, resolved = read_recipe("msa_2d", tmp_path, scale)
    config.encoder_size = "tiny"
    segmenter = build_model(config)
    adapters = [block.adapter for block in segmenter.image_encoder.blocks]
    assert [adapter.scale for adapter in adapters] == [0.7, 0.7]
    assert segmenter.mask_decoder.transformer.layers[0].adapter.scale == 0.5
    assert len({id(adapter) for adapter in adapters}) == TINY.depth  # each block has its own

    (tmp_path / "resolved.yaml").write_text(resolved)
    _, again = parse_file(Options, tmp_path / "resolved.yaml")
    assert again == resolved


def test_msa_2d_trains_adapters_second_decoder_block_and_heads(tmp_path: Path) -> None:
    config, _ = read_recipe("msa_2d", tmp_path)
    config.encoder_size, config.encoder_adapter, config.decoder_adapter = "tiny", None, None
    checkpoint = tmp_path / "sam.pth"
    torch.save(build_model(ModelConfig("tiny")).state_dict(), checkpoint)
    parts = build_model(config, sam_checkpoint=checkpoint).describe()
    assert {part.name: part.state for part in parts} == {
        "image_encoder": "frozen",
        "image_encoder.neck": "frozen",
        "prompt_encoder": "frozen",
        "mask_decoder.transformer.layers.0": "frozen",
        "mask_decoder.transformer.layers.1": "trained",
        "mask_decoder": "trained",
    }


def test_quickstart_recipe_is_vit_t_with_adapters(tmp_path: Path) -> None:
    config, _ = read_recipe("quickstart", tmp_path)
    assert (config.encoder_size, config.image_size) == ("vit_t", 224)
    config.encoder_size = "tiny"
    rows = {part.name for part in build_model(config).describe()}
    assert {"image_encoder adapters", "mask_decoder adapters"} <= rows
