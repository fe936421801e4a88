"""What methods of several stages share: labels that a stage's networks give to unlabelled images,
kept as files below WORKDIR/stages, and the division of a run's steps between the stages."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gta_jax.data.masks import encode_mask
from gta_jax.data.pseudo_masks import encode_doubt
from gta_jax.data.stage_files import StageFiles
from gta_jax.evaluation.protocols import WHOLE, Protocol
from gta_jax.methods.contract import Host, Tools
from gta_jax.ops.network import Variables

MASKS, CONFIDENCE, SCORES = 'masks', 'confidence', 'scores'
_SUFFIXES = {MASKS: '.png', CONFIDENCE: '.png', SCORES: '.json'}

# ST++'s: probabilities of ten maps are added up. The published code rounds sides down, here to the
# nearest pixel, and pads nothing, where evaluation pads to multiples of 32.
MULTISCALE_FLIP = Protocol('self_training', scales=(0.5, 0.75, 1.0, 1.5, 2.0), flip=True)
PROTOCOLS = {'multiscale': MULTISCALE_FLIP, 'whole': WHOLE}


def stage_files(host: Host, stage: str, ids: Sequence[str], *kinds: str) -> StageFiles:
  """The files of a stage; kinds are some of masks, confidence and scores."""
  return StageFiles(
    host.workdir / 'stages' / stage, {kind: _SUFFIXES[kind] for kind in kinds}, tuple(ids))


def write_labels(
  host: Host, files: StageFiles, variables: Variables, protocol: Protocol = WHOLE
) -> None:
  """Labels every image of `files` by one network, without a threshold; once.

  Args:
    host: see Host.
    files: of kind masks, or masks and confidence.
    variables: of the network that labels.
    protocol: of whole images; with several scales or flip the probabilities are added up.
  """
  def make(ids: Sequence[str], done: set[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    host.note(f'labels {len(ids) - len(done)} images for {files.folder.name}')
    for id, found in host.predict({'labeller': variables}, ids, protocol, done=done):
      labels, confidence = found['labeller']
      contents = {MASKS: encode_mask(labels, host.dataset.palette)}
      if CONFIDENCE in files.kinds:
        contents[CONFIDENCE] = encode_doubt(confidence)
      yield id, contents

  files.fill(make, source=digest(variables), part=host.part)


def write_agreement(host: Host, files: StageFiles, checkpoints: Mapping[str, Variables]) -> None:
  """Scores every image of `files`, of kind scores, by `agreement` of the checkpoints; once.

  Args:
    checkpoints: by name, the last one last.
  """
  def make(ids: Sequence[str], done: set[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    host.note(f'compares {len(checkpoints)} checkpoints on {len(ids) - len(done)} images')
    for id, found in host.predict(checkpoints, ids, WHOLE, done=done):
      maps = [found[name].labels for name in checkpoints]
      score = agreement(maps, num_classes=len(host.dataset.classes))
      yield id, {SCORES: json.dumps(score).encode()}

  files.fill(make, source=digest(checkpoints), part=host.part)


def agreement(maps: Sequence[np.ndarray], *, num_classes: int) -> float:
  """How far the last of several label maps was there before: ST++'s s_i.

      s = mean over k < K of mIoU(M_k, M_K),   mIoU over the classes that occur in either map

  Args:
    maps: integer [H,W] each, the last one last.
  """
  return float(np.mean([_mean_iou(earlier, maps[-1], num_classes) for earlier in maps[:-1]]))


def _mean_iou(one: np.ndarray, other: np.ndarray, num_classes: int) -> float:
  pairs = one.astype(np.int64).ravel() * num_classes + other.ravel()
  counts = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
  both, either = np.diag(counts), counts.sum(0) + counts.sum(1) - np.diag(counts)
  return float(np.mean(both[either > 0] / either[either > 0]))


def split_by_score(
  ids: Sequence[str], scores: Sequence[float]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """The half of the ids with the highest scores, best first, and the others.

  The first half has floor(n/2) of n ids, but at least one; equals stay in the order of the list.
  """
  order = sorted(range(len(ids)), key=lambda i: -scores[i])
  half = max(len(ids) // 2, 1)
  return tuple(ids[i] for i in order[:half]), tuple(ids[i] for i in order[half:])


def digest(tree: Any) -> str:
  """SHA-256 of a tree's paths and values, leaf by leaf; equal trees give equal ones."""
  whole = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    whole.update(jax.tree_util.keystr(path).encode())
    whole.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
  return whole.hexdigest()


def divide(tools: Tools, shares: Mapping[str, float]) -> dict[str, int]:
  """The run's steps divided between stages, at least one each.

  A stage ends at the rounded sum of the shares up to it, times the total; the last one at the end.

  Args:
    tools: whose total_steps it is.
    shares: stage -> share of the steps; the last one's is what is left, whatever it says.
  Raises: ValueError where there are fewer steps than stages.
  """
  total, names = tools.total_steps, tuple(shares)
  if total < len(names):
    raise ValueError(
      f'train.epochs makes {total} steps, fewer than the {len(names)} stages '
      f'{", ".join(names)}; raise train.epochs.')
  steps, done, share = {}, 0, 0.0
  for after, name in zip(range(len(names) - 1, -1, -1), names, strict=True):
    share += shares[name]
    end = min(max(round(share * total), done + 1), total - after) if after else total
    steps[name], done = end - done, end
  return steps


def refuse_ohem(tools: Tools, method: str) -> None:
  """Raises ValueError for a loss that is no mean over pixels."""
  if tools.loss.ohem_threshold is not None:
    raise ValueError(
      f'loss.ohem_threshold={tools.loss.ohem_threshold} keeps the hard pixels of one kind of '
      f'images, but {method} takes one mean over both kinds; set it to None.')
