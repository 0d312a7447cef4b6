"""A sample of the coverage benchmark: forty small architectures of all its groups, under the same check."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import zoo
from zoo.check import DTYPES, check

SAMPLE = {
    "plain": (
        "LSTM_bi2 GRU LSTM_proj GRUCell MHA_weights TransformerEncoder_gelu_prenorm_nofast Transformer_nomask_fast "
        "MLP_selu_bn M5_raw_audio Conv3dNet UNet_bilinear DCGAN_gen DCGAN_disc padmodes STN VAE "
        "TCN_weightnorm ConvLSTM metric_net PointNet DeepFM"
    ),
    "huggingface": (
        "bert/mask:eager gpt2:sdpa llama/ids:sdpa gemma2:eager mixtral:sdpa t5_gated_encdec:eager fnet:none "
        "swin:eager clip:sdpa wav2vec2:sdpa patchtst_cls:sdpa"
    ),
    "pyg": "GCN GAT/max SAGE_max TransformerConv PNA",
    "segmentation": "lraspp_mobilenet_v3_large",
    "torchvision": "mnasnet0_5 squeezenet1_1 shufflenet_v2_x0_5",
    "timm": "tinynet_e resnet10t",
}
NAMES = [f"{group}/{name}" for group, names in SAMPLE.items() for name in names.split()]
NOT_EXPORTABLE = ("plain/LSTM_packed", "plain/Transformer_fast", "huggingface/vilt:eager")
CENSUS_GROUPS = {"torchvision_seg": "segmentation", "hf": "huggingface"}


def skip_without_libraries(name):
    missing = zoo.missing(name.partition("/")[0])
    if missing:
        pytest.skip(f"{name} needs {', '.join(missing)}, which is not installed")


@pytest.mark.parametrize("name", NAMES)
def test_sample(name):
    skip_without_libraries(name)
    for dtype in DTYPES:
        record = check(name, dtype)
        assert record["status"] == "passed", f"{dtype}: {record['reasons']}\n{record.get('error', '')}"


@pytest.mark.parametrize("name", NOT_EXPORTABLE)
def test_what_cannot_be_exported_names_the_line(name):
    skip_without_libraries(name)
    record = check(name, "float32")
    assert record["status"] == "not exportable", record
    assert "What to change" in record["error"]


def test_names_are_the_census(shared):
    """names.json holds what shared/census/models.json does, in the zoo's own groups."""
    models = json.loads(shared("census", "models.json").read_text(encoding="utf-8"))
    groups = dict.fromkeys(zoo.GROUPS, 0)
    for entry in models.values():
        groups[CENSUS_GROUPS.get(entry["group"], entry["group"])] += 1
    names = list(zoo.census())
    assert groups == {g: sum(n.startswith(f"{g}/") for n in names) for g in groups}
    assert sum(e.exports for e in zoo.census().values()) == sum(m["exports"] for m in models.values()) == 571


def test_builds_are_the_same_every_time():
    import torch

    (one, (x,), _), (two, (y,), _) = zoo.build("plain/Conv1dNet"), zoo.build("plain/Conv1dNet")
    assert torch.equal(one(x), two(y))
    assert all(p.std() > 0 for p in one.parameters() if p.numel() > 1)
    norm = next(m for m in one if isinstance(m, torch.nn.BatchNorm1d))
    assert norm.running_mean.abs().min() > 0
    assert (norm.running_var - 1).abs().min() > 0
