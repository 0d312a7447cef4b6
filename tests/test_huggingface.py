"""Pipelines of transformers, explained: random small models, a tokenizer from a local vocabulary, no hub.

Each result's contributions sum to the logit that the pipeline itself computes, whatever it was batched with.
"""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.modeling_outputs import SequenceClassifierOutput

import omenn_fx
from omenn_fx.errors import InputError, TargetError
from omenn_fx.integrations.huggingface import PipelineExplainer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "film", "was", "good", "bad", "very", "not", "dull"]
WORDS += ["un", "##happy", "##ly", ",", "."]
TEXTS = ["The film was unhappy, very good.", "dull", "not bad ."]
LABELS = ["bad", "mixed", "good"]
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
IDS = {"vocab_size": len(WORDS), "max_position_embeddings": 40, "pad_token_id": 0}


def names(labels):
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def drawn(kind, config):
    """A model with weights large enough for every part of it to matter."""
    torch.manual_seed(0)
    model = kind(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    return transformers.BertTokenizerFast.from_pretrained(folder, model_max_length=40)


@pytest.fixture(scope="module")
def classifier(tokenizer):
    config = transformers.BertConfig(**BERT, **IDS, **names(LABELS))
    model = drawn(transformers.BertForSequenceClassification, config)
    return transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def explain(classifier):
    """One capture, at 16 tokens, for most of the tests of texts."""
    return PipelineExplainer(classifier, length=16)


@pytest.fixture(scope="module")
def tagger(tokenizer):
    config = transformers.BertConfig(**BERT, **IDS, **names(["O", "B-PER", "I-PER"]))
    model = drawn(transformers.BertForTokenClassification, config)
    return transformers.pipeline("token-classification", model=model, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def explain_token(tagger):
    return PipelineExplainer(tagger, length=16)


@pytest.fixture
def viewer():
    config = transformers.ViTConfig(**BERT, image_size=32, patch_size=8, **names(LABELS))
    model = drawn(transformers.ViTForImageClassification, config)
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    return transformers.pipeline("image-classification", model=model, image_processor=processor)


def photograph(seed=0, size=(40, 50)):
    noise = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def logits(pipeline, one):
    """What the pipeline computes for one input alone."""
    scores = pipeline(one, function_to_apply="none", top_k=len(LABELS))
    return {s["label"]: s["score"] for s in scores}


def assert_sums(result):
    """The scores to the logit, and all of C too, each up to the rounding of float32."""
    e = result.explanation
    assert e.value.shape == (1,)
    assert e.completeness_error.max() < 1e-6
    tolerance = 1e-5 * float(e.scale)
    assert abs(float(result.scores.double().sum()) - result.value) < tolerance
    assert abs(float(e.C.double().sum()) - result.value) < tolerance


# Text ----------------------------------------------------------------------------------------------------------------


def test_tokens_and_their_contributions(classifier, explain):
    result = explain(TEXTS[0])
    assert result.tokens == ["[CLS]", "the", "film", "was", "un", "##happy", ",", "very", "good", ".", "[SEP]"]
    assert result.scores.shape == (11,)
    want = logits(classifier, TEXTS[0])
    assert result.label == classifier(TEXTS[0])[0]["label"] == max(want, key=want.get)
    assert result.value == pytest.approx(want[result.label], abs=1e-5)
    assert_sums(result)
    torch.testing.assert_close(result.scores, result.explanation.C[0, :11].sum(-1))
    assert isinstance(result.explanation, omenn_fx.Explanation)
    assert repr(result).startswith(f"TextExplanation(logit {result.value:.4g} of '{result.label}': [CLS] ")


def test_a_batch_says_what_each_text_says_alone(classifier, explain):
    """Padding fills up a batch and gets nothing; nor does it change what the others get."""
    as_needed = PipelineExplainer(classifier)
    for text, one, wider in zip(TEXTS, as_needed(TEXTS), explain(TEXTS, batch_size=2), strict=True):
        assert one.tokens == wider.tokens
        assert one.padding == wider.padding == 0
        assert one.explanation.C.shape == (1, 11, 32)
        assert wider.explanation.C.shape == (1, 16, 32)
        assert wider.explanation.C[0, len(wider.tokens) :].abs().sum() == 0
        assert_sums(one)
        assert_sums(wider)
        torch.testing.assert_close(one.scores, wider.scores, rtol=1e-4, atol=1e-5)
        assert one.value == pytest.approx(logits(classifier, text)[one.label], abs=1e-5)
        assert one.explanation.bias.total.shape == (1,)
    alone = as_needed(TEXTS[2])
    assert alone.explanation.C.shape == (1, 5, 32)
    torch.testing.assert_close(alone.scores, wider.scores, rtol=1e-4, atol=1e-5)


def test_pictures_of_texts(explain, tmp_path):
    result = explain(TEXTS[0])
    result.plot(path=tmp_path / "text.png", title="a text")
    result.plot("tokens", path=tmp_path / "bars.png")
    result.plot("bias", path=tmp_path / "bias.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in ("text", "bars", "bias"))


def test_a_length_serves_all_texts_with_one_capture(explain, monkeypatch):
    explain(TEXTS[0])
    monkeypatch.setattr(omenn_fx.Explainer, "prepare", lambda *args, **kwargs: pytest.fail("captured anew"))
    assert [len(explain(text).tokens) for text in TEXTS] == [11, 3, 5]
    with pytest.raises(InputError, match="23 tokens, more than length=16"):
        explain("film " * 21)


def test_targets_by_name_and_number(classifier, explain):
    want = logits(classifier, TEXTS[1])
    for label, number in (("bad", 0), ("good", 2)):
        by_name, by_number = explain(TEXTS[1], target=label), explain(TEXTS[1], target=number)
        assert by_name.label == by_number.label == label
        assert by_name.value == by_number.value == pytest.approx(want[label], abs=1e-5)
    each = explain(TEXTS, target=["good", None, 1])
    assert [r.label for r in each] == ["good", max(want, key=want.get), "mixed"]
    for target in ("dreadful", 3, -1, True):
        with pytest.raises(TargetError, match=r"bad, mixed, good \(0 to 2\)"):
            explain(TEXTS[1], target=target)
    with pytest.raises(TargetError, match="2 targets for 3 inputs"):
        explain(TEXTS, target=["good", "bad"])
    assert explain([]) == []


def test_pairs_and_the_pipelines_own_tokenizer_options(classifier, explain):
    pair = {"text": "not bad .", "text_pair": "very good"}
    result = explain(pair)
    assert result.tokens == ["[CLS]", "not", "bad", ".", "[SEP]", "very", "good", "[SEP]"]
    assert result.value == pytest.approx(logits(classifier, pair)[result.label], abs=1e-5)
    assert_sums(result)
    short = transformers.pipeline(
        "text-classification", model=classifier.model, tokenizer=classifier.tokenizer, truncation=True, max_length=4
    )
    assert PipelineExplainer(short)(TEXTS[0]).tokens == ["[CLS]", "the", "film", "[SEP]"]


def test_without_biases_the_scores_lack_them(classifier):
    result = PipelineExplainer(classifier, bias="none")(TEXTS[0])
    e = result.explanation
    assert e.C_b is None
    assert float(result.scores.sum() + e.bias.total) == pytest.approx(result.value, abs=1e-5 * float(e.scale))


FAMILIES = {
    "DistilBert": ({"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}, "right"),
    "Roberta": (BERT, "right"),
    "GPT2": ({"n_embd": 32, "n_layer": 2, "n_head": 4}, "right"),
    "Llama": (BERT, "left"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families(family, tokenizer, monkeypatch):
    """Encoders, and decoders whose last token classifies."""
    small, side = FAMILIES[family]
    config = getattr(transformers, f"{family}Config")(**small, **IDS, **names(LABELS))
    model = drawn(getattr(transformers, f"{family}ForSequenceClassification"), config)
    monkeypatch.setattr(tokenizer, "padding_side", side)
    monkeypatch.setattr(tokenizer, "model_input_names", ["input_ids", "attention_mask"])
    pipeline = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)
    for text, result in zip(TEXTS, PipelineExplainer(pipeline)(TEXTS), strict=True):
        assert result.padding == 0
        assert_sums(result)
        assert len(result.tokens) == len(tokenizer(text)["input_ids"])
        assert result.value == pytest.approx(logits(pipeline, text)[result.label], abs=1e-4)


# Tokens --------------------------------------------------------------------------------------------------------------


def test_a_token_and_its_label(tagger, explain_token):
    said = {t["index"]: t["entity"] for t in tagger(TEXTS[0], ignore_labels=[])}
    for position in (1, 5):
        result = explain_token(TEXTS[0], target=position)
        assert result.label == said[position]
        assert result.token == position
        assert_sums(result)
    named = explain_token(TEXTS, target=[(4, "I-PER"), 1, (2, "B-PER")])
    assert [(r.token, r.label) for r in named] == [(4, "I-PER"), (1, named[1].label), (2, "B-PER")]
    for result, text in zip(named, TEXTS, strict=True):
        assert_sums(result)
        assert result.padding == 0
        with torch.no_grad():
            whole = tagger.model(**tagger.tokenizer(text, return_tensors="pt")).logits[0]
        wanted = whole[result.token, tagger.model.config.label2id[result.label]]
        assert result.value == pytest.approx(float(wanted), abs=1e-5)
    assert "of 'I-PER' of token 4 (un)" in repr(named[0])


@pytest.mark.parametrize("target", [None, 5, -1, "B-PER", (9, "O"), (1, "B-LOC")])
def test_tokens_that_are_not_there(explain_token, target):
    with pytest.raises(TargetError, match=r"names no token of this text, which has 5|there is no label"):
        explain_token("not bad .", target=target)


def test_padding_in_front_moves_no_token(tagger, explain_token, monkeypatch):
    monkeypatch.setattr(tagger.tokenizer, "padding_side", "left")
    results = explain_token(TEXTS, target=1)
    assert [r.tokens[r.token] for r in results] == ["the", "dull", "not"]
    for result in results:
        assert_sums(result)


# Images --------------------------------------------------------------------------------------------------------------


def test_pixels_and_their_contributions(viewer, tmp_path):
    explain = PipelineExplainer(viewer)
    pictures = [photograph(0), photograph(1, (64, 48))]
    for picture, result in zip(pictures, explain(pictures), strict=True):
        want = logits(viewer, picture)
        assert result.label == max(want, key=want.get)
        assert result.value == pytest.approx(want[result.label], abs=1e-4)
        assert result.scores.shape == (32, 32)
        plain = torch.from_numpy(np.array(picture.resize((32, 32), Image.Resampling.BILINEAR))).permute(2, 0, 1)
        torch.testing.assert_close(result.image, plain / 255, rtol=0, atol=1.01 / 255)
        assert_sums(result)
    result.plot(path=tmp_path / "maps.png", title="noise")
    result.plot("overlay", path=tmp_path / "overlay.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in ("maps", "overlay"))
    one = explain(pictures[0], target="good")
    assert one.label == "good"
    assert repr(one) == f"ImageExplanation(logit {one.value:.4g} of 'good', 32 x 32 pixels)"


def test_a_convolutional_network_and_a_path(tmp_path):
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **names(LABELS)
    )
    model = drawn(transformers.ResNetForImageClassification, config)
    processor = transformers.ViTImageProcessor(do_resize=False)
    pipeline = transformers.pipeline("image-classification", model=model, image_processor=processor)
    photograph().save(tmp_path / "noise.png")
    result = PipelineExplainer(pipeline)(str(tmp_path / "noise.png"))
    assert result.scores.shape == (40, 50)
    assert_sums(result)
    with pytest.raises(InputError, match=r"\(3, 40, 50\), \(3, 64, 48\): explain them one by one"):
        PipelineExplainer(pipeline)([photograph(), photograph(1, (64, 48))])


def test_other_pipelines_are_refused(tokenizer):
    model = drawn(transformers.BertForMaskedLM, transformers.BertConfig(**BERT, **IDS))
    with pytest.raises(TypeError, match=r"FillMaskPipeline.*text-, image- or token-classification"):
        PipelineExplainer(transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer))


# A trained one -------------------------------------------------------------------------------------------------------


class Sentiment(transformers.PreTrainedModel):
    """The trained MiniLM of the shared files, as a pipeline wants its models."""

    config_class = transformers.BertConfig

    def __init__(self, config, net):
        super().__init__(config)
        self.net = net

    def forward(self, input_ids=None, attention_mask=None):
        return SequenceClassifierOutput(logits=self.net(input_ids, attention_mask))


def test_trained_sentiment(assets):
    """Opinions stand out. A mean over the tokens of a text leaves a little of the last bias at padding."""
    net, _ = assets.model_sentiment()
    vocabulary = (assets.HERE / "text" / "vocab_pruned.txt").read_text(encoding="utf-8").splitlines()
    tokenizer = transformers.BertTokenizerFast(
        vocab={token: i for i, token in enumerate(vocabulary)}, model_input_names=["input_ids", "attention_mask"]
    )
    config = transformers.BertConfig(**names(["negative", "positive"]))
    pipeline = transformers.pipeline("text-classification", model=Sentiment(config, net).eval(), tokenizer=tokenizer)
    texts, _, _ = assets.text_sentiment()
    results = PipelineExplainer(pipeline)(texts[:8])
    for text, result in zip(texts, results, strict=False):
        e = result.explanation
        assert e.completeness_error.max() < 1e-6
        assert abs(float(result.scores.sum()) + result.padding - result.value) < 1e-5 * float(e.scale)
        assert abs(result.padding) < 0.01 * float(e.scale)
        assert result.label == pipeline(text)[0]["label"]
    shares = [abs(r.padding) / float(r.explanation.scale) for r in results]
    print(f"\nMiniLM: {len(results)} texts, padding holds {max(shares):.1e} of S at most")
    praise = results[0]  # "energetic and boldly provocative ."
    assert praise.tokens[int(praise.scores.argmax())] == "provocative"
