"""Every method on a network with a hidden layer in its head, or a refusal before training."""

import pytest
import toys

from edgecil.errors import UsageError

pytestmark = pytest.mark.usefixtures("small_generators")

REFUSED = {
    "m2kd": "keeps the rows of a linear head",
    "lwf-mc+mmd": "keeps the rows of a linear head",
    "icarl+m2kd": "keeps the rows of a linear head",
    "lwf-mc+aux": "keeps the rows of a linear head",
    "icarl+aux": "keeps the rows of a linear head",
    "icarl+mnemonics": "differentiate twice",
    "lwf-coreset+mnemonics:oversample=off": "differentiate twice",
    "lucir+mnemonics:weight_transfer=on": "differentiate twice",
}


@pytest.mark.parametrize("method", toys.METHODS)
def test_it_learns_on_a_mobile_network_or_says_why_not(method, tmp_path):
    def learn():
        return toys.learn(method, (2, 1), tmp_path, count=4, arch="mobilenet_v3_small")

    if method in REFUSED:
        with pytest.raises(UsageError, match=REFUSED[method]) as caught:
            learn()
        assert "--arch resnet32" in caught.value.hint
    else:
        assert learn()[-1].model.net.classes == 3
