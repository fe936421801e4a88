"""One gradient step of one network, on batches that are whole or cut to fit."""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import optax

from gta_jax.methods.accumulation import WHOLE, MicroBatches, mean, over_micro_batches
from gta_jax.methods.objectives import Lesson, Metrics
from gta_jax.ops.losses import SupervisedLoss
from gta_jax.ops.network import Array, Network, Params, Variables


def check_accumulation(loss: SupervisedLoss, micro: MicroBatches) -> None:
  """Raises ValueError where the supervised loss is no sum over images."""
  if micro.per_device and loss.ohem_threshold is not None:
    raise ValueError(
      f'train.per_device_batch={micro.per_device} and loss.ohem_threshold={loss.ohem_threshold} do '
      'not go together, as the hard pixels are those of the whole batch; use model.remat=True and '
      'train.per_device_batch=0.')


def learn(
  network: Network,
  optimizer: optax.GradientTransformation,
  variables: Variables,
  opt_state: optax.OptState,
  lessons: Mapping[str, Lesson],
  learns: Iterable[str],
  *,
  joint: bool,
  key: Array,
  micro: MicroBatches = WHOLE,
) -> tuple[Variables, optax.OptState, Metrics]:
  """One gradient step on the lessons it learns from (Eq. 8 or 11).

  Cut batches give the same losses and the same gradient, summed over micro-batches, since a lesson
  is divided by what the whole batch holds. BatchNorm is the one exception: a micro-batch is
  normalised by its own statistics, and the running ones become the mean of what each micro-batch
  makes of the old ones. Dropout draws anew for each. To save memory without a difference there is
  model.remat.

  Args:
    network: the network as pure functions.
    optimizer: of these variables.
    variables: that learn.
    opt_state: of the optimizer.
    lessons: by name.
    learns: names of the lessons whose losses are added up.
    joint: all lessons' images go through as one batch and share their batch statistics, also
      those that it does not learn from. Otherwise each lesson is a batch of its own.
    key: of the dropout.
    micro: how batches are cut.
  Returns: variables, optimizer state, and the loss of each lesson.
  """
  learns = tuple(learns)
  passes = [tuple(lessons)] if joint else [(name,) for name in learns]
  stats, gradient, losses = variables['batch_stats'], None, {}
  for i, names in enumerate(passes):
    of_pass, losses_of_pass, stats = _gradient(
      network, {**variables, 'batch_stats': stats}, {name: lessons[name] for name in names}, learns,
      key=key if joint else jax.random.fold_in(key, i), micro=micro)
    gradient = of_pass if gradient is None else jax.tree.map(jnp.add, gradient, of_pass)
    losses |= losses_of_pass
  updates, opt_state = optimizer.update(gradient, opt_state, variables['params'])
  params = optax.apply_updates(variables['params'], updates)
  return {'params': params, 'batch_stats': stats}, opt_state, losses


def _gradient(
  network: Network,
  variables: Variables,
  lessons: Mapping[str, Lesson],
  learns: tuple[str, ...],
  *,
  key: Array,
  micro: MicroBatches,
) -> tuple[Params, Metrics, Params]:
  """Gradient and losses of the lessons in one pass, and the statistics that it leaves."""
  def of_part(parts: dict, key: Array) -> tuple[tuple, tuple[Params, Metrics, Params]]:
    def objective(params: Params) -> tuple[Array, tuple[Metrics, Params]]:
      logits, stats = network.apply(
        {**variables, 'params': params}, jnp.concatenate([parts[name][0] for name in lessons]),
        train=True, dropout_key=key)
      losses, start = {}, 0
      for name, lesson in lessons.items():
        images, targets = parts[name]
        rows = slice(start, start + len(images))
        start = rows.stop
        if name in learns:
          of_lesson = jax.tree.map(lambda x, rows=rows: x[rows], logits)
          losses[name] = lesson.loss(of_lesson, targets)
      return sum(losses.values()), (losses, stats)

    gradient, (losses, stats) = jax.grad(objective, has_aux=True)(variables['params'])
    return (), (gradient, losses, stats)

  batch = {name: (lesson.images, lesson.targets) for name, lesson in lessons.items()}
  _, (gradient, losses, stats), count = over_micro_batches(of_part, batch, micro, key=key)
  return gradient, losses, mean(stats, count)


def move_statistics(
  network: Network, variables: Variables, images: Array, *, key: Array,
  micro: MicroBatches = WHOLE,
) -> Variables:
  """The variables after a pass in train mode that nothing is learnt from."""
  def of_part(images: Array, key: Array) -> tuple[tuple, Params]:
    return (), network.apply(variables, images, train=True, dropout_key=key)[1]

  _, stats, count = over_micro_batches(of_part, images, micro, key=key)
  return {**variables, 'batch_stats': mean(stats, count)}
