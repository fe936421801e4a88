"""Checkpoints of a run: the newest, and the one whose teacher scored best."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from gta_jax.network import Variables
from gta_jax.state import TrainState

_METRIC = 'teacher_miou'


class Checkpoints:
  """The folder of a run's checkpoints, one sub-folder a step.

  The teacher is an item of its own, so that inference reads nothing else. The streams need no
  item: their position is the step.
  """

  def __init__(self, folder: Path):
    keep = checkpoint_managers.AnyPreservationPolicy([
      checkpoint_managers.LatestN(1),
      checkpoint_managers.BestN(get_metric_fn=lambda metrics: metrics[_METRIC], n=1),
    ])
    options = ocp.CheckpointManagerOptions(
      preservation_policy=keep, best_fn=lambda metrics: metrics[_METRIC])
    self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *_: object) -> None:
    self._manager.close()

  @property
  def last_step(self) -> int | None:
    """The step of the newest checkpoint; None before the first."""
    return self._manager.latest_step()

  @property
  def best_step(self) -> int | None:
    """The step of the checkpoint with the best teacher; None before the first."""
    return self._manager.best_step()

  def save(self, step: int, state: TrainState, scores: Mapping[str, Any]) -> None:
    """Saves in the background.

    Args:
      step: steps done.
      state: may be donated to the next step right after.
      scores: what evaluation found; plain JSON, with scores['teacher']['miou'].
    """
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state.replace(teacher=None)),
        teacher=ocp.args.StandardSave(state.teacher),
        scores=ocp.args.JsonSave(dict(scores)),
      ),
      # Undefined (null) where every validation pixel is void.
      metrics={_METRIC: scores['teacher']['miou'] or 0.0},
    )

  def restore(self, step: int, like: TrainState) -> TrainState:
    """The state of a step, with the shapes, dtypes and placement of `like`."""
    abstract = ocp.args.StandardRestore(_abstract(like.replace(teacher=None)))
    teacher = ocp.args.StandardRestore(_abstract(like.teacher))
    found = self._manager.restore(step, args=ocp.args.Composite(state=abstract, teacher=teacher))
    return found.state.replace(teacher=found.teacher)

  def restore_teacher(self, step: int, like: Variables) -> Variables:
    """The teacher of a step alone."""
    teacher = ocp.args.StandardRestore(_abstract(like))
    return self._manager.restore(step, args=ocp.args.Composite(teacher=teacher)).teacher

  def scores(self, step: int) -> dict[str, Any]:
    """The scores saved with a step."""
    args = ocp.args.Composite(scores=ocp.args.JsonRestore())
    return self._manager.restore(step, args=args).scores


def _abstract(tree: Any) -> Any:
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)
