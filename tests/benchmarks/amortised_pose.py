"""The harmonic rVAE with a guessed angle: what is lost when the circle is not integrated over.

Encoder, decoder, noise, tangents and prior are those of ``models.rvae.RVAE``; only the angle comes from the
encoder, as a wrapped normal around a direction that turns with the window, and one sample of it stands for
the whole circle.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import relu

from models.layers import linear
from models.posterior import Posterior, Terms
from models.rvae import RVAE, RVAEConfig
from models.spatial_rvae import kl_wrapped_normal


class AmortisedRVAE(RVAE):
    """An RVAE whose angle is said by the encoder."""

    def __init__(
        self, channels: int, window_px: int, config: RVAEConfig, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(channels, window_px, config, generator=generator)
        random = torch.Generator().manual_seed(0) if generator is None else generator
        self.turns = 1
        self.direct = linear(config.pooled, 2, random)

    def _angle_of(self, coefficient_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Say the angle and its log sd: the mean direction of what each orientation answers."""
        seen = self.whitened(coefficient_ND) @ self.oriented_filters()
        read_NOQ = relu(seen.view(-1, self.orientations, self.config.filters) + self.bias_Q)
        said_NO2 = self.direct(relu(self.combine(read_NOQ)))
        step_O = torch.arange(self.orientations) * (2 * math.pi / self.orientations)
        x_N = (said_NO2[..., 0] * torch.cos(step_O)).sum(1) + 1e-6
        y_N = (said_NO2[..., 0] * torch.sin(step_O)).sum(1)
        return torch.atan2(y_N, x_N), said_NO2[..., 1].mean(1).clamp(-6.0, 2.0)

    def terms_of(
        self,
        coefficient_ND: Tensor,
        generator: torch.Generator,
        label_N: Tensor | None = None,
        shown_N: Tensor | None = None,
    ) -> Terms:
        """Compute the negative ELBO from one sample of the content and one of the angle."""
        angle_N, log_sd_N = self._angle_of(coefficient_ND)
        sampled_N = angle_N + torch.exp(log_sd_N) * torch.randn(angle_N.shape, generator=generator)
        mean_NZ, content_log_sd_NZ = self.content_of(coefficient_ND)
        away_NZ = torch.randn(mean_NZ.shape, generator=generator)
        content_NZ = mean_NZ + torch.exp(content_log_sd_NZ) * away_NZ
        shown_NZ = content_NZ if shown_N is None else content_NZ[shown_N]
        upright_ND = self.turned(coefficient_ND, -sampled_N)
        entropy_N = (content_log_sd_NZ + 0.5 * away_NZ.square() + 0.5 * math.log(2 * math.pi)).sum(1)
        none = torch.zeros(len(mean_NZ))
        return Terms(
            -self._integrated(upright_ND, shown_NZ).log_likelihood_NG[:, 0],
            -(entropy_N + self._log_mixture(content_NZ).logsumexp(1))[:, None],
            kl_wrapped_normal(log_sd_N),
            none,
            none,
        )

    def posterior(self, windows_NCHW: Tensor) -> Posterior:
        """Say content and angle of each window; shift and nuisances are left out."""
        with torch.no_grad():
            coefficient_ND = self.read(windows_NCHW)
            mean_NZ, log_sd_NZ = self.content_of(coefficient_ND)
            angle_N, angle_log_sd_N = self._angle_of(coefficient_ND)
        none_NZ = mean_NZ[:, :0]
        no_shift = mean_NZ.new_zeros(len(mean_NZ), 2)
        one_N = torch.ones(len(mean_NZ), dtype=torch.long)
        return Posterior(
            mean_NZ,
            log_sd_NZ,
            angle_N,
            angle_log_sd_N.exp(),
            one_N,
            no_shift,
            no_shift,
            none_NZ,
            none_NZ,
            none_NZ,
        )
