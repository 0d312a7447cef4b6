"""The table of Hugging Face models: name -> class, values of its configuration (and, for signals, the inputs)."""

from __future__ import annotations

VOCABULARY, WIDTH = 99, 32

LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4}
POSITIONS = {"max_position_embeddings": 64}
ENCODER = LAYERS | POSITIONS | {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 64}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2}
DECODER = ENCODER | SPECIAL | {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
GPT2 = SPECIAL | {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 64}
MIXTURE = DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2}
T5 = {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
SEQ2SEQ = {
    "vocab_size": VOCABULARY, "d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
}  # fmt: skip
CLIP_TEXT = ENCODER | SPECIAL
CLASSIFIER, CAUSAL = "ForSequenceClassification", "ForCausalLM"

# Models of tokens: name -> (class, configuration)
TEXT = {
    "bert": ("Bert" + CLASSIFIER, ENCODER),
    "roberta": ("Roberta" + CLASSIFIER, ENCODER),
    "distilbert": (
        "DistilBert" + CLASSIFIER,
        {"vocab_size": VOCABULARY, "dim": WIDTH, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
        | POSITIONS,
    ),
    "albert": ("Albert" + CLASSIFIER, ENCODER | {"embedding_size": 16}),
    "deberta_v2": (
        "DebertaV2" + CLASSIFIER,
        ENCODER | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}
        | {"share_att_key": True, "norm_rel_ebd": "layer_norm"},
    ),
    "electra": ("Electra" + CLASSIFIER, ENCODER | {"embedding_size": WIDTH}),
    "modernbert": (
        "ModernBert" + CLASSIFIER,
        ENCODER | SPECIAL | {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "convbert": (
        "ConvBert" + CLASSIFIER,
        ENCODER | {"embedding_size": WIDTH, "head_ratio": 2, "conv_kernel_size": 3},
    ),
    "longformer": ("Longformer" + CLASSIFIER, ENCODER | {"attention_window": 4, "pad_token_id": 1}),
    "fnet": (
        "FNet" + CLASSIFIER,
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "intermediate_size": 64}
        | POSITIONS,
    ),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gptj": ("GPTJ" + CAUSAL, GPT2 | {"rotary_dim": 4}),
    "gpt_neox": ("GPTNeoX" + CAUSAL, ENCODER),
    "opt": (
        "OPT" + CAUSAL,
        LAYERS | {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "ffn_dim": 64, "word_embed_proj_dim": WIDTH}
        | POSITIONS,
    ),
    "bloom": ("Bloom" + CAUSAL, {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": 2, "n_head": 4}),
    "phi": ("Phi" + CAUSAL, ENCODER | {"num_key_value_heads": 2}),
    "phi3": ("Phi3" + CAUSAL, DECODER),
    "llama": ("Llama" + CAUSAL, DECODER),
    "mistral": ("Mistral" + CAUSAL, DECODER),
    "qwen2": ("Qwen2" + CAUSAL, DECODER),
    "qwen3": ("Qwen3" + CAUSAL, DECODER),
    "gemma": ("Gemma" + CAUSAL, DECODER),
    "gemma2": ("Gemma2" + CAUSAL, DECODER),
    "gemma3": ("Gemma3" + CAUSAL, DECODER | {"sliding_window": 4}),
    "mixtral": ("Mixtral" + CAUSAL, MIXTURE),
    "mixtral_eager_experts": ("Mixtral" + CAUSAL, MIXTURE | {"experts_implementation": "eager"}),
    "clip_text": ("CLIPTextModelWithProjection", CLIP_TEXT | {"projection_dim": 16}),
    "t5enc": ("T5EncoderModel", T5),
    "t5_gated_encdec": ("T5ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-gelu"}),
    "bart": ("BartForConditionalGeneration", SEQ2SEQ | POSITIONS),
    "rwkv": (
        "Rwkv" + CAUSAL,
        {"vocab_size": VOCABULARY, "context_length": 64, "hidden_size": WIDTH, "num_hidden_layers": 2}
        | {"attention_hidden_size": WIDTH, "intermediate_size": 64},
    ),
    "mamba": (
        "Mamba" + CAUSAL,
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "state_size": 4, "num_hidden_layers": 2},
    ),
    "mamba2": (
        "Mamba2" + CAUSAL,
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "state_size": 8, "num_hidden_layers": 2}
        | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 4},
    ),
}  # fmt: skip

VIT = LAYERS | {"hidden_size": WIDTH, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
DINO = LAYERS | {"hidden_size": WIDTH, "image_size": 32, "patch_size": 8}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
VILT = ENCODER | {"image_size": 32, "patch_size": 8}
SPEECH = LAYERS | {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 64, "conv_dim": [16] * 3,
    "conv_stride": [5, 2, 2], "conv_kernel": [10, 3, 2], "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
WHISPER = SEQ2SEQ | {"num_mel_bins": 16, "max_source_positions": 20}
SERIES = {
    "num_input_channels": 2, "context_length": 32, "patch_length": 8, "patch_stride": 8, "d_model": WIDTH,
    "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64, "loss": "mse",
}  # fmt: skip
IMAGE, VIDEO, WAVE = (3, 32, 32), (4, 3, 32, 32), (800,)
PIXELS, SOUND, PAST = "pixel_values", "input_values", "past_values"
IMAGES, VIDEOS = "ForImageClassification", "ForVideoClassification"

# Models of images, videos, sounds and series: name -> (class, configuration, input, its shape)
SIGNALS = {
    "vit": ("ViT" + IMAGES, VIT, PIXELS, IMAGE),
    "deit": ("DeiT" + IMAGES, VIT, PIXELS, IMAGE),
    "beit": ("Beit" + IMAGES, VIT | {"use_relative_position_bias": True}, PIXELS, IMAGE),
    "dinov2": ("Dinov2" + IMAGES, DINO, PIXELS, IMAGE),
    "dinov2_interp": ("Dinov2" + IMAGES, DINO, PIXELS, (3, 48, 48)),
    "swin": ("Swin" + IMAGES, SWIN, PIXELS, IMAGE),
    "swinv2": ("Swinv2" + IMAGES, SWIN, PIXELS, IMAGE),
    "convnext": ("ConvNext" + IMAGES, {"hidden_sizes": [8, 16, 16, 32], "depths": [1] * 4}, PIXELS, IMAGE),
    "resnet": (
        "ResNet" + IMAGES,
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}, PIXELS, IMAGE,
    ),
    "segformer": (
        "SegformerForSemanticSegmentation",
        {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "decoder_hidden_size": 16}, PIXELS, (3, 64, 64),
    ),
    "clip_vision": ("CLIPVisionModelWithProjection", VIT | {"projection_dim": 16}, PIXELS, IMAGE),
    "clip": (
        "CLIPModel",
        {"text_config": CLIP_TEXT, "vision_config": VIT, "projection_dim": 16}, PIXELS, IMAGE,
    ),
    "siglip_vision": ("SiglipVisionModel", VIT, PIXELS, IMAGE),
    "vilt": ("ViltForQuestionAnswering", VILT | {"max_image_length": -1}, PIXELS, IMAGE),
    "vilt_maxlen": ("ViltForQuestionAnswering", VILT | {"max_image_length": 8}, PIXELS, IMAGE),
    "videomae": ("VideoMAE" + VIDEOS, VIT | {"num_frames": 4, "tubelet_size": 2}, PIXELS, VIDEO),
    "timesformer": ("Timesformer" + VIDEOS, VIT | {"num_frames": 4}, PIXELS, VIDEO),
    "vivit": ("Vivit" + VIDEOS, VIT | {"num_frames": 4, "tubelet_size": [2, 8, 8]}, PIXELS, VIDEO),
    "whisper_encoder": ("WhisperEncoder", WHISPER, "input_features", (16, 40)),
    "wav2vec2": ("Wav2Vec2" + CLASSIFIER, SPEECH, SOUND, WAVE),
    "wav2vec2_stable_ctc": (
        "Wav2Vec2ForCTC",
        SPEECH | {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}, SOUND, WAVE,
    ),
    "hubert": ("Hubert" + CLASSIFIER, SPEECH, SOUND, WAVE),
    "wavlm": ("WavLM" + CLASSIFIER, SPEECH, SOUND, WAVE),
    "ast": (
        "ASTForAudioClassification",
        LAYERS | {"hidden_size": WIDTH, "intermediate_size": 64, "patch_size": 4, "frequency_stride": 4}
        | {"time_stride": 4, "max_length": 24, "num_mel_bins": 16}, SOUND, (24, 16),
    ),
    "patchtst": ("PatchTSTForPrediction", SERIES | {"prediction_length": 8}, PAST, (32, 2)),
    "patchtst_cls": (
        "PatchTSTForClassification",
        SERIES | {"num_targets": 3, "use_cls_token": True}, PAST, (32, 2),
    ),
}  # fmt: skip
# The output that is explained, where it is neither the logits nor the only one
OUTPUTS = {
    "clip_text": "text_embeds", "clip_vision": "image_embeds", "clip": "logits_per_image",
    "siglip_vision": "pooler_output", "patchtst": "prediction_outputs", "patchtst_cls": "prediction_logits",
}  # fmt: skip
WITH_TEXT = {"clip", "vilt", "vilt_maxlen"}  # images and token ids
