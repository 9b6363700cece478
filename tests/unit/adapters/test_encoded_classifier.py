"""A head behind an encoder: the same classifier, read in eval mode, and given back as it was."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from opnp import OPNP, Ratios
from opnp.adapters.toolkits import EncodedClassifier, encoded, owner_of
from opnp.errors import InputTypeError
from tests.contract.snapshot import unchanged
from tests.unit.adapters.encoder_world import Net, inputs_and_labels, loader

INPUTS, LABELS = inputs_and_labels(40)


def test_it_is_read_as_the_classifier_itself_is() -> None:
    net = Net()
    classifier = EncodedClassifier(net.features, net.fc.weight, net.fc.bias)
    with unchanged(net, "reading"):
        found = OPNP(ratios=Ratios(w_min=0.3)).fit(classifier, loader(INPUTS, LABELS), head=classifier.head)
    expected = OPNP(ratios=Ratios(w_min=0.3)).fit(net, loader(INPUTS, LABELS))
    assert found.sensitivity.weight.equal(expected.sensitivity.weight)


def test_logits_are_those_of_the_head_in_its_dtype() -> None:
    net = Net().eval()
    halved = EncodedClassifier(net.features, net.fc.weight.double(), net.fc.bias.double())
    torch.testing.assert_close(halved(INPUTS), net(INPUTS).double())
    assert not any(parameter.requires_grad for parameter in halved.head.parameters())
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("is_named", [True, False])
def test_features_are_taken_in_eval_mode_where_the_module_is_known(is_named: bool) -> None:
    net = Net()

    def encoder(inputs: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert net.training != is_named
        return net.features(inputs)

    if is_named:
        with unchanged(net, "encoding"):
            found = encoded(encoder, INPUTS, owner=net)
        torch.testing.assert_close(found, net.quiet_features(INPUTS))
    else:
        assert encoded(encoder, INPUTS).shape == net.quiet_features(INPUTS).shape


def test_the_module_is_found_behind_methods_and_partial_functions() -> None:
    net = Net()
    for encoder in (net, net.features, partial(net.features), partial(partial(net), return_feature=True)):
        assert owner_of(encoder) is net
    assert owner_of("".join) is None


def test_an_encoder_of_something_else_is_refused() -> None:
    for encoder in (nn.Identity(), lambda inputs: inputs):
        with pytest.raises(InputTypeError, match=r"must return a tensor of features, .*got list"):
            encoded(lambda inputs, inner=encoder: [inner(inputs)], INPUTS)  # type: ignore[arg-type, misc]  # wrong on purpose
