"""SAMed's decoder: SAM's with one output for each class, of which the largest is the answer."""

import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer

from data_prep.common.components import Component
from finetune.config import ModelConfig
from finetune.model import Segmenter, build_model
from finetune.model.prompt_encoder import Prompts

TARGETS = ("liver", "spleen", "kidney")
PROMPTS = Prompts(torch.tensor([0, 1, 0, 1]), target=torch.tensor([0, 0, 2, 1]))


def build(sam: object = None, trained: tuple[str, ...] = ()) -> Segmenter:
    decoder = Component("finetune.heads.SamedDecoder")
    config = ModelConfig("tiny", 64, decoder=decoder, trained=list(trained))
    return build_model(config, TARGETS, sam_checkpoint=sam)


@torch.no_grad()
def stock_outputs(segmenter: Segmenter, embedding: torch.Tensor) -> torch.Tensor:
    """(1, 4, h, w): background and targets by segment_anything's own decoder."""
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    stock = MaskDecoder(transformer_dim=256, transformer=transformer, num_multimask_outputs=3)
    stock.load_state_dict(segmenter.mask_decoder.state_dict())
    sparse, dense = segmenter.prompt_encoder(points=None, boxes=None, masks=None)
    position = segmenter.prompt_encoder.get_dense_pe()
    given = embedding, position, sparse, dense
    return torch.cat([stock(*given, multimask_output=False)[0], stock(*given, True)[0]], 1)


def test_masks_are_those_of_segment_anythings_largest_output() -> None:
    segmenter = build().eval()
    embeddings = torch.randn(2, 256, 4, 4)
    with torch.no_grad():
        masks = segmenter.decode(embeddings, PROMPTS).low_res > 0
    assert masks.shape == (4, 1, 16, 16)
    for image in (0, 1):
        largest = stock_outputs(segmenter, embeddings[image : image + 1]).argmax(1)[0]
        for place in (PROMPTS.image == image).nonzero():
            expected = largest == PROMPTS.target[place] + 1
            assert torch.equal(masks[place, 0], expected[None])
    assert 0 < masks.float().mean() < 0.9


def test_in_training_logits_are_the_log_odds_of_the_softmax() -> None:
    segmenter = build().train()
    embeddings = torch.randn(2, 256, 4, 4)
    decoded = segmenter.decode(embeddings, PROMPTS)
    assert decoded.iou is None
    for place, (image, target) in enumerate(zip(PROMPTS.image, PROMPTS.target, strict=True)):
        outputs = stock_outputs(segmenter, embeddings[image : image + 1])
        expected = outputs.softmax(1)[:, target + 1]
        torch.testing.assert_close(decoded.low_res[place].sigmoid(), expected)
    decoded.low_res.sum().backward()
    trained = dict(segmenter.named_parameters())
    for name in ("mask_decoder.mask_tokens.weight", "prompt_encoder.no_mask_embed.weight"):
        assert trained[name].grad.any(), name
        assert trained[name].grad.isfinite().all()


def test_all_but_its_outputs_is_sams(tmp_path) -> None:
    torch.save(build_model(ModelConfig("tiny", 64)).state_dict(), tmp_path / "sam.pth")
    sam = torch.load(tmp_path / "sam.pth", weights_only=True)
    segmenter = build(tmp_path / "sam.pth", ("prompt_encoder.no_mask_embed.*",))
    new = {key for key in segmenter.state_dict() if key not in segmenter.sources}
    assert {key.split(".")[1] for key in new} == {
        *("mask_tokens", "output_hypernetworks_mlps", "iou_prediction_head")
    }
    for key, value in segmenter.state_dict().items():
        assert key in new or torch.equal(value, sam[key]), key
    assert segmenter.mask_decoder.mask_tokens.weight.shape == (4, 256)
    trained = {name for name, each in segmenter.named_parameters() if each.requires_grad}
    assert trained == new | {"prompt_encoder.no_mask_embed.weight"}
