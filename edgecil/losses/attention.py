"""Class-specific attention maps (Grad-CAM) and their distillation, LwM section 4.1.

With scores z_c = w_c . GAP(A) + b_c the derivative d z_c / d A_k,ij is w_ck / (h w) at every
position, so Grad-CAM of the map that enters the pooling is a class activation map: no second
backward pass is needed, for the loss or for its gradient. The weights w are *not* constants:
the gradient reaches them too, exactly as double backward would send it. The common factor
1 / (h w) cancels in the L2 normalisation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgecil.nets.arithmetic import full_precision
from edgecil.nets.net import Net, Outputs


def class_attention(feature_map: Tensor, channel_weights: Tensor) -> Tensor:
    """Return Q = ReLU(sum_k alpha_k A_k), flattened to ``(N, h * w)`` (LwM eqs. (2)-(3)).

    ``feature_map`` A is ``(N, D, h, w)``, ``channel_weights`` alpha ``(N, D)``.
    """
    with full_precision(feature_map):
        summed = torch.bmm(channel_weights.float()[:, None, :], feature_map.float().flatten(2))
        return torch.relu(summed[:, 0, :])


def grad_attention(scores: Tensor, feature_map: Tensor, *, create_graph: bool) -> Tensor:
    """Return the same Q ``(N, h * w)`` for any head, by autograd through ``scores`` ``(N,)``.

    ``feature_map`` must be a tensor of the graph that made ``scores``. With ``create_graph``
    the result is differentiable to second order (the student's), without it a constant.
    """
    # One image's score depends on its own map alone only in eval mode or downstream of the
    # last batch norm, which is where the map is taken, so the sum gives per-image gradients.
    (gradient,) = torch.autograd.grad(scores.sum(), feature_map, create_graph=create_graph)
    return class_attention(feature_map, gradient.float().sum(dim=(2, 3)))


def attention(net: Net, outputs: Outputs, classes: Tensor, *, trains: bool) -> Tensor:
    """Return the attention maps ``(N, h * w)`` of ``net`` for ``classes`` ``(N,)``.

    In closed form where the head has one, else by autograd through the head. With ``trains``
    they are differentiable with respect to activations and head weights alike.
    """
    closed_form = getattr(net.head, "logit_gradient", None)
    if closed_form is not None:
        return class_attention(outputs.map, closed_form(outputs.features.float(), classes))
    with torch.enable_grad():
        feature_map = outputs.map if trains else outputs.map.detach().requires_grad_()
        logits = net.head(feature_map.mean(dim=(2, 3)))
        scores = logits.float().gather(1, classes[:, None])[:, 0]
        return grad_attention(scores, feature_map, create_graph=trains)


def attention_distance(teacher: Tensor, student: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Return L_AD: the L1 distance of L2-normalised maps, mean over images; a scalar.

    LwM eq. (4). Both are ``(N, h * w)``. An image whose teacher or student map is zero
    everywhere has no direction to compare and contributes nothing.
    """
    lengths = [q.norm(dim=1, keepdim=True) for q in (teacher, student)]
    # where() before the division: a zero map must send a zero gradient, not 0 / 0.
    usable = (lengths[0] > epsilon) & (lengths[1] > epsilon)
    unit = [
        q / torch.where(usable, n, torch.ones_like(n))
        for q, n in zip((teacher, student), lengths, strict=True)
    ]
    distances: Tensor = (unit[0] - unit[1]).abs().sum(dim=1) * usable[:, 0]
    return distances.mean()
