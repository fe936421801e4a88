"""U2PL: unreliable pseudo-labels as negatives (Wang, Wang, Shen, Fei, Li, Jin, Wu, Zhao, Le; CVPR
2022). Sources, costs, reported figures and all deviations: docs/methods/u2pl.md.

A mean teacher with CutMix whose most uncertain pixels get no cross-entropy, but serve as negatives,
in queues by class, of a contrastive loss for the classes that they most likely are not. u' is the
mixed batch, p' and r' are the teacher's probabilities and embeddings of [x_l; u'] in train mode.

    1. y_u = argmax teacher(u), mixed as u' is
    2. h = -sum_c p'_c log p'_c, alpha = 20 (1 - epoch / epochs)
    3. y_u is dropped where h >= percentile(h, 100 - alpha)
    4. L_u = N / N_kept mean over kept of CE(student(u'), y_u)
    5. P_c: pixels of label c, in u' those with h <= percentile(h, alpha)
       q_c = mean of r' over P_c, anchors A_c = {in P_c, p'_c > 0.3}
       keys of queue c: r' of labelled pixels of another label with c among the teacher's 3
       likeliest classes, and of pixels of u' with h >= percentile(h, 100 - alpha), c of rank 3..19
    6. l_c = mean over 50 anchors a of -log(e(q_c) / (e(q_c) + sum of e over 256 keys)),
       e(v) = exp(cos(a, v) / 0.5);  L_c = sum l_c / #{c: P_c not empty}
    7. student: a step on L_s + L_u + 0.1 L_c;  teacher: EMA of decay min(1 - 1/k, 0.99)

Cost 9 forward-equivalents (label 1, student 6, teacher's train-mode pass 2), the embedding head in
all but the first, and K x 50 x 257 cosines.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from gta_jax.methods.contract import Batch, Metrics, Tools, TrainState
from gta_jax.methods.gradient_step import Objective, Outcome, forward, gradient_step
from gta_jax.methods.objectives import Term, check_joint, partner_notes, unlabelled_images
from gta_jax.methods.options import choice, number
from gta_jax.methods.pseudo_labelling import kept_metrics, oracle_metrics
from gta_jax.methods.representation import REPRESENTATION, embed
from gta_jax.methods.supervised import LABELLED, Supervised
from gta_jax.models.heads import Head, MakeHead
from gta_jax.ops import class_contrast, trees
from gta_jax.ops.joining import join, separate
from gta_jax.ops.losses import IGNORE, cross_entropy
from gta_jax.ops.mixing import MIXINGS, PARTNERED, mix
from gta_jax.ops.network import Array, Logits, Params, Variables, with_statistics
from gta_jax.ops.order_statistics import percentiles
from gta_jax.ops.pseudo_labels import entropy, pseudo_labels
from gta_jax.ops.queues import Queues, init_queues
from gta_jax.ops.resizing import resize_bilinear, resize_nearest

PSEUDO, CONTRAST = 'pseudo', 'contrast'
_QUEUES = {'method.queue_size': 30_000, 'method.first_queue_size': 50_000}
_CROP = 513  # that these are of
_SCALE = {'data.scale': (0.5, 1.0, 2.0)}  # half of the images shrink, half grow


@dataclasses.dataclass(frozen=True)
class U2pl(Supervised):
  """Options; the defaults are the paper's, and the published code's where that is silent."""

  summary: ClassVar[str] = 'mean teacher whose unreliable pixels are negatives of a contrast'
  paper: ClassVar[str] = ('Wang et al., Semi-Supervised Semantic Segmentation Using Unreliable '
                          'Pseudo-Labels (U2PL), CVPR 2022')
  # Effective rates of the published configurations.
  published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
    'voc': {
      **_SCALE, 'data.crop': 513, 'optim.rate': 0.001, 'optim.decoder_multiplier': 10.0,
      'optim.weight_decay': 1e-4, 'train.epochs': 80, 'train.labelled_batch': 16,
      'train.unlabelled_batch': 16, **_QUEUES},
    'cityscapes': {
      **_SCALE, 'data.crop': 769, 'optim.rate': 0.01, 'optim.decoder_multiplier': 1.0,
      'optim.weight_decay': 5e-4, 'train.epochs': 200, 'train.labelled_batch': 16,
      'train.unlabelled_batch': 16, 'method.warmup_epochs': 0.0, **_QUEUES},
  }

  # The teacher, the warm-up and the passes, as published.
  ema_ramp: bool = True  # decay min(1 - 1/k, teacher_decay)
  teacher_batch_norm: str = choice('own', 'ema', 'own')  # averaged, or by its own passes
  warmup: str = choice('student', 'all', 'student')  # who trains on labelled data
  handover_epochs: float = number(1.0)  # the student overwrites the teacher so long
  batch_norm: str = choice('joint', 'joint')  # both kinds of images are one batch

  # Pseudo-labels.
  mixing: str = choice('cutmix', *MIXINGS)  # of image i with i + 1
  mixing_probability: float = number(0.5, most=1)  # that a batch is mixed
  drop_percent: float = number(20.0, most=50)  # % of pixels without a label at first; falls to 0
  unlabelled_weight: float = number(1.0)  # on L_u

  # Contrast.
  contrast_weight: float = number(0.1)  # lambda_c
  temperature: float = number(0.5, least=1e-3)
  anchors: int = number(50, least=1)  # of each class
  negatives: int = number(256, least=1)  # of each anchor
  anchor_confidence: float = number(0.3, most=1)  # teacher's probability that an anchor exceeds
  low_rank: int = number(3, least=1)  # unreliable pixels are negatives of classes from this rank
  high_rank: int = number(20, least=2)  # up to this one, which is left out; 0 is the likeliest
  negative_rule: str = choice('paper', *class_contrast.NEGATIVE_RULES)
  queue_rule: str = choice('class', *class_contrast.QUEUE_RULES)  # 'position': the code's index bug
  # Keys of each class, and of class 0. 0: the published 30,000 and 50,000, which are of crops of
  # 513 pixels, in proportion to the pixels of the crop, but at least 1,024.
  queue_size: int = number(0)
  first_queue_size: int = number(0)
  keys_per_step: int = number(2048, least=1, most=46_340)  # appended to each queue, at most
  channels: int = number(256, least=1)  # of the embedding

  def __post_init__(self):
    super().__post_init__()
    if self.low_rank >= self.high_rank:
      raise ValueError(f'low_rank={self.low_rank} is not below high_rank={self.high_rank}; '
                       'use e.g. 3 and 20.')

  @property
  def heads(self) -> Mapping[str, MakeHead]:
    def make(*, num_classes: int, features: int) -> Head:
      del num_classes
      return Head(channels=self.channels, features=features, depth=2, dropout=0.1)

    return {REPRESENTATION: make}

  @property
  def uses_unlabelled(self) -> bool:
    return True

  @property
  def cost(self) -> float:
    return 9

  def check(self, tools: Tools) -> tuple[str, ...]:
    """See Method."""
    if self.low_rank >= tools.num_classes:
      raise ValueError(
        f'method.low_rank={self.low_rank} leaves none of {tools.num_classes} classes unlikely, so '
        'that no unreliable pixel is a negative; use a rank below that number, such as 1.')
    check_joint(tools, 'U2PL')
    megabytes = sum(self.queue_sizes(tools)) * self.channels * 4 / 1e6
    notes = partner_notes(tools) if self.mixing in PARTNERED else ()
    return (*super().check(tools), *notes,
            f'the queues take {megabytes:.0f} MB on every device and in every checkpoint')

  def queue_sizes(self, tools: Tools) -> tuple[int, ...]:
    """Keys that each class's queue holds."""
    def size(chosen: int, published: int) -> int:
      return chosen or max(round(published * (tools.crop / _CROP) ** 2), 1024)

    other = size(self.queue_size, _QUEUES['method.queue_size'])
    first = size(self.first_queue_size, _QUEUES['method.first_queue_size'])
    return first, *[other] * (tools.num_classes - 1)

  def init(self, key: Array, draw: Callable[..., Variables], tools: Tools) -> TrainState:
    """See Method. The queues are empty."""
    queues = init_queues(self.queue_sizes(tools), self.channels)
    return super().init(key, draw, tools).replace(memory=trees.copy(queues))

  def step(self, tools: Tools, *, handover: bool = False) -> Callable:
    """The step of the main phase; see Supervised.step."""
    optimizer = self.optimizers(tools)['student']

    def step(state: TrainState, batches: dict[str, Batch]) -> tuple[TrainState, Metrics]:
      key_teach, _, key_student = jax.random.split(state.step_key(), 3)
      state = self.hand_over(state) if handover else state
      labelled = self.labelled(tools, batches)
      state, objective, metrics = self.teach(
        tools, state, labelled, batches, key_teach, key_student)
      state, learnt = gradient_step(tools, state, 'student', optimizer, objective)
      state, decay = self.follow(tools, state)
      return state.replace(step=state.step + 1), metrics | learnt | decay

    return step

  def teach(
    self, tools: Tools, state: TrainState, labelled: Term, batches: dict[str, Batch], key: Array,
    key_student: Array,
  ) -> tuple[TrainState, Objective, Metrics]:
    """Lines 1 to 6: all that the student is given; queues and teacher's statistics move."""
    key_mix, key_draws, key_dropout = jax.random.split(key, 3)
    teacher, labels = state.networks['teacher'], batches['labelled']['label'].astype(jnp.int32)
    images, mixed_labels, metrics = self.label(
      tools, teacher, batches['unlabelled'], key_mix, key_dropout)

    def apply(*inputs: Any, **mode: Any) -> tuple[tuple[Logits, Array], Params]:
      return embed(tools.network, *inputs, **mode)

    seen, stats = forward(tools, teacher, labelled.images, images, key=key_dropout,
                          train=True, apply=apply)
    if self.teacher_batch_norm == 'own':
      state = state.with_networks(teacher=with_statistics(teacher, stats))

    probabilities = jax.nn.softmax(resize_bilinear(seen[1][0].main, mixed_labels.shape[1:]))
    uncertain, valid = entropy(probabilities), mixed_labels != IGNORE
    alpha = self.drop_percent * (1 - self.progress(tools, state.step))
    low, high = percentiles(uncertain, valid, jnp.stack([alpha, 100 - alpha]))
    contrast, queues = self.contrast(
      tools, state.memory, key_draws, seen, labels, mixed_labels, uncertain <= low,
      uncertain >= high)

    kept = jnp.where(uncertain < high, mixed_labels, IGNORE)
    count, total = (jnp.sum(x != IGNORE).astype(jnp.float32) for x in (kept, mixed_labels))
    # N / N_kept times the mean: sum N / N_kept^2.
    targets = (kept, jnp.square(jnp.maximum(count, 1)) / jnp.maximum(total, 1))
    metrics |= {
      **kept_metrics(kept, tools.num_classes), 'threshold': high,
      'contrasted_classes': jnp.sum(contrast.weight > 0),
      'queued_share': jnp.sum(queues.held) / len(queues.keys)}
    objective = self.objective(tools, labelled, images, targets, contrast, key_student)
    return state.replace(memory=queues), objective, metrics

  def progress(self, tools: Tools, step: Array) -> Array:
    """epoch / epochs, which stands still within an epoch; [] float32 in [0,1)."""
    return (step // tools.epoch_steps * tools.epoch_steps).astype(jnp.float32) / tools.total_steps

  def label(
    self, tools: Tools, teacher: Variables, unlabelled: Batch, key_mix: Array, key_dropout: Array
  ) -> tuple[Array, Array, Metrics]:
    """Line 1: u' [B,H,W,3], and its labels [B,H,W] int32, IGNORE on padding."""
    valid = unlabelled['valid']
    images = unlabelled_images(tools, unlabelled)
    (logits,), _ = forward(tools, teacher, images, key=key_dropout)
    probabilities = jax.nn.softmax(resize_bilinear(logits.main, valid.shape[1:]))
    labels, confidence = pseudo_labels(probabilities)
    labels = jnp.where(valid, labels, IGNORE)
    metrics = {'confidence': jnp.sum(confidence * valid) / jnp.maximum(jnp.sum(valid), 1)}
    if 'label' in unlabelled:
      metrics |= oracle_metrics(labels, unlabelled, tools.num_classes)
    images, labels, _, _ = mix(
      key_mix, images, labels, confidence, valid, kind=self.mixing,
      num_classes=tools.num_classes, probability=self.mixing_probability)
    return images, labels, metrics

  def contrast(
    self, tools: Tools, queues: Queues, key: Array, seen: tuple[tuple[Logits, Array], ...],
    labels: Array, mixed_labels: Array, sure: Array, unsure: Array,
  ) -> tuple[class_contrast.Contrast, Queues]:
    """Line 5 at the network's resolution, where labels and masks [B,H,W] are brought."""
    logits, embedding = join(*seen)
    probabilities, size = jax.nn.softmax(logits.main), embedding.shape[1:3]

    def flat(of_labelled: Array, of_mixed: Array) -> Array:
      return join(*(resize_nearest(x, size) for x in (of_labelled, of_mixed))).reshape(-1)

    known = labels != IGNORE
    roles = class_contrast.find_roles(
      probabilities.reshape(-1, tools.num_classes), flat(labels, mixed_labels),
      flat(known, jnp.zeros_like(sure)), flat(known, sure), flat(jnp.zeros_like(known), unsure),
      confidence=self.anchor_confidence, low_rank=self.low_rank, high_rank=self.high_rank,
      rule=self.negative_rule)
    return class_contrast.find_contrast(
      key, queues, self.queue_sizes(tools), roles, embedding, anchors=self.anchors,
      negatives=self.negatives, keys_per_step=self.keys_per_step, queue_rule=self.queue_rule)

  def objective(
    self, tools: Tools, labelled: Term, images: Array, targets: tuple[Array, Array],
    contrast: class_contrast.Contrast, key: Array,
  ) -> Objective:
    """Lines 4, 6 and 7: one pass over both kinds of images. targets: labels, and what L_u's sum is
    divided by."""
    kept, divisor = targets
    size, counts = kept.shape[1:], (len(labelled.images), len(images))

    def loss(variables: Variables, batch: dict, key: Array) -> Outcome:
      (images, truth, rows), (more_images, pseudo, more_rows) = batch[LABELLED], batch[PSEUDO]
      (logits, embedding), stats = embed(
        tools.network, variables, join(images, more_images), train=True, dropout_key=key)
      of_labelled, of_mixed = separate(logits, len(images), len(more_images))
      full = resize_bilinear(of_mixed.main, size)
      return Outcome({
        LABELLED: labelled.sole_loss(of_labelled, truth),
        PSEUDO: self.unlabelled_weight * cross_entropy(full, pseudo, divisor=divisor),
        CONTRAST: self.contrast_weight * class_contrast.contrast_loss(
          contrast, embedding, join(rows, more_rows), temperature=self.temperature),
      }, stats)

    rows, more_rows = separate(jnp.arange(sum(counts)), *counts)
    return Objective(loss, {
      LABELLED: (labelled.images, labelled.targets, rows),
      PSEUDO: (images, kept, more_rows)}, key)
