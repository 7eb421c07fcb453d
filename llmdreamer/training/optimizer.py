"""The optimizer of the whole agent: LaProp or Adam, with a learning rate for each parameter group."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llmdreamer.types import Metrics
from llmdreamer.utils import distributed
from llmdreamer.utils.errors import ConfigError

if TYPE_CHECKING:
    from llmdreamer.config import OptimizerConfig

BEHAVIOR = ("actor", "critic")
"""Networks of `Agent.behavior` that have their own parameter group."""
SKIPPED = "optimizer/skipped"
"""The metric that is 1 if an update was skipped, else 0."""

CONSTANTS = {"betas", "eps", "agc"}
"""Options that a group takes from the configuration, not from a checkpoint. Rates are set at each update."""

MIN_NORM = 1e-3
"""Tensors of a smaller norm are clipped as if they had this norm; otherwise zeros could never grow."""


class LaProp(torch.optim.Optimizer):
    """LaProp: Adam whose momentum averages normalized gradients. Gradients are clipped per tensor first.

    Sources: LaProp, arXiv:2002.04839; AGC, arXiv:2102.06171, per tensor as in danijar/dreamerv3
    (2025). No packaged LaProp clips per tensor and runs as fused list operations.

    Args:
        agc: largest norm of a gradient, as a share of its parameter's norm.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-20,
        agc: float = 0.3,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "agc": agc, "updates": 0})
        self.finite: Tensor | None = None
        """False if the gradients must not be used: a scalar bool on their device. None: they are used."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        If the caller has set `finite` to a false tensor, every weight and moment stays bit for bit as it was.
        The decision is arithmetic on the device, so the CPU does not wait for it, as it would with an `if`.
        """
        assert closure is None, "LaProp takes no closure"
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if params:
                self._update(group, params)

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for param in params:
            if not self.state[param]:
                self.state[param] = {
                    "square": torch.zeros_like(param),
                    "momentum": torch.zeros_like(param),
                }
        square = [self.state[param]["square"] for param in params]
        momentum = [self.state[param]["momentum"] for param in params]
        like, (beta1, beta2) = params[0], group["betas"]
        finite = like.new_ones((), dtype=torch.bool) if self.finite is None else self.finite
        # Double precision, because 1 - beta ** updates is the difference of two numbers near 1.
        updates = (group["updates"] + finite).double()
        group["updates"] = updates
        not_finite = ~finite
        for param in params:
            _gradient(param).masked_fill_(not_finite, 0.0)  # NaN * 0 would be NaN
        gradient = clip_adaptively(params, [_gradient(param) for param in params], group["agc"])
        torch._foreach_mul_(square, torch.where(finite, beta2, 1.0).to(like.dtype))
        torch._foreach_addcmul_(square, gradient, gradient, 1 - beta2)
        # Before the first finite update the correction is 0, and so are gradient and square.
        correction = (1 - beta2**updates).clamp(min=1 - beta2).to(like.dtype)
        scale = torch._foreach_div(square, correction)
        torch._foreach_sqrt_(scale)
        # Denormal squares are flushed to zero, so sqrt(square) can be 0 for a gradient of 1e-18. Divided by
        # eps = 1e-20 alone, it would be hundreds.
        smallest = math.sqrt(torch.finfo(like.dtype).tiny / (1 - beta2))
        torch._foreach_add_(scale, max(group["eps"], smallest))
        torch._foreach_div_(gradient, scale)
        torch._foreach_mul_(momentum, torch.where(finite, beta1, 1.0).to(like.dtype))
        torch._foreach_add_(momentum, gradient, alpha=1 - beta1)
        rate = group["lr"] / (1 - beta1**updates).clamp(min=1 - beta1)
        change = torch._foreach_mul(momentum, torch.where(finite, -rate, 0.0).to(like.dtype))
        torch._foreach_add_(params, change)


def clip_adaptively(params: list[Tensor], gradients: list[Tensor], share: float) -> list[Tensor]:
    """Scale each gradient down to at most `share` of its parameter's norm."""
    limit = torch.stack(torch._foreach_norm(params)).clamp(min=MIN_NORM) * share
    limit = limit.clamp(min=torch.finfo(limit.dtype).tiny)  # 0 / 0 would be NaN
    norm = torch.stack(torch._foreach_norm(gradients))
    factor = 1 / (norm / limit).clamp(min=1)
    return list(torch._foreach_mul(gradients, list(factor.unbind())))


def _gradient(param: Tensor) -> Tensor:
    assert param.grad is not None
    return param.grad


class AgentOptimizer:
    """LaProp or Adam over groups of parameters, with warm-up and final decay.

    The groups are backbone, adapters, actor, critic and the rest. With Adam, as in DreamerV3 of 2023
    (arXiv:2301.04104v1), the gradients of world model, actor and critic are each clipped by their norm.

    The backbone is frozen for the first `freeze_backbone_updates` updates, so that gradients from
    untrained heads do not move it. Its own warm-up starts after them.
    """

    def __init__(self, agent: nn.Module, config: OptimizerConfig, total_updates: int) -> None:
        self.config = config
        self.total_updates = max(1, total_updates)
        self.updates = 0
        groups = _groups(agent)
        rates = {
            "backbone": config.backbone_lr,
            "lora": config.lora_lr,
            "actor": config.actor_lr,
            "critic": config.critic_lr,
        }
        self.rates = {
            name: config.lr if (rate := rates.get(name)) is None else rate for name in groups
        }
        self.inner = _optimizer(groups, config)

    def step(self, loss: Tensor) -> Metrics:
        """Make one update that lowers `loss`, or its mean over all processes.

        If the loss or a gradient is not finite, the update is skipped: only the schedule advances.

        Returns:
            The gradient norm of each group, and `SKIPPED`, which is 1 or 0.
        """
        for group in self.inner.param_groups:
            still = self.config.freeze_backbone_updates if group["name"] == "backbone" else 0
            group["lr"] = self._schedule(still) * self.rates[group["name"]]
        self.inner.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        distributed.average_gradients(
            param for group in self.inner.param_groups for param in group["params"]
        )
        norms = {group["name"]: _norm(group["params"]) for group in self.inner.param_groups}
        # A norm is finite only if every gradient in it is.
        numbers = torch.stack([distributed.mean(loss.detach()), *norms.values()])
        finite = numbers.isfinite().all()
        # A flag on the device: with an `if`, the CPU would wait for the device here.
        if isinstance(self.inner, LaProp):
            self.inner.finite = finite
        else:
            self._clip()
            self.inner.found_inf = (~finite).float()  # type: ignore[attr-defined]  # of torch's fused Adam
        self.inner.step()
        self.updates += 1
        metrics = {f"optimizer/{name}_gradient_norm": norm for name, norm in norms.items()}
        return metrics | {SKIPPED: (~finite).float()}

    def _clip(self) -> None:
        """Scale the gradients of world model, actor and critic down to their largest norms."""
        world: list[Tensor] = []
        for group in self.inner.param_groups:
            if group["name"] not in BEHAVIOR:
                world += group["params"]
            elif self.config.behavior_clip is not None:
                nn.utils.clip_grad_norm_(group["params"], self.config.behavior_clip)
        if self.config.clip is not None:
            nn.utils.clip_grad_norm_(world, self.config.clip)

    def _schedule(self, still: int) -> float:
        """Return the share of the full learning rate: zero, linear rise, plateau, linear fall."""
        if self.updates < still:
            return 0.0
        rise = min(1.0, (self.updates - still + 1) / max(1, self.config.warmup))
        falling = self.config.anneal * self.total_updates
        left = self.total_updates - self.updates
        fall = min(1.0, max(0.0, left / falling)) if falling > 0 else 1.0
        return rise * fall

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, self.config.kind: self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict`.

        Raises:
            ConfigError: if the state is of another kind of optimizer.
        """
        if self.config.kind not in state:
            raise ConfigError(
                f"algo.optimizer.kind={self.config.kind}: the checkpoint is of another kind"
            )
        self.updates = state["updates"]
        configured = [
            {key: group[key] for key in CONSTANTS & group.keys()}
            for group in self.inner.param_groups
        ]
        self.inner.load_state_dict(state[self.config.kind])
        # torch has overwritten these with the values in the checkpoint.
        for group, constants in zip(self.inner.param_groups, configured, strict=True):
            group.update(constants)


def _optimizer(groups: dict[str, list[Tensor]], config: OptimizerConfig) -> torch.optim.Optimizer:
    named: list[dict[str, Any]] = [
        {"params": params, "name": name} for name, params in groups.items()
    ]
    betas = (config.beta1, config.beta2)
    if config.kind == "laprop":
        assert config.agc is not None, "config.checks requires it"
        return LaProp(named, config.lr, betas, config.eps, config.agc)
    for group in named:
        if group["name"] in BEHAVIOR and config.behavior_eps is not None:
            group["eps"] = config.behavior_eps
    # The fused form skips an update by a flag on the device, and keeps its step counters there.
    return torch.optim.Adam(named, config.lr, betas, config.eps, fused=True)


def _groups(agent: nn.Module) -> dict[str, list[Tensor]]:
    """Sort the trainable parameters into groups; empty groups are left out."""
    groups: dict[str, list[Tensor]] = {name: [] for name in ("backbone", "lora", "rest", *BEHAVIOR)}
    for name, param in agent.named_parameters():
        if param.requires_grad:
            network = next((key for key in BEHAVIOR if name.startswith(f"behavior.{key}.")), "rest")
            kind = "lora" if ".lora_" in name else "backbone" if ".backbone." in name else network
            groups[kind].append(param)
    return {kind: params for kind, params in groups.items() if params}


def _norm(params: list[Tensor]) -> Tensor:
    return torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
