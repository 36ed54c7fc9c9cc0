"""Text towers: equal to open_clip's, run once per text, and missing weights in one line."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from data_prep.common.errors import UserError
from finetune.prompts.text import ClipText

TEXT_CFG = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": TEXT_CFG,
    "quick_gelu": True,
}
TEXTS = ["the spleen", "segment the left kidney!", "a"]
SMALL = {"width": 32, "heads": 2, "layers": 1, "context_length": 12}


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> tuple[open_clip.CLIP, Path]:
    """A whole small CLIP model of open_clip, and a folder with its configuration."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG).eval()
    folder = tmp_path_factory.mktemp("clip")
    (folder / "small.json").write_text(json.dumps(CONFIG))
    save_file(model.state_dict(), folder / "clip.safetensors")
    return model, folder


@pytest.fixture
def pooled(clip) -> ClipText:
    _, folder = clip
    files = {"model": str(folder / "small.json"), "pretrained": str(folder / "clip.safetensors")}
    return ClipText({}, **files, pooled=True)


def features(model: open_clip.CLIP, text: str) -> Tensor:
    with torch.no_grad():
        return model.encode_text(open_clip.tokenize([text], context_length=20))


def test_features_are_exactly_those_of_open_clip(clip, tmp_path) -> None:
    model, folder = clip
    state = model.state_dict()
    towers = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_proj")
    custom = {f"text.{k}" if k.startswith(towers) else k: v for k, v in state.items()}
    training = {f"module.{name}": tensor for name, tensor in state.items()}
    forms = {
        "original.pt": state,
        "custom.bin": custom,
        "training.pt": {"epoch": 3, "name": "run", "state_dict": training},
    }
    for name, saved in forms.items():
        torch.save(saved, tmp_path / name)
        found = ClipText({}, str(folder / "small.json"), str(tmp_path / name), pooled=True)
        assert not any(parameter.requires_grad for parameter in found.tower.parameters())
        for text in TEXTS:
            assert torch.equal(found.tower([text])[0].pooled, features(model, text)), name
            assert torch.equal(found._states([text])[0], features(model, text)), name


def test_one_token_per_word_ends_with_the_state_that_the_embedding_is_made_of(clip) -> None:
    model, folder = clip
    found = ClipText({}, str(folder / "small.json"), str(folder / "clip.safetensors"), max_tokens=4)
    for text in TEXTS:
        states = found.tower([text])[0].tokens
        ids = open_clip.tokenize([text], context_length=20)
        assert len(states) == int((ids != 0).sum())
        assert torch.equal(states[-1:] @ found.tower.text.text_projection, features(model, text))
    (long,) = found._states([TEXTS[1]])
    states = found.tower([TEXTS[1]])[0].tokens
    assert len(states) > 4 and torch.equal(long, states[[0, 1, 2, -1]])


def test_tokens_of_a_text_do_not_depend_on_the_others(clip) -> None:
    torch.manual_seed(1)
    for hidden in (None, 16):
        found = ClipText({}, **SMALL, max_tokens=6, hidden=hidden)
        together = found([*TEXTS, TEXTS[0]])
        assert together.shape == (4, 6, 256)
        for text, tokens in zip([*TEXTS, TEXTS[0]], together, strict=True):
            torch.testing.assert_close(found([text])[0], tokens)
        assert torch.equal(together[2, 3:], found.no_word.expand(3, 256))  # "a": start, a, end
        together.sum().backward()  # a new tower is trained
        assert found.tower.text.token_embedding.weight.grad.abs().sum() > 0
    assert not found.loaded and not found.files


def test_a_frozen_tower_runs_once_per_text_and_training_may_follow_use(pooled) -> None:
    runs = []
    pooled.tower.text.register_forward_hook(lambda *_: runs.append(1))
    with torch.inference_mode():
        used = pooled(TEXTS)
    pooled.train()
    assert not pooled.tower.training
    trained = pooled([*TEXTS, *TEXTS])
    assert len(runs) == len(TEXTS)
    trained.square().sum().backward()
    assert pooled.projection.weight.grad.abs().sum() > 0
    torch.testing.assert_close(trained[:3].detach(), used)
    fresh = [pooled.tower([text])[0].pooled for text in TEXTS]
    assert all(map(torch.equal, pooled._states(TEXTS), fresh))


def test_other_weights_give_other_states(pooled) -> None:
    before = pooled(TEXTS).detach()
    changed = {name: t + 0.1 * torch.randn_like(t) for name, t in pooled.tower.state_dict().items()}
    pooled.tower.load_state_dict(changed)
    after = pooled(TEXTS).detach()
    assert not torch.equal(before, after)
    assert all(map(torch.equal, pooled._states(["a"]), [pooled.tower(["a"])[0].pooled]))


def test_a_tower_that_is_trained_on_is_not_cached(pooled) -> None:
    pooled.tower.requires_grad_(True)
    pooled(TEXTS).square().sum().backward()
    assert pooled.tower.text.text_projection.grad.abs().sum() > 0
    assert not pooled._kept


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> tuple[Path, torch.nn.Module]:
    """A folder like BiomedCLIP's: a BERT tower with its own tokenizer; and open_clip's model."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "spleen", "left", "kid", "##ney", "segment"]
    tokenizer = Tokenizer(models.WordPiece({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"intermediate_size": 48, "vocab_size": len(words), "max_position_embeddings": 32}
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **shape}))
    text = {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "context_length": 16}
    text |= {"hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler"}
    config = {"embed_dim": 24, "vision_cfg": CONFIG["vision_cfg"], "text_cfg": text}
    document = {"model_cfg": config, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False).eval()
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder, model


def test_a_language_model_from_a_folder_is_as_in_open_clip(bert, tmp_path) -> None:
    folder, model = bert
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    found = ClipText({}, str(folder), pooled=True)
    kept = {}  # as a run keeps them: under other names, and without the folder
    for role, path in found.files.items():
        kept[role] = tmp_path / f"text_{role}{path.suffix}"
        kept[role].write_bytes(path.read_bytes())
    again = ClipText(kept, "gone", pooled=True)
    assert kept.keys() == {"config", "weights", "tokenizer", "language_model"}
    for text in ("Segment the left kidney", "the spleen"):
        ids = tokenizer([text])
        with torch.no_grad():
            expected = model.encode_text(ids)
        for encoder in (found.train(), again):
            assert torch.equal(encoder.tower.tokenizer(text)[0], ids)
            assert encoder.tower.tokenizer(text)[1] == int((ids != 0).sum())
            assert torch.equal(encoder._states([text])[0], expected)


def test_what_is_missing_is_named_with_where_to_put_it(clip, bert, tmp_path, monkeypatch) -> None:
    _, folder = clip

    def no_network(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", no_network)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", no_network)
    empty, half = tmp_path / "empty", tmp_path / "half"
    empty.mkdir()
    half.mkdir()
    for name in ("open_clip_config.json", "open_clip_pytorch_model.bin", "tokenizer.json"):
        (half / name).write_bytes((bert[0] / name).read_bytes())
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    small, weights = str(folder / "small.json"), str(folder / "clip.safetensors")
    for options, wanted in (
        ({"model": "ViT-B-61"}, r"no architecture 'ViT-B-61'; did you mean ViT-B-16\?"),
        ({"pretrained": "opnai"}, r"neither a file nor weights that open_clip has for ViT-B-16 \("),
        (
            {"pretrained": "openai"},
            r"fetch open_clip_model\.safetensors of timm/vit_base_patch16_clip_224\.openai on the"
            r" Hugging Face Hub elsewhere, and give the file: --model\.text\.model"
            r" ViT-B-16-quickgelu --model\.text\.pretrained FILE",
        ),
        (
            {"model": "hf:org/name"},
            r"open_clip_config\.json of org/name .*--model\.text\.model FOLD",
        ),
        ({"model": str(empty)}, r"empty has no open_clip_config\.json; fetch it into that folder"),
        ({"model": str(half)}, r"config\.json of .* cannot be fetched"),
        ({"model": str(bert[0]), "pretrained": "x"}, r"has its own weights; leave this out"),
        ({"model": str(broken)}, r"broken\.json is not a model configuration of open_clip"),
        ({"model": small, "pretrained": weights, "width": 48}, r"of another shape: "),
        ({"model": small, "heads": 5}, r"open_clip cannot make this tower: "),
        ({"model": small, "max_tokens": 1}, r"max_tokens must be at least 2"),
    ):
        with pytest.raises(UserError, match=wanted) as refused:
            ClipText({}, **options)
        assert "\n" not in str(refused.value)
