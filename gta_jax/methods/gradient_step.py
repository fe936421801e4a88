"""One gradient step of one network, and forward passes; on batches that are whole or cut to fit.

Cut batches give the same losses and the same gradient, summed over micro-batches, as long as an
objective is a sum over images, divided by what the whole batch holds. BatchNorm alone differs: a
micro-batch is normalised by its own statistics, and the running ones become the mean of what each
micro-batch makes of the old ones. Dropout draws anew for each. To save memory without a difference
there is model.remat.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gta_jax.methods.accumulation import mean, over_micro_batches
from gta_jax.methods.contract import Metrics, Tools, TrainState
from gta_jax.ops import trees
from gta_jax.ops.joining import join, separate
from gta_jax.ops.network import Array, Params, Variables, with_statistics
from gta_jax.ops.optim import Optimizer

Tree = Any


class Outcome(NamedTuple):
  """What comes of one or several passes of a network over a batch or a part of it.

  losses: by name; they are added up. Those of a batch's parts must add up to those of the batch.
  batch_stats: after the passes.
  sums: what else they say by name, without a gradient; of parts it is added up.
  rows: what they say of each image, without a gradient, a tree of [b,...].
  """

  losses: Metrics
  batch_stats: Params
  sums: Metrics | None = None
  rows: Tree = ()


class Objective(NamedTuple):
  """What a batch costs a network.

  loss: (variables, batch or a part of it, key) -> Outcome.
  batch: tree of [B,...].
  key: PRNG key of the dropout.
  """

  loss: Callable[[Variables, Tree, Array], Outcome]
  batch: Tree
  key: Array


class Slope(NamedTuple):
  """What an objective says at a network's parameters.

  gradient: of the sum of the losses.
  losses: by name.
  batch_stats: after the objective's passes.
  sums: what else the passes say; {} where they say nothing.
  rows: what they say of each image, a tree of [B,...] in the batch's order, such as the labels that
    another pass of the step learns from; () where they say nothing.
  """

  gradient: Params
  losses: Metrics
  batch_stats: Params
  sums: Metrics
  rows: Tree = ()


def gradient_step(
  tools: Tools, state: TrainState, name: str, optimizer: Optimizer, *objectives: Objective
) -> tuple[TrainState, Metrics]:
  """One step of a network down the gradient of the sum of the objectives (Eq. 8 or 11).

  Args:
    tools: of the method.
    state: before the step.
    name: of the network.
    optimizer: of it.
    *objectives: at least one; see in_turn.
  Returns: the state, and the metrics of `descend` with what else the objectives say.
  """
  slopes = in_turn(tools, state.networks[name], objectives)
  state, metrics = descend(state, name, optimizer, *slopes)
  for each in slopes:
    metrics |= each.sums
  return state, metrics


def descend(
  state: TrainState, name: str, optimizer: Optimizer, *slopes: Slope
) -> tuple[TrainState, Metrics]:
  """The step of gradient_step, for slopes that have been found one by one.

  Returns: the state with the network and its optimiser moved, and the last slope's statistics;
    NAME_LOSS_loss of each loss, before the update, NAME_rate, and the global norms
    NAME_gradient_norm, NAME_update_norm and NAME_parameter_norm (after the update).
  """
  gradient, metrics = slopes[0].gradient, {}
  for other in slopes[1:]:
    gradient = trees.add(gradient, other.gradient)
  for each in slopes:
    metrics |= {f'{name}_{loss}_loss': value for loss, value in each.losses.items()}
  variables = with_statistics(state.networks[name], slopes[-1].batch_stats)
  updates, optimizer_state = optimizer.update(
    gradient, state.optimizers[name], variables['params'], step=state.step)
  params = optax.apply_updates(variables['params'], updates)
  metrics[f'{name}_rate'] = jnp.asarray(optimizer.rate(state.step), jnp.float32)
  metrics |= {f'{name}_{what}_norm': trees.norm(tree) for what, tree in (
    ('gradient', gradient), ('update', updates), ('parameter', params))}
  state = state.with_networks(**{name: {**variables, 'params': params}})
  return state.replace(optimizers=state.optimizers | {name: optimizer_state}), metrics


def slope(tools: Tools, variables: Variables, objective: Objective) -> Slope:
  """Gradient and losses of an objective at these variables."""
  def of_part(part: Tree, key: Array) -> tuple[Tree, Slope]:
    def total(params: Params) -> tuple[Array, Outcome]:
      found = objective.loss({**variables, 'params': params}, part, key)
      return jnp.asarray(sum(found.losses.values())), found

    gradient, found = jax.grad(total, has_aux=True)(variables['params'])
    return found.rows, Slope(gradient, found.losses, found.batch_stats, found.sums or {})

  rows, found, count = over_micro_batches(
    of_part, objective.batch, tools.accumulation, key=objective.key)
  return found._replace(batch_stats=mean(found.batch_stats, count), rows=rows)


def in_turn(
  tools: Tools, variables: Variables, objectives: Iterable[Objective]
) -> list[Slope]:
  """The slope of each objective, one after the other (see move_on).

  Each sees the running statistics that the one before it has left; all see the same parameters.
  """
  slopes: list[Slope] = []
  for objective in objectives:
    if slopes:
      slopes[-1], variables = move_on(slopes[-1], variables)
    slopes.append(slope(tools, variables, objective))
  return slopes


def move_on(found: Slope, variables: Variables) -> tuple[Slope, Variables]:
  """The slope, and the variables with its running statistics, for the next pass of the network.

  That pass waits for the slope's backward pass, whose activations are free by then; else XLA may
  keep those of both. Compilers for GPUs honour such a barrier, that for CPUs drops it.
  """
  found, variables = jax.lax.optimization_barrier((found, variables))
  return found, with_statistics(variables, found.batch_stats)


def forward(
  tools: Tools, variables: Variables, *images: Array, key: Array, train: bool = False,
  apply: Callable[..., tuple[Any, Params]] | None = None,
) -> tuple[tuple[Any, ...], Params]:
  """Logits without a gradient; all images go through as one batch.

  Args:
    variables: of the network.
    *images: [B,H,W,3] normalised float each.
    key: of the dropout, in train mode.
    train: whether the batch is normalised by its own statistics, and dropout is active.
    apply: in the place of network.apply, with its arguments; returns a tree of [B,...] and
      batch_stats.
  Returns: Logits, or what `apply` returns, of each of `images`; the running statistics afterwards.
  """
  apply = apply or tools.network.apply

  def of_part(parts: tuple[Array, ...], key: Array) -> tuple[tuple[Any, ...], Params]:
    logits, stats = apply(
      variables, join(*parts), train=train, dropout_key=key if train else None)
    found = separate(logits, *map(len, parts))
    return jax.lax.stop_gradient(found), stats if train else {}

  logits, stats, count = over_micro_batches(of_part, images, tools.accumulation, key=key)
  return logits, mean(stats, count) if train else variables['batch_stats']
