"""Some forty small architectures of all groups, which a test run can afford; the rule sets are measured on them."""

from __future__ import annotations

_MODELS = {
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
SAMPLE = tuple(f"{group}/{name}" for group, names in _MODELS.items() for name in names.split())
