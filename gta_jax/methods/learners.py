"""What methods share whose networks all learn: drawing, one stage, strong views; no teacher."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax

from gta_jax.methods.contract import Stage, Tools, TrainState, init_state
from gta_jax.methods.options import check_fields, number
from gta_jax.models.heads import MakeHead
from gta_jax.ops import photometric
from gta_jax.ops.network import Array, Network, Variables
from gta_jax.ops.optim import Optimizer


@dataclasses.dataclass(frozen=True)
class Learners:
  """A method whose scored networks all learn, from labelled and unlabelled images, in one stage.

  A subclass has summary, paper, scored and `step`, and overrides what differs.
  """

  scored: ClassVar[tuple[str, ...]] = ('model',)
  compared: ClassVar[tuple[str, ...]] = ()
  published: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

  def __post_init__(self):
    check_fields(self)

  @property
  def heads(self) -> Mapping[str, MakeHead]:
    return {}

  @property
  def uses_unlabelled(self) -> bool:
    return True

  @property
  def cost(self) -> float:
    raise NotImplementedError(f'{type(self).__name__} does not say its cost, by which budgets are '
                              'divided; docs/new_method.md says how to count it.')

  def check(self, tools: Tools) -> tuple[str, ...]:
    """See Method."""
    del tools
    return ()

  def optimizers(self, tools: Tools) -> dict[str, Optimizer]:
    """Of each network the config's."""
    return {name: tools.make_optimizer() for name in self.scored}

  def init(self, key: Array, draw: Callable[..., Variables], tools: Tools) -> TrainState:
    """See Method. Pretrained weights are common to all; what is drawn is each one's own."""
    return init_state(key, draw_each(key, draw, self.scored), self.optimizers(tools))

  def stages(self, tools: Tools) -> tuple[Stage, ...]:
    """See Method. One stage, from the first step on."""
    return (Stage('main', tools.total_steps, self.step(tools), ('labelled', 'unlabelled')),)

  def step(self, tools: Tools) -> Callable:
    """The step of the one stage."""
    raise NotImplementedError


def draw_each(
  key: Array, draw: Callable[..., Variables], names: Sequence[str]
) -> dict[str, Variables]:
  """Variables of each network, drawn by itself; the first as the run's seed gives them."""
  return {name: draw(jax.random.fold_in(key, i)) if i else draw() for i, name in enumerate(names)}


@dataclasses.dataclass(frozen=True)
class StrongView:
  """Options of strong photometric views; the defaults are UniMatch's."""

  jitter: float = number(0.8, most=1)  # probability of colour jitter for an image
  hue: float = number(0.25, most=0.5)  # largest shift of the jitter's hue, in turns
  greyscale: float = number(0.2, most=1)  # probability of greyscale for an image
  blur: float = number(0.5, most=1)  # probability of a Gaussian blur for an image

  def strong_colours(self, key: Array, images: Array, network: Network) -> Array:
    """Images with other colours, [B,H,W,3]; padding is no longer blank."""
    return photometric.strong_view(
      key, images, network, jitter=self.jitter, hue=self.hue, greyscale=self.greyscale,
      blur=self.blur)
