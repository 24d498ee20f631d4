"""What every rVAE family says of a window, and what its training minimises.

Axes: N window, Z content latent, K class, V nuisance.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Posterior(NamedTuple):
    """What a model believes of each window.

    Attributes
    ----------
    mean_NZ, log_sd_NZ
        Content: independent normals.
    angle_N, angle_sd_N
        Turn of the content in rad, from columns (x) towards rows (y), and its circular sd.
    symmetry_N
        A turn of the content by a full circle over this number leaves it as it is, as far as its noise
        tells: the angle is one of so many, and its sd is meant among them. Int64.
    shift_N2, shift_sd_N2
        Shift ``(x, y)`` of the content in half windows.
    class_probability_NK
        Of the components of the mixture, or of the classes that labels named; K is 0 where there are none.
    nuisance_NV, nuisance_sd_NV
        What the model's ``nuisances`` names, each counted from how the decoder draws it.
    """

    mean_NZ: Tensor
    log_sd_NZ: Tensor
    angle_N: Tensor
    angle_sd_N: Tensor
    symmetry_N: Tensor
    shift_N2: Tensor
    shift_sd_N2: Tensor
    class_probability_NK: Tensor
    nuisance_NV: Tensor
    nuisance_sd_NV: Tensor


class Terms(NamedTuple):
    """The parts of a negative ELBO, per window in nats.

    Attributes
    ----------
    error_N
        Negative log likelihood; of a model that integrates the pose out, with the pose's share.
    kl_content_NZ
        Divergence of the content from its prior; one column in all where the prior does not factorise.
    kl_angle_N, kl_shift_N
        Divergences of an amortised pose from its prior; 0 where the pose is integrated out.
    extra_N
        What training adds to the bound and is no part of it.
    """

    error_N: Tensor
    kl_content_NZ: Tensor
    kl_angle_N: Tensor
    kl_shift_N: Tensor
    extra_N: Tensor

    def negative_elbo(self, kl_weight: float = 1.0) -> Tensor:
        """Join the parts, shape ``(N,)``; ``kl_weight`` below 1 during the warm-up."""
        return self.error_N + kl_weight * (self.kl_content_NZ.sum(1) + self.kl_angle_N + self.kl_shift_N)

    def loss(self, kl_weight: float = 1.0) -> Tensor:
        """Say what a step of the training minimises, shape ``(N,)``."""
        return self.negative_elbo(kl_weight) + self.extra_N
