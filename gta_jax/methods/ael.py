"""AEL: adaptive equalisation learning (Hu et al., NeurIPS 2021).

A mean teacher on mixed images that cares most for the classes it is worst at. The memory holds a
confidence conf_c for each class; by it classes are pasted into labelled images, cut out of
unlabelled ones, and sampled in the loss. Labels are weighed by the square of the teacher's
confidence instead of being cut at a high threshold.

    1. Into every other labelled image go all pixels of some classes of the next image; a class is
       drawn with P(c) = softmax(1 - conf_c).
    2. The teacher, in train mode, labels the unlabelled images: y, kappa. A class s is drawn with
       softmax(1 - conf_s) for every image, then another image that holds s; the box around one of
       its components of s (or a random box of half the area) is cut out and pasted.
    3. conf_c <- 0.999 conf_c + 0.001 m_c, m_c the student's mean probability of c where c is true.
    4. rate_c = ((1 - conf_c) / max_c (1 - conf_c))^beta; a pixel is kept with the rate of the class
       that the student predicts; w_i = kappa_i^2 kept_i / sum kappa^2 kept.
    5. L = L_x + mean over images of sum_i w_i CE(P_i, y_i); the teacher follows the student with
       the decay min(1 - 1/(k+1), 0.99).

Cost 7 forward-equivalents of B images: student 3 + 3, teacher 1; with `labelled_term` 8.

Reported mIoU, ResNet-101, mean of 5 random folds: VOC 1/32 to 1/2 76.97 77.20 77.57 78.06 80.29,
Cityscapes 74.28 75.83 77.90 79.01 80.28. The folds were drawn by seed; GTA-Seg's Table 2 copies
the VOC figures beside lists of its own.

Name `ael` is the paper, `ael_released` the authors' code (2021-10): a loss on labelled images with
the teacher's labels too, pasting by softmax(sqrt(1 - conf)), confidences pooled over pixels with
absent classes falling towards 0, one normalisation over the batch, its threshold by data set.

Not as in paper and code:
  - There is no memory of which unlabelled image holds which class: images are read before a step
    knows its class. The donor is one of the batch, by what the teacher now predicts; that is the
    memory's rule, with at least `held_area` of the image, on fewer candidates.
  - What is pasted comes from a crop at its own scale of training, not scaled by 0.1 to 2 for it.
  - Classes to paste are drawn for each image, not for the 2 of a GPU, and so are the numbers that
    decide which pixels are kept; the code has one map for each class.
  - Confidences and batches are those of all devices; the code's processes have their own.
  - Padding is ignored, of labelled images in `ael` alone; the code labels it class 0.
Unverified: whether the paper's method has OHEM, an auxiliary head or batch statistics of the
teacher's own passes as the code has; that VOC figures at few labels can be reached (users report
that they were not).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from gta_jax.methods.contract import Batch, Metrics, Tools, TrainState
from gta_jax.methods.gradient_step import Objective, Outcome, descend, forward, move_on, slope
from gta_jax.methods.objectives import unlabelled_images
from gta_jax.methods.options import choice, number
from gta_jax.methods.pseudo_labelling import class_counts, oracle_metrics
from gta_jax.methods.supervised import LABELLED, Supervised
from gta_jax.ops import class_pasting, equalisation
from gta_jax.ops.losses import IGNORE
from gta_jax.ops.mixing import next_images
from gta_jax.ops.network import Array, Variables, with_statistics
from gta_jax.ops.pseudo_labels import pseudo_labels
from gta_jax.ops.resizing import resize_bilinear

MIXED, LABELLED_PSEUDO = 'mixed', 'labelled_pseudo'
_NETWORK = {'data.crop': 513, 'model.auxiliary': True, 'loss.ohem_threshold': 0.7,
            'loss.ohem_min_kept': 8 * 100_000, 'train.labelled_batch': 16,
            'train.unlabelled_batch': 8, 'data.scale': (0.5, 1.0, 2.0)}  # half shrink, half grow
RELEASED = {'paste_tilt': 'root', 'loss_pool': 'batch', 'labelled_term': True,
            'confidence_pool': 'batch', 'absent': 'zero'}
NOT_PASTED = (0, 1, 2, 8, 10)  # in its configurations, also of VOC, though meant for Cityscapes
Pseudo = tuple[Array, Array, Array]  # labels, confidence, uniform numbers that keep pixels


@dataclasses.dataclass(frozen=True)
class Ael(Supervised):
  """Options; the defaults are the paper's for Cityscapes, `published` has VOC's."""

  summary: ClassVar[str] = 'mean teacher that pastes, cuts and samples what it is worst at'
  paper: ClassVar[str] = ('Hu et al., Semi-Supervised Semantic Segmentation via Adaptive '
                          'Equalization Learning, NeurIPS 2021')
  # The code divides the loss by its 8 processes and averages gradients over them once more: its
  # rates (0.01 and 0.1) are worth an eighth, and the decay beside that gradient eight times 1e-4.
  # A step reads 16 unlabelled images and mixes them into 8; here it reads 8, so that half of the
  # code's epochs (80 and 200) are as many steps.
  published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
    'voc': {**_NETWORK, 'optim.rate': 0.00125, 'optim.weight_decay': 8e-4, 'train.epochs': 40,
            'method.pasted_classes': 1, 'method.region_area': 0.03, 'method.held_area': 0.03},
    'cityscapes': {**_NETWORK, 'data.crop': 769, 'optim.rate': 0.00125,
                   'optim.decoder_multiplier': 10.0, 'optim.weight_decay': 8e-4,
                   'train.epochs': 100},
  }

  # The teacher, as the code has it; the paper leaves it open.
  ema_ramp: bool = True
  teacher_batch_norm: str = choice('own', 'ema', 'own')
  warmup_epochs: float = number(0.0)

  # Pasting into labelled images.
  paste_probability: float = number(0.5, most=1)  # that an image gets pixels of the next one
  pasted_classes: int = number(3, least=1)  # draws of a class, with replacement
  paste_tilt: str = choice('linear', 'linear', 'root')  # softmax of 1 - conf, or of its root
  not_pasted: tuple[int, ...] = ()  # class ids

  # Cutting out of unlabelled images.
  region: str = choice('component', *class_pasting.REGIONS)  # box of a component, or of the class
  region_area: float = number(0.005, most=1)  # share of the image that it must have more than
  held_area: float = number(0.01, most=1)  # share of the image from which on it holds a class

  # The loss on the teacher's labels.
  threshold: float = number(0.0, most=1)  # confidence below which a pixel has no loss
  beta: float = number(1.0)  # power of the rates at which pixels are kept
  loss_pool: str = choice('image', *equalisation.POOLS)  # over which pixels weights sum to one
  labelled_term: bool = False  # the same loss on labelled images, with the teacher's labels

  # The confidences of the classes.
  confidence_decay: float = number(0.999, most=1)
  confidence_pool: str = choice('image', *equalisation.POOLS)  # means of images, or of all pixels
  absent: str = choice('stays', 'stays', 'zero')  # what becomes of a class that no image holds

  @property
  def uses_unlabelled(self) -> bool:
    return True

  @property
  def cost(self) -> float:
    return 7 + self.labelled_term

  def check(self, tools: Tools) -> tuple[str, ...]:
    """See Method."""
    if tools.labelled_batch < 2 and self.paste_probability:
      raise ValueError(f'train.labelled_batch={tools.labelled_batch} has no second image to paste '
                       'from; use at least 2, or method.paste_probability=0.')
    if tools.unlabelled_batch < 2:
      raise ValueError(f'train.unlabelled_batch={tools.unlabelled_batch} has no second image to '
                       'cut from; use at least 2.')
    if unknown := [c for c in self.not_pasted if c not in range(tools.num_classes)]:
      raise ValueError(f'method.not_pasted holds {unknown}, none of the {tools.num_classes} '
                       'classes; name ids of classes.')
    if len(set(self.not_pasted)) == tools.num_classes and self.paste_probability:
      raise ValueError('method.not_pasted holds every class; leave one, or set '
                       'method.paste_probability=0.')
    if self.joint:
      raise ValueError('method.batch_norm=joint is not possible, as AEL passes each kind of images '
                       'by itself; use own.')
    cut = max(tools.accumulation.count(n) for n in (tools.labelled_batch, tools.unlabelled_batch))
    if cut > 1 and (self.loss_pool == 'batch' or self.labelled_term):
      raise ValueError(
        f'train.per_device_batch={tools.accumulation.per_device} does not go together with '
        'method.loss_pool=batch or method.labelled_term=True, whose weights need the predictions '
        'for the whole batch; use loss_pool=image and labelled_term=False, or whole batches and '
        'model.remat=True.')
    return super().check(tools)

  def init(self, key: Array, draw: Callable[..., Variables], tools: Tools) -> TrainState:
    """See Method. The confidences start as uniform numbers."""
    confidence = jax.random.uniform(jax.random.fold_in(key, 0), (tools.num_classes,))
    return super().init(key, draw, tools).replace(memory={'confidence': confidence})

  def step(self, tools: Tools, *, handover: bool = False) -> Callable:
    """The step of the main phase; see Supervised.step."""
    optimizer = self.optimizers(tools)['student']

    def step(state: TrainState, batches: dict[str, Batch]) -> tuple[TrainState, Metrics]:
      keys = jax.random.split(state.step_key(), 7)
      state = self.hand_over(state) if handover else state
      confidence, unlabelled = state.memory['confidence'], batches['unlabelled']
      labelled = self.paste(keys[0], batches['labelled'], confidence)
      valid = unlabelled['valid']
      pseudo = None
      if self.labelled_term:  # First, as the teacher's statistics then end on unlabelled images.
        of_labelled = tools.network.normalize(labelled['image'])
        everywhere = jnp.ones(labelled['label'].shape, bool)
        state, *said = self.teach(tools, state, of_labelled, everywhere, keys[3])
        pseudo = (said[0], said[1], jax.random.uniform(keys[4], everywhere.shape))
      images = unlabelled_images(tools, unlabelled)
      state, labels, kappa = self.teach(tools, state, images, valid, keys[1])
      metrics = {'confidence': jnp.sum(kappa * valid) / jnp.maximum(jnp.sum(valid), 1)}
      if 'label' in unlabelled:
        metrics |= oracle_metrics(labels, unlabelled, tools.num_classes)
      donor, box = self.cut(keys[2], labels, confidence)
      # Bytes, as a donor may be on any device: each one gathers what all others hold.
      images, labels, kappa = class_pasting.paste_boxes(
        donor, box, unlabelled['image'], labels.astype(jnp.uint8), kappa)
      labels = labels.astype(jnp.int32)  # IGNORE, also a donor's, is where padding is.
      images = unlabelled_images(tools, {'image': images, 'valid': labels != IGNORE})

      objective, move = self.labelled_objective(tools, labelled, pseudo, confidence, keys[5])
      variables = state.networks['student']
      by_labelled, variables = move_on(slope(tools, variables, objective), variables)
      confidence = move(by_labelled.sums['means'])
      pseudo = (labels, kappa, jax.random.uniform(jax.random.fold_in(keys[6], 0), labels.shape))
      objective = self.mixed_objective(tools, images, pseudo, confidence, keys[6])
      by_mixed = slope(tools, variables, objective)
      state, learnt = descend(state, 'student', optimizer, by_labelled, by_mixed)
      state, decay = self.follow(tools, state)

      kept = by_mixed.sums['kept']
      metrics |= learnt | decay | {
        'kept_share': jnp.sum(kept) / valid.size,
        'kept_share_by_class': kept / jnp.maximum(jnp.sum(kept), 1),
        'class_confidence': confidence, 'cut_share': jnp.mean(box)}
      return state.replace(step=state.step + 1, memory={'confidence': confidence}), metrics

    return step

  def paste(self, key: Array, labelled: Batch, confidence: Array) -> Batch:
    """Step 1: labelled images with pixels of the next image's classes."""
    key_class, key_whether = jax.random.split(key)
    batch, classes, doubt = len(labelled['label']), jnp.arange(len(confidence)), 1 - confidence
    scores = jnp.where(jnp.isin(classes, jnp.array(self.not_pasted, jnp.int32)), -jnp.inf,
                       jnp.sqrt(doubt) if self.paste_tilt == 'root' else doubt)
    drawn = jax.random.categorical(key_class, scores, shape=(batch, self.pasted_classes))
    chosen = jnp.any(drawn[..., None] == classes, axis=1)
    chosen &= jax.random.bernoulli(key_whether, self.paste_probability, (batch, 1))
    image, label = labelled['image'], labelled['label']
    image, label = class_pasting.copy_paste(
      image, label, next_images(image), next_images(label), chosen)
    return {'image': image, 'label': label}

  def teach(
    self, tools: Tools, state: TrainState, images: Array, valid: Array, key: Array
  ) -> tuple[TrainState, Array, Array]:
    """What the teacher says of images: labels, IGNORE on padding, and confidence [B,H,W].

    Its running statistics move with its own passes.
    """
    teacher = state.networks['teacher']
    (logits,), stats = forward(
      tools, teacher, images, key=key, train=self.teacher_batch_norm == 'own')
    labels, confidence = pseudo_labels(
      jax.nn.softmax(resize_bilinear(logits.main, valid.shape[1:3])))
    state = state.with_networks(teacher=with_statistics(teacher, stats))
    return state, jnp.where(valid, labels, IGNORE), confidence

  def cut(self, key: Array, labels: Array, confidence: Array) -> tuple[Array, Array]:
    """Step 2: which image each one is mixed with, and the box that comes from there.

    Args:
      key: PRNG key.
      labels: [B,H,W] int32 of the teacher, IGNORE on padding.
      confidence: [K].
    Returns: numbers of images [B] int32, boxes [B,H,W] bool.
    """
    (key_class, key_donor, key_box), (batch, height, width) = jax.random.split(key, 3), labels.shape
    chosen = jax.random.categorical(key_class, 1 - confidence, shape=(batch,))
    pixels = jnp.sum(labels[..., None] == jnp.arange(len(confidence)), axis=(1, 2))
    holds = pixels >= self.held_area * height * width
    donor = class_pasting.choose_donors(key_donor, holds, chosen)
    mask = labels.astype(jnp.uint8)[donor] == chosen[:, None, None]
    return donor, class_pasting.class_boxes(
      key_box, mask, region=self.region, area=self.region_area)

  def labelled_objective(
    self, tools: Tools, labelled: Batch, pseudo: Pseudo | None, confidence: Array, key: Array
  ) -> tuple[Objective, Callable[[Array], Array]]:
    """Ground truth, and the teacher's labels if there are any; measures the means m of step 3.

    Returns: the objective, and the confidences as a function of m.
    """
    term = self.labelled(tools, {'labelled': labelled})
    labels = labelled['label'].astype(jnp.int32)
    shares = equalisation.class_shares(
      labels, num_classes=len(confidence), pool=self.confidence_pool)

    def move(means: Array) -> Array:
      return equalisation.move_confidence(
        confidence, means, shares, decay=self.confidence_decay, absent=self.absent)

    def loss(variables: Variables, batch: Any, key: Array) -> Outcome:
      images, targets, labels, shares, pseudo = batch
      logits, stats = tools.network.apply(variables, images, train=True, dropout_key=key)
      losses = {LABELLED: term.sole_loss(logits, targets)}
      logits_full = resize_bilinear(logits.main, labels.shape[1:3])
      means = equalisation.class_means(logits_full, labels, shares)
      if pseudo is not None:  # Never of a cut batch, see check: the means are those of all images.
        losses[LABELLED_PSEUDO], _ = self.pseudo_loss(
          tools.labelled_batch, logits_full, pseudo, move(means))
      return Outcome(losses, stats, {'means': means})

    batch = (term.images, term.targets, labels, shares, pseudo)
    return Objective(loss, batch, key), move

  def mixed_objective(
    self, tools: Tools, images: Array, pseudo: Pseudo, confidence: Array, key: Array
  ) -> Objective:
    """The loss on mixed images; measures how many pixels of each class are kept."""
    def loss(variables: Variables, batch: Any, key: Array) -> Outcome:
      images, pseudo = batch
      logits, stats = tools.network.apply(variables, images, train=True, dropout_key=key)
      logits_full = resize_bilinear(logits.main, images.shape[1:3])
      found, kept = self.pseudo_loss(tools.unlabelled_batch, logits_full, pseudo, confidence)
      count = class_counts(jnp.where(kept, pseudo[0], IGNORE), len(confidence))
      return Outcome({MIXED: found}, stats, {'kept': count})

    return Objective(loss, (images, pseudo), key)

  def pseudo_loss(
    self, images: int, logits_full: Array, pseudo: Pseudo, confidence: Array
  ) -> tuple[Array, Array]:
    """Step 4: the loss, and which pixels have one; `images` is the number of the whole batch."""
    return equalisation.equalised_cross_entropy(
      logits_full, *pseudo, equalisation.sampling_rates(confidence, beta=self.beta),
      threshold=self.threshold, pool=self.loss_pool, images=images)
