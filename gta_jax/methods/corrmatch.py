"""CorrMatch: labels spread along correlation maps (Sun et al., CVPR 2024).

One network and no teacher. One step on B labelled and B unlabelled images:

    1. In evaluation mode: softmax of the weak view w, for the boxes that others cut from it.
    2. In train mode, labelled images and w as one batch: logits P_l, P_w (constant from here on), F
       of w with half of the channels dropped between encoder and decoder, and for each image
         A = softmax_j(g1_i . g2_j / sqrt(K)),  Z_j = sum_i sg(P_i) A_ij
       at the last stage's size, from two 1x1 convolutions g1, g2 on a projection of that stage.
    3. In train mode, the strong view s with a box from the next image: P_s, Z_s.
    4. tau <- 0.999 tau + 0.001 mean_{c predicted on w} max_{i of class c} kappa_i, from 0.85.
    5. Labels y and confidence kappa of w, from the partner (1) in the box.
       conf = [kappa >= tau and no padding], K = conf.
    6. Regions r, above the middle of 128 random rows of A, in turn: with q = r and conf, if
       |q| / |r| >= tau and a class has more than tau of q, y is that class on r, and K takes r.
    7. L_x = (CE(P_l) + CE(Z_l)) / 2; over the pixels that are no padding
       L_s = CE(P_s, y) on K, L_cs = CE(Z_s, y) on K, L_kl = KL(p_w || p_s) on conf,
       L_fp = CE(F, y_w), L_cw = CE(Z_w, y_w) on the confident pixels of w itself.
    8. L = (L_x + (L_s + L_kl + L_fp) / 4 + (L_cs + L_cw) / 8) / 2

Cost 10: w 1, labelled and w 6, s 3; besides them N^2 correlations an image, N places of the last
stage, and the decoder of the dropped half.

Reported with ResNet-101, best epoch: VOC 2012 (92 183 366 732 1464, the original list) 76.4 78.5
79.4 80.6 81.8; Cityscapes (186 372 744 1488) 77.3 78.5 79.4 80.4.

Paper and code: options say where they part; `corrmatch_released` does what the code does. Different
here: the partner is the next image, in the code another view of the same one (so a public issue of
UniMatch); the decoder is the config's; the rate of step t is that of t, where the code sets it
after the step. More, and what is unverified, in docs/methods/corrmatch.md.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from gta_jax.methods.contract import Batch, Metrics, Stage, Tools, TrainState
from gta_jax.methods.corrmatch_losses import Seen, Targets, metrics_of, unlabelled_losses
from gta_jax.methods.gradient_step import Objective, Outcome, forward, gradient_step
from gta_jax.methods.learners import Learners, StrongView
from gta_jax.methods.objectives import (
  Term,
  check_whole,
  labelled_term,
  partner_notes,
  passes,
  unlabelled_images,
)
from gta_jax.methods.options import choice, number
from gta_jax.methods.pseudo_labelling import image_size
from gta_jax.methods.supervised import LABELLED
from gta_jax.models.correlation import CorrelationHead
from gta_jax.models.heads import MakeHead
from gta_jax.ops import correlation
from gta_jax.ops.channel_dropout import channel_masks, dropped
from gta_jax.ops.joining import join, separate
from gta_jax.ops.losses import IGNORE
from gta_jax.ops.mixing import next_images, paste, unimatch_boxes
from gta_jax.ops.network import Array, Logits, Stages, Variables, with_statistics
from gta_jax.ops.pseudo_labels import pseudo_labels
from gta_jax.ops.resizing import resize_bilinear

MODEL = 'model'
HEAD = 'correlation'


class Found(NamedTuple):
  """logits of a pass; perturbed: [B,h,w,K] those of dropped features, if any. maps: [B,N,N], A.
  spread: [B,h,w,K], Z.
  """

  logits: Logits
  perturbed: Array | None
  maps: Array
  spread: Array


@dataclasses.dataclass(frozen=True)
class CorrMatch(StrongView, Learners):
  """Options; the defaults are the method as described, without its code's peculiarities."""

  summary: ClassVar[str] = 'labels spread along correlation maps, the threshold follows'
  paper: ClassVar[str] = ('Sun, Yang, Zhang, Cheng, Hou, CorrMatch: Label propagation via '
                          'correlation matching for semi-supervised semantic segmentation, '
                          'CVPR 2024')
  published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
    'voc': {'optim.rate': 0.001, 'optim.decoder_multiplier': 10.0, 'optim.weight_decay': 1e-4,
            'data.crop': 321, 'train.epochs': 80,
            'train.labelled_batch': 8, 'train.unlabelled_batch': 8,  # 4 on each of 2 GPUs
            'model.multi_grid': (), 'model.dropout': 0.0},
    'cityscapes': {'optim.rate': 0.005, 'optim.decoder_multiplier': 1.0,
                   'optim.weight_decay': 1e-4, 'data.crop': 801, 'train.epochs': 240,
                   'train.labelled_batch': 8, 'train.unlabelled_batch': 8,
                   'loss.ohem_min_kept': 2 * 200_000, 'model.auxiliary': False,
                   'model.multi_grid': (), 'model.dropout': 0.0,
                   'method.threshold_init': 0.0, 'method.threshold_decay': 1.0},
  }

  threshold_init: float = number(0.85, most=1)  # tau before the first step, a probability
  threshold_decay: float = number(0.999, most=1)  # 1 keeps tau as it is
  regions: int = number(128, least=0, most=4096)  # rows of A that become regions; 0: none
  feature_dropout: float = number(0.5, most=0.99)  # probability of a channel of F's features
  backbone_learns: bool = True  # from the correlation losses, or the head alone
  box_probability: float = number(0.5, most=1)  # that an image gets a box

  warmup_epochs: float = number(0.0)  # of labelled images alone, before

  # Where the code does something else.
  kl_target: str = choice('mixed', 'mixed', 'unmixed')  # p_w in the box: the partner's, or w's own
  threshold_padding: str = choice('own', 'own', 'mixed')  # what tau leaves out: w's, or the mix's
  padding_counts: bool = False  # in A: padding is a place like any other, only its image is blank

  @property
  def heads(self) -> Mapping[str, MakeHead]:
    return {HEAD: lambda *, num_classes, features: CorrelationHead(num_classes, features)}

  @property
  def cost(self) -> float:
    return 10

  def check(self, tools: Tools) -> tuple[str, ...]:
    """See Method."""
    check_whole(tools, 'the threshold of corrmatch is that of a whole batch of predictions, which '
                'the step makes and learns from in one pass')
    if self.warmup_epochs and self.stages(tools)[-1].name == 'warmup':
      return ('the warm-up lasts to the end, so that nothing learns from unlabelled images; '
              'raise train.epochs or lower method.warmup_epochs',)
    return partner_notes(tools) if self.box_probability else ()

  def init(self, key: Array, draw: Callable[..., Variables], tools: Tools) -> TrainState:
    """See Method."""
    memory = {'threshold': jnp.float32(self.threshold_init)}
    return super().init(key, draw, tools).replace(memory=memory)

  def stages(self, tools: Tools) -> tuple[Stage, ...]:
    """See Method."""
    warmup = min(round(self.warmup_epochs * tools.epoch_steps), tools.total_steps)
    stages = (
      Stage('warmup', warmup, self.warmup_step(tools)),
      Stage('main', tools.total_steps - warmup, self.step(tools), ('labelled', 'unlabelled')))
    return tuple(stage for stage in stages if stage.steps)

  def warmup_step(self, tools: Tools) -> Callable:
    """The step of the warm-up: cross-entropy with ground truth, which reaches no further head."""
    optimizer = tools.make_optimizer()

    def step(state: TrainState, batches: dict[str, Batch]) -> tuple[TrainState, Metrics]:
      terms = {LABELLED: labelled_term(tools, batches['labelled'])}
      objectives = passes(tools, terms, (LABELLED,), joint=False, key=state.step_key())
      state, metrics = gradient_step(tools, state, MODEL, optimizer, *objectives)
      return state.replace(step=state.step + 1), metrics

    return step

  def step(self, tools: Tools) -> Callable:
    """The step of the main stage."""
    optimizer = tools.make_optimizer()

    def step(state: TrainState, batches: dict[str, Batch]) -> tuple[TrainState, Metrics]:
      keys = jax.random.split(state.step_key())
      labelled = labelled_term(tools, batches['labelled'])
      seen = self.see(tools, state.networks[MODEL], batches['unlabelled'], keys[0])
      loss = self.make_loss(tools, labelled, state.memory['threshold'], batches['unlabelled'])
      objective = Objective(loss, ((labelled.images, labelled.targets), seen), keys[1])
      state, metrics = gradient_step(tools, state, MODEL, optimizer, objective)
      memory = {'threshold': metrics['threshold']}
      return state.replace(step=state.step + 1, memory=memory), metrics

    return step

  def see(self, tools: Tools, variables: Variables, unlabelled: Batch, key: Array) -> Seen:
    """Steps 1 and 5 as far as no gradient is needed: views, boxes, the partner's predictions."""
    key_colours, key_box = jax.random.split(key)
    valid = unlabelled['valid']
    weak = unlabelled_images(tools, unlabelled)
    (logits,), _ = forward(tools, variables, weak, key=key)
    size = image_size(valid)
    probabilities = jax.nn.softmax(resize_bilinear(logits.main, size))
    strong = self.strong_colours(key_colours, weak, tools.network)
    box = unimatch_boxes(key_box, len(valid), size, probability=self.box_probability)
    mixed_valid = paste(valid, next_images(valid), box)
    # Blanked once more: the change of colours has filled the padding.
    strong = jnp.where(mixed_valid[..., None], paste(strong, next_images(strong), box), 0.0)
    return Seen(weak, valid, strong, mixed_valid, box, next_images(probabilities))

  def make_loss(
    self, tools: Tools, labelled: Term, threshold: Array, unlabelled: Batch
  ) -> Callable:
    """The losses of a step (2 to 8), and what they say besides.

    threshold: [] float32, tau before the step.
    unlabelled: perhaps with 'label' for metrics.
    """
    def loss(variables: Variables, batch: Any, key: Array) -> Outcome:
      (images, truth), seen = batch
      keys, counts = jax.random.split(key, 4), (len(images), len(seen.weak))
      stages, stats = tools.network.encode(
        variables, join(images, seen.weak), train=True, dropout_key=keys[0])
      masks = channel_masks(
        keys[1], len(stages[0]), tuple(x.shape[-1] for x in stages), rate=self.feature_dropout)
      clean, variables = self.decode(
        tools, with_statistics(variables, stats), stages, keys[0],
        join(jnp.ones(images.shape[:3], bool), self.places(seen.valid)), dropped(stages, masks))
      stages, stats = tools.network.encode(
        variables, seen.strong, train=True, dropout_key=keys[2])
      strong, variables = self.decode(
        tools, with_statistics(variables, stats), stages, keys[2],
        self.places(seen.mixed_valid))

      rows = jax.random.randint(
        keys[3], (self.regions,), 0, max(clean.maps.shape[-1] - 1, 1))  # never the last place
      rows = jax.lax.stop_gradient(clean.maps[:, rows])
      of_labelled, of_weak = separate(clean._replace(maps=rows), *counts)
      rows = of_weak.maps.reshape(counts[1], self.regions, *clean.spread.shape[1:3])
      targets = self.targets(tools, seen, of_weak.logits.main, rows, threshold)
      losses = {'labelled': (labelled.sole_loss(of_labelled.logits, truth)
                             + labelled.sole_loss(Logits(of_labelled.spread), truth)) / 4}
      losses |= unlabelled_losses(
        seen, targets, strong=strong.logits.main, strong_spread=strong.spread,
        perturbed=of_weak.perturbed, weak_spread=of_weak.spread)
      return Outcome(
        losses, variables['batch_stats'], metrics_of(tools, targets, unlabelled))

    return loss

  def decode(
    self, tools: Tools, variables: Variables, stages: Stages, key: Array, counted: Array,
    perturbed: Stages | None = None,
  ) -> tuple[Found, Variables]:
    """Logits of stages, maps with these spread; perturbed stages are decoded in the same pass."""
    images = len(stages[0])
    output, stats = tools.network.decode(
      variables, stages if perturbed is None else join(stages, perturbed), train=True,
      dropout_key=key)
    variables = with_statistics(variables, stats)
    if not self.backbone_learns:
      stages = jax.lax.stop_gradient(stages)
    (query, of_place), stats = tools.network.head(
      variables, HEAD, stages, train=True, dropout_key=key)
    size = image_size(query)
    counted = resize_bilinear(counted[..., None].astype(jnp.float32), size)[..., 0] > 0.5
    maps = correlation.correlation_maps(query, of_place, counted)
    logits, of_perturbed = output.logits, None
    if perturbed is not None:
      logits, (of_perturbed, _) = separate(logits, images, images)
    spread = correlation.correlation_logits(maps, resize_bilinear(logits.main, size), counted)
    return Found(logits, of_perturbed, maps, spread), with_statistics(variables, stats)

  def places(self, valid: Array) -> Array:
    """The pixels that are places of A."""
    return jnp.ones_like(valid) if self.padding_counts else valid

  def targets(
    self, tools: Tools, seen: Seen, weak: Array, rows: Array, threshold: Array
  ) -> Targets:
    """Steps 4 to 6.

    weak: [B,h,w,K], P_w. rows: [B,R,h',w'] of A. threshold: tau before the step.
    """
    probabilities = jax.nn.softmax(
      resize_bilinear(jax.lax.stop_gradient(weak), image_size(seen.valid)))
    own, certainty = pseudo_labels(probabilities)
    threshold = correlation.moved_threshold(
      threshold, own, certainty,
      seen.mixed_valid if self.threshold_padding == 'mixed' else seen.valid,
      decay=self.threshold_decay, num_classes=tools.num_classes)
    mixed = paste(probabilities, seen.partner, seen.box)
    labels, mixed_certainty = pseudo_labels(mixed)
    confident = seen.mixed_valid & (mixed_certainty >= threshold)
    labels, kept = correlation.spread_labels(
      labels, confident, rows, counted=self.places(seen.valid),
      blocked=seen.box | ~seen.mixed_valid, threshold=threshold, num_classes=tools.num_classes)
    return Targets(
      threshold, jnp.where(seen.valid & (certainty >= threshold), own, IGNORE),
      jnp.where(kept, labels, IGNORE), confident,
      probabilities if self.kl_target == 'unmixed' else mixed)
