"""What every method gives and gets; loop, evaluation, checkpoints and report know no more.

A method is one file: a frozen dataclass of its options, which are the config's `method.*`, that can
make the first state and say in which stages it trains.
"""

import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from gta_jax.data.sources import Dataset
from gta_jax.evaluation.windows import Prediction
from gta_jax.methods.accumulation import WHOLE, Accumulation
from gta_jax.models.heads import MakeHead
from gta_jax.ops import trees
from gta_jax.ops.losses import SupervisedLoss
from gta_jax.ops.network import Array, Network, Variables
from gta_jax.ops.optim import Optimizer

Batch = Mapping[str, Array]
Metrics = dict[str, Array]


class TrainState(flax.struct.PyTreeNode):
  """Everything that training changes, as one immutable tree. No two leaves share a buffer.

  Attributes:
    step: int32 [], steps of the run that are done.
    key: PRNG key of the run; a step folds its number in and never changes it.
    networks: name -> {'params', 'batch_stats'}, such as teacher, student and assistant.
    optimizers: name -> optax state, of those that learn.
    memory: what a method remembers besides: queues, banks, thresholds that move.
  """

  step: Array
  key: Array
  networks: dict[str, Variables]
  optimizers: dict[str, Any]
  memory: Any = ()

  def with_networks(self, **networks: Variables) -> 'TrainState':
    """The state with these networks in the place of those of the same names."""
    return self.replace(networks=self.networks | networks)

  def step_key(self) -> Array:
    """The key of the step that is about to be taken."""
    return jax.random.fold_in(self.key, self.step)


Step = Callable[[TrainState, dict[str, Batch]], tuple[TrainState, Metrics]]


class Host(NamedTuple):
  """What a stage may use outside of compiled programs.

  workdir: of the run, on storage that all processes share.
  dataset: of the run.
  predict: ({name: variables}, image ids, protocol, done=()) -> iterator of (id, {name: Prediction
    of [H,W]}), in an order that the sizes of all the ids decide. Batches of nothing but `done` are
    left out; the others stay the same to the last bit.
  note: prints a line for the user.
  part: (i, n): this is the i-th of n processes, which share the work.
  """

  workdir: Path
  dataset: Dataset
  predict: Callable[..., Iterator[tuple[str, dict[str, Prediction]]]]
  note: Callable[[str], None] = print
  part: tuple[int, int] = (0, 1)


def same_state(state: TrainState) -> TrainState:
  """What is done at the start of a stage that needs no hand-over: nothing."""
  return state


class Stage(NamedTuple):
  """One phase of a run, resumable at any step of it.

  name: such as 'warmup'; unique within a method.
  steps: how many.
  step: (state, {stream: batch}) -> (state, metrics); pure, jitted by the loop, adds one to
    state.step. The tree, shapes and dtypes of the state are those of the method's first state.
  streams: what the step reads, of 'labelled' {'image' uint8 [B,H,W,3], 'label' uint8 [B,H,W], 255 =
    ignore}, 'unlabelled' {'image', 'valid' bool [B,H,W]} and 'pseudo_labelled' (unlabelled images
    with 'label' as the stage's data set has it, and 'valid'; where its reader has confidences also
    'confidence' uint8 [B,H,W], in 255ths).
  enter: a pure function of the state, jitted by the loop, applied once before the first step.
  prepare: on the host, in every process, before `enter` and again when a run goes on within the
    stage: (host, state or None) -> None. Idempotent; the state, copied on each device, is that of
    the stage before, and None where the run goes on later than the stage's start. A signal may cut
    it short at any point.
  dataset: (host) -> the data set that the stage's streams read; None for the run's.
  sizes: stream -> images a step of all devices together, where not the config's; a multiple of the
    config's labelled or unlabelled batch, or a sum of the two, splits over devices as they do.
  """

  name: str
  steps: int
  step: Step
  streams: tuple[str, ...] = ('labelled',)
  enter: Callable[[TrainState], TrainState] = same_state
  prepare: Callable[[Host, TrainState | None], None] | None = None
  dataset: Callable[[Host], Dataset] | None = None
  sizes: Mapping[str, int] = types.MappingProxyType({})


class Tools(NamedTuple):
  """What a method is given.

  network: of all of the method's networks.
  loss: of ground truth.
  make_optimizer: (*, schedule='poly' | 'constant', first_step=0, steps=None, undecayed=()) -> an
    optimiser with the config's rates; by default its schedule lasts for the whole run. undecayed
    are keys of the parameters that weight decay spares.
  total_steps: of the whole run.
  epoch_steps: of a pass over the unlabelled images.
  num_classes: K.
  crop: side of the training images in pixels.
  labelled_batch, unlabelled_batch: images a step of all devices together.
  accumulation: how batches are cut into passes.
  classes: K names; () as long as the data have not been read.
  """

  network: Network
  loss: SupervisedLoss
  make_optimizer: Callable[..., Optimizer]
  total_steps: int
  epoch_steps: int
  num_classes: int
  crop: int
  labelled_batch: int
  unlabelled_batch: int
  accumulation: Accumulation = WHOLE
  classes: tuple[str, ...] = ()


class Method(Protocol):
  """A method's options and what follows from them; a frozen dataclass.

  Attributes:
    summary: what it is, in a line.
    paper: authors, title, venue.
    scored: networks that are evaluated; the first one decides which step is best, and predicts.
    compared: two networks whose distance by key is logged, or ().
    published: data set ('voc', 'cityscapes') -> fields of the config, such as 'optim.rate', as the
      method was published where they differ from the config file's; under 'voc_dinov2' and so on
      those of another encoder than a ResNet.
  """

  __dataclass_fields__: ClassVar[dict[str, Any]]
  summary: ClassVar[str]
  paper: ClassVar[str]
  scored: ClassVar[tuple[str, ...]]
  compared: ClassVar[tuple[str, ...]]
  published: ClassVar[Mapping[str, Mapping[str, Any]]]

  @property
  def heads(self) -> Mapping[str, MakeHead]:
    """Further heads, by their top-level key."""
    ...

  @property
  def uses_unlabelled(self) -> bool:
    """Whether a stage reads unlabelled images."""
    ...

  @property
  def cost(self) -> float:
    """Forward passes of a batch of one kind that a step of the longest stage is worth; a backward
    pass counts two."""
    ...

  def check(self, tools: Tools) -> tuple[str, ...]:
    """Refuses what does not fit the network, the batches or the classes, before any work.

    Returns: sentences that the user should read when the run starts.
    Raises: ValueError with the option, the rule and the remedy.
    """
    ...

  def init(self, key: Array, draw: Callable[[Array], Variables], tools: Tools) -> TrainState:
    """The state before the first step.

    Args:
      key: PRNG key of the run.
      draw: (key) -> variables of a network: drawn, and perhaps with pretrained weights. Without a
        key, those that the run's seed gives.
      tools: as for stages.
    """
    ...

  def stages(self, tools: Tools) -> tuple[Stage, ...]:
    """The phases of a run, in order; their steps add up to tools.total_steps."""
    ...


def init_state(
  key: Array,
  networks: Mapping[str, Variables],
  optimizers: Mapping[str, Optimizer],
  memory: Any = (),
) -> TrainState:
  """A state at step 0 in which every leaf has a buffer of its own.

  Args:
    key: PRNG key of the run.
    networks: name -> variables; several may be one.
    optimizers: of those that learn; momentum starts at zero.
    memory: see TrainState.
  """
  states = {name: optimizer.init(networks[name]['params'])
            for name, optimizer in optimizers.items()}
  return TrainState(
    step=jnp.int32(0), key=trees.copy_key(key),
    networks={name: trees.copy(variables) for name, variables in networks.items()},
    optimizers=trees.copy(states), memory=trees.copy(memory))
