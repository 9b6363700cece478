"""Classifiers of every family that is met in practice, tiny, with random weights, and what is expected of each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import timm
import torch
import torchvision
import transformers
from timm.models.maxxvit import MaxxVit, MaxxVitCfg
from timm.models.mlp_mixer import MlpMixer
from timm.models.volo import VOLO
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torchvision.models import convnext, regnet

from opnp.model import Inputs, run_model

__all__ = ["CLASSES", "FAMILIES", "Family"]

CLASSES, INPUTS = 5, 6
_TV: Any = torchvision.models  # typed in parts only
_HF: Any = transformers  # as above


class Answering(nn.Module):
    """A body and a head, with something done to the head's output."""

    def __init__(self, after: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.body, self.fc, self.after = nn.Sequential(nn.Linear(INPUTS, 16), nn.ReLU()), nn.Linear(16, CLASSES), after

    def forward(self, inputs: Tensor) -> object:
        return self.after(self.fc(self.body(inputs)))


def mlp() -> nn.Sequential:
    """Return linear, ReLU, linear."""
    return nn.Sequential(nn.Linear(INPUTS, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def parametrized_mlp() -> nn.Sequential:
    """Return an MLP whose head's weight is computed from two parameters whenever it is read."""
    model = mlp()
    weight_norm(model[2])
    return model


def small_cnn() -> nn.Sequential:
    """Return a convolution, pooling and a linear layer."""
    body = (nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(8, CLASSES))


def network_in_network() -> nn.Sequential:
    """Return convolutions of which the last, 1x1, makes the logits at every position, which are then averaged."""
    body = (nn.Conv2d(3, 8, 3, stride=4), nn.ReLU())
    return nn.Sequential(*body, nn.Conv2d(8, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def vgg() -> nn.Module:
    """Return a VGG without the hundred million weights of its first linear layer."""
    layers = _TV.vgg.make_layers([16, "M", 16, "M"], batch_norm=True)
    with torch.device("meta"):
        model: nn.Module = _TV.VGG(layers, num_classes=CLASSES, init_weights=False)
    model.classifier = nn.Sequential(
        *(nn.Linear(16 * 7 * 7, 64), nn.ReLU(), nn.Dropout()),
        *(nn.Linear(64, 64), nn.ReLU(), nn.Dropout()),
        nn.Linear(64, CLASSES),
    )
    return model


@dataclass(frozen=True, slots=True)
class Family:
    """A classifier and what is expected of it.

    Attributes:
        name: Where it is from, and which it is.
        build: Makes it, with random weights.
        inputs: Makes a batch of inputs from a number of rows and a seed.
        head: Name of the head that is found, with `choice` where there is one; None if there is none to be found.
        refusal: Pattern of the answer where nothing is chosen; None if the head is found without.
        choice: `head=` and `logits=` with which the head is found.
        is_output: Whether the head's output are the model's logits, so that both say the same.

    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int, int], Inputs]
    head: str | None
    refusal: str | None = None
    choice: Mapping[str, Any] = field(default_factory=dict)
    is_output: bool = True

    def model(self) -> nn.Module:
        """Return the classifier, in training mode, such that the features, logits and scores of its inputs spread."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            model = self.build().train()
            for module in model.modules():
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                    module.momentum = 1.0  # running statistics of the one batch that follows
            run_model(model, self.inputs(8, 99), device=None)
            if self.head is not None:
                for parameter in model.get_submodule(self.head).parameters():
                    if parameter.ndim > 1:  # the weight, or what it is computed from
                        nn.init.normal_(parameter)
        return model


def _normal(rows: int, seed: int, *shape: int) -> Tensor:
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed))


def _efficientnet() -> nn.Module:
    settings, last = _TV.efficientnet._efficientnet_conf("efficientnet_b0", width_mult=0.25, depth_mult=0.2)
    model: nn.Module = _TV.EfficientNet(settings, 0.2, last_channel=last, num_classes=CLASSES)
    return model


def _images(size: int) -> Callable[[int, int], Tensor]:
    return lambda rows, seed: _normal(rows, seed, 3, size, size)


def _vectors(rows: int, seed: int) -> Tensor:
    return _normal(rows, seed, INPUTS)


def _pixel_values(size: int) -> Callable[[int, int], dict[str, Tensor]]:
    return lambda rows, seed: {"pixel_values": _normal(rows, seed, 3, size, size)}


def _tokens(rows: int, seed: int) -> dict[str, Tensor]:
    """Return a batch of sequences of unlike lengths, filled up with token 0."""
    ids = torch.randint(3, 50, (rows, 9), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(9) < torch.arange(rows)[:, None] % 5 + 4).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def _torchvision(
    name: str, head: str | None, build: Callable[[], nn.Module], *, size: int = 32, **expected: Any
) -> Family:  # fields of Family
    return Family(f"torchvision {name}", build, _images(size), head, **expected)


def _timm(
    name: str, head: str | None, *, size: int = 32, options: Mapping[str, Any] | None = None, **expected: Any
) -> Family:
    build = partial(timm.create_model, name, num_classes=CLASSES, **(options or {}))
    return Family(f"timm {name}", build, _images(size), head, **expected)


def _hf(
    name: str, head: str | None, inputs: Callable[[int, int], Inputs], *, options: Mapping[str, Any], **expected: Any
) -> Family:
    task = "ImageClassification" if inputs is not _tokens else "SequenceClassification"
    kind = getattr(_HF, f"{name}For{task}")

    def build() -> nn.Module:
        model: nn.Module = kind(kind.config_class(num_labels=CLASSES, **options))
        return model

    return Family(f"transformers {name}", build, inputs, head, **expected)


_TWO_HEADS = r"are the mean of what they make: '{}' .*'{}' .*head=.*own logits.*torch\.cat"
_TOKENS = r"`score`.*every token.*fit_features"
_BERT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
}
_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
    "patch_size": 16,
}

_OF_TORCHVISION = (
    _torchvision(
        "resnet", "fc", lambda: _TV.ResNet(_TV.resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES, width_per_group=64)
    ),
    _torchvision("densenet", "classifier", lambda: _TV.DenseNet(8, (1, 1, 1, 1), 16, num_classes=CLASSES)),
    _torchvision("mobilenet_v2", "classifier.1", lambda: _TV.mobilenet_v2(width_mult=0.25, num_classes=CLASSES)),
    _torchvision("mobilenet_v3", "classifier.3", lambda: _TV.mobilenet_v3_small(width_mult=0.5, num_classes=CLASSES)),
    _torchvision("efficientnet", "classifier.1", _efficientnet),
    _torchvision(
        "convnext",
        "classifier.2",
        lambda: _TV.ConvNeXt(
            [convnext.CNBlockConfig(8, 16, 1), convnext.CNBlockConfig(16, None, 1)], num_classes=CLASSES
        ),
    ),
    _torchvision("vit", "heads.head", lambda: _TV.VisionTransformer(32, 16, 1, 2, 16, 32, num_classes=CLASSES)),
    _torchvision("swin", "head", lambda: _TV.SwinTransformer([4, 4], 8, [1, 1], [1, 2], [2, 2], num_classes=CLASSES)),
    _torchvision("vgg", "classifier.6", vgg),
    _torchvision(
        "regnet",
        "fc",
        lambda: regnet.RegNet(regnet.BlockParams.from_init_params(8, 16, 16.0, 2.5, 8), num_classes=CLASSES),
    ),
    _torchvision("shufflenet", "fc", lambda: _TV.shufflenet_v2_x0_5(num_classes=CLASSES)),
    _torchvision("mnasnet", "classifier.1", lambda: _TV.mnasnet0_5(num_classes=CLASSES)),
    _torchvision("googlenet", "fc", lambda: _TV.GoogLeNet(num_classes=CLASSES, aux_logits=False, init_weights=False)),
    _torchvision(
        "inception",
        "fc",
        lambda: _TV.Inception3(num_classes=CLASSES, aux_logits=False, init_weights=False),
        size=75,
    ),
    _torchvision(
        "squeezenet",
        None,
        lambda: _TV.squeezenet1_1(num_classes=CLASSES),
        size=64,
        refusal=r"`classifier\.1`.*1x1 convolution.*not the mean.*ReLU",
    ),
)

_OF_TIMM = (
    _timm("resnet10t", "fc"),
    _timm("resnetv2_50", "head.fc", options={"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32)}),
    _timm("dla46_c", "fc", size=64),
    _timm("vit_tiny_patch16_224", "head", options={"img_size": 32, "depth": 1}),
    _timm(
        "deit_tiny_distilled_patch16_224",
        "head_dist",
        options={"img_size": 32, "depth": 1},
        refusal=_TWO_HEADS.format("head", "head_dist"),
        choice={"head": "head_dist"},
        is_output=False,
    ),
    _timm(
        "levit_128s",
        "head.linear",
        size=64,
        options={"img_size": 64},
        refusal=_TWO_HEADS.format("head.linear", "head_dist.linear"),
        choice={"head": "head"},
        is_output=False,
    ),
    _timm("convnext_atto", "head.fc", options={"dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}),
    _timm(
        "swin_tiny_patch4_window7_224",
        "head.fc",
        options={"img_size": 32, "window_size": 4, "depths": (1, 1), "embed_dim": 16, "num_heads": (1, 2)},
    ),
    _timm("test_efficientnet", "classifier"),
    _timm("mobilenetv3_small_050", "classifier"),
    _timm("ghostnet_050", "classifier"),
    _timm("eva02_tiny_patch14_224", "head", size=28, options={"img_size": 28, "depth": 1}),
    _timm("beit_base_patch16_224", "head", options={"img_size": 32, "depth": 1, "embed_dim": 48, "num_heads": 3}),
    _timm("regnetx_002", "head.fc"),
    _timm("mobilenetv4_conv_small_035", "classifier"),
    _timm("edgenext_xx_small", "head.fc", size=64),
    _timm("starnet_s1", "head"),
    Family(
        "timm coatnet",
        partial(
            MaxxVit,
            MaxxVitCfg(embed_dim=(16, 32), depths=(1, 1), block_type=("C", "T"), stem_width=8),
            img_size=32,
            num_classes=CLASSES,
        ),
        _images(32),
        "head.fc",
    ),
    Family(
        "timm mixer",
        partial(MlpMixer, num_classes=CLASSES, img_size=32, patch_size=16, num_blocks=1, embed_dim=16),
        _images(32),
        "head",
    ),
    Family(
        "timm volo",
        partial(
            VOLO,
            [1, 1, 1, 1],
            img_size=32,
            num_classes=CLASSES,
            embed_dims=[16, 16, 16, 16],
            num_heads=[1, 2, 2, 2],
            mlp_ratio=2.0,
        ),
        _images(32),
        "head",
        refusal=r"may combine.*'aux_head' .*, on every token.*`head=\"head\"`.*own logits",
        choice={"head": "head"},
        is_output=False,
    ),
)

_OF_TRANSFORMERS = (
    _hf("ViT", "classifier", _pixel_values(32), options=_VIT),
    _hf("DeiT", "classifier", _pixel_values(32), options=_VIT),
    _hf("Beit", "classifier", _pixel_values(32), options=_VIT),
    _hf(
        "Swin",
        "classifier",
        _pixel_values(32),
        options={"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    ),
    _hf(
        "ConvNext",
        "classifier",
        _pixel_values(32),
        options={"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    ),
    _hf(
        "ResNet",
        "classifier.1",
        _pixel_values(32),
        options={"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    ),
    _hf("Bert", "classifier", _tokens, options=_BERT),
    _hf("Roberta", "classifier.out_proj", _tokens, options=_BERT),
    _hf("Electra", "classifier.out_proj", _tokens, options=_BERT),
    _hf(
        "DistilBert",
        "classifier",
        _tokens,
        options={"vocab_size": 50, "dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2},
    ),
    _hf(
        "GPT2",
        None,
        _tokens,
        options={"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2, "pad_token_id": 0},
        refusal=_TOKENS,
    ),
    _hf("Llama", None, _tokens, options=_BERT, refusal=_TOKENS),
)

_PLAIN = (
    Family("MLP", mlp, _vectors, "2"),
    Family("CNN", small_cnn, _images(32), "5"),
    Family("parametrized head", parametrized_mlp, _vectors, "2"),
    Family("network in network", network_in_network, _images(32), "2"),
    Family(
        "softmax after the head",
        lambda: nn.Sequential(mlp(), nn.Softmax(1)),
        _vectors,
        "0.2",
        refusal=r"a softmax.*`head=\"0\.2\"`",
        choice={"head": "0.2"},
        is_output=False,
    ),
    Family(
        "tuple of outputs",
        lambda: Answering(lambda logits: (logits.mean(1), logits)),
        _vectors,
        "fc",
        refusal=r"is a tuple.*`logits=1`",
        choice={"logits": 1},
    ),
    Family(
        "dict of outputs",
        lambda: Answering(lambda logits: {"out": logits, "probabilities": logits.softmax(1)}),
        _vectors,
        "fc",
        refusal=r"is a dict.*`logits=\"out\"`",
        choice={"logits": "out"},
    ),
    Family(
        "nothing linear",
        lambda: nn.Sequential(nn.Conv2d(3, CLASSES, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten()),
        _images(32),
        None,
        refusal=r"no nn\.Linear.*fit_features",
    ),
)

FAMILIES = (*_OF_TORCHVISION, *_OF_TIMM, *_OF_TRANSFORMERS, *_PLAIN)
