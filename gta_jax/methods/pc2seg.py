"""PC2Seg-like: consistency of outputs, contrast of features (after Zhong, Yuan, Wu, Yuan, Peng,
Wang; Pixel contrastive-consistent semi-supervised semantic segmentation, ICCV 2021).

NO OFFICIAL CODE EXISTS, and of the paper only the abstract and the first paragraphs were at hand.
This is a reconstruction: its idea is the paper's, all numbers but GTA-Seg's table are unverified.

A weak view w and a strong photometric view s of an unlabelled image show the same places. One
network sees both; outputs are to agree, and features of a pixel are to be nearer to the same pixel
of the other view than to pixels that are likely of other classes.

    1. p_w, f_w = net(w), p_s, f_s = net(s)
    2. L_y = mean over valid pixels of |p_s - sg p_w|^2
    3. anchors i and candidates j: valid pixels drawn uniformly; negatives n of i are drawn among
       the candidates in proportion to 1 - sum_c p_i(c) p_j(c)
    4. L_c = mean_i -log( e^(cos(f_s,i, f_w,i) / t) / (the same + sum_n e^(cos(f_s,i, f_w,n) / t)) )
    5. a step on L_x + 1 L_y + 0.1 L_c, L_x the cross-entropy with ground truth

Cost 9 forward-equivalents, and anchors x candidates cosines. No teacher, no memory.
docs/methods/pc2seg.md has sources, figures and what is unverified.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from gta_jax.methods.contract import Batch, Metrics, Tools, TrainState
from gta_jax.methods.gradient_step import Objective, Outcome, gradient_step
from gta_jax.methods.learners import Learners, StrongView
from gta_jax.methods.objectives import check_whole, labelled_term, unlabelled_images
from gta_jax.methods.options import choice, number
from gta_jax.methods.representation import REPRESENTATION, embed
from gta_jax.models.heads import MakeHead, Projection
from gta_jax.ops.contrastive import (
  draw_below,
  draw_spread,
  draw_without_replacement,
  info_nce,
  nth_true,
  unit,
)
from gta_jax.ops.joining import join, separate
from gta_jax.ops.network import Array, Logits, Params, Variables, with_statistics
from gta_jax.ops.resizing import resize_bilinear, resize_nearest

LABELLED, CONSISTENCY, CONTRAST = 'labelled', 'consistency', 'contrast'
EXACT = jax.lax.Precision.HIGHEST  # of products, which a GPU would round to 10 bits
Seen = tuple[Logits, Array]


@dataclasses.dataclass(frozen=True)
class Pc2seg(StrongView, Learners):
  """Options; every default is a guess to be confirmed, except that L_y is an l2 distance."""

  summary: ClassVar[str] = ('a reconstruction, no official code exists: consistency of outputs, '
                            'contrast of features')
  paper: ClassVar[str] = ('Zhong et al., Pixel Contrastive-Consistent Semi-Supervised Semantic '
                          'Segmentation (PC2Seg), ICCV 2021')
  # PseudoSeg's rate, power and 30,000 steps (34 epochs of 12 images); unverified for this method.
  published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
    'voc': {'data.crop': 513, 'optim.rate': 0.007, 'optim.decoder_multiplier': 1.0,
            'optim.weight_decay': 1e-4, 'train.epochs': 34},
  }

  batch_norm: str = choice('own', 'own', 'joint')  # x_l, w and s are three batches, or one

  consistency_weight: float = number(1.0)  # a, on L_y
  normalised: bool = False  # L_y between probabilities of length one, 2 - 2 cos

  contrast_weight: float = number(0.1)  # b, on L_c
  temperature: float = number(0.1, least=1e-3)  # t
  key_gradient: bool = True  # the weak view's features learn too, or are constants
  anchors: int = number(1024, least=1)  # pixels of the batch, with replacement
  candidates: int = number(4096, least=1, most=46_340)  # pixels that negatives are drawn from
  negatives: int = number(256, least=1)  # of each anchor
  # What the chance to be a negative is proportional to; factors are joined by '+'.
  negative_rule: str = choice(
    'other_classes', 'uniform', 'other_images', 'other_classes', 'other_classes+other_images')
  channels: int = number(128, least=1)  # of the embedding

  def __post_init__(self):
    super().__post_init__()
    if self.negatives > self.candidates:
      raise ValueError(f'negatives={self.negatives} are drawn from candidates={self.candidates}; '
                       'use no more negatives than candidates.')

  @property
  def heads(self) -> Mapping[str, MakeHead]:
    def make(*, num_classes: int, features: int) -> Projection:
      del num_classes
      return Projection(channels=self.channels, features=features)

    return {REPRESENTATION: make}

  @property
  def cost(self) -> float:
    return 9 if self.key_gradient else 7

  def check(self, tools: Tools) -> tuple[str, ...]:
    """See Method."""
    check_whole(tools, 'the negatives of an image are pixels of all the others')
    if 'other_images' in self.negative_rule and tools.unlabelled_batch < 2:
      raise ValueError(
        f'method.negative_rule={self.negative_rule} finds no other image in a batch of '
        f'{tools.unlabelled_batch}; use train.unlabelled_batch=2 or more, or other_classes.')
    return ('pc2seg is a reconstruction: no official code exists, and its numbers are unverified',)

  def step(self, tools: Tools) -> Callable:
    """The step of the one stage."""
    optimizer = self.optimizers(tools)['model']

    def step(state: TrainState, batches: dict[str, Batch]) -> tuple[TrainState, Metrics]:
      objective = self.objective(tools, batches, state.step_key())
      state, metrics = gradient_step(tools, state, 'model', optimizer, objective)
      return state.replace(step=state.step + 1), metrics

    return step

  def objective(self, tools: Tools, batches: dict[str, Batch], key: Array) -> Objective:
    """Lines 1 to 5; everything is computed on the whole batch."""
    key_view, key_draws, key_dropout = jax.random.split(key, 3)
    network, labelled = tools.network, labelled_term(tools, batches['labelled'])
    valid = batches['unlabelled']['valid']
    weak = unlabelled_images(tools, batches['unlabelled'])
    strong = self.strong_colours(key_view, weak, network)
    strong = jnp.where(valid[..., None], strong, 0.0)

    def loss(variables: Variables, batch: dict, key: Array) -> Outcome:
      (of_labelled, of_weak, of_strong), stats = self.see(
        tools, variables, (batch[LABELLED][0], batch['weak'], batch['strong']), key)
      return Outcome({
        LABELLED: labelled.sole_loss(of_labelled[0], batch[LABELLED][1]),
        CONSISTENCY: self.consistency_weight * self.consistency(
          of_weak, of_strong, batch['valid']),
        CONTRAST: self.contrast_weight * self.contrast(
          key_draws, of_weak, of_strong, batch['valid']),
      }, stats)

    return Objective(loss, {LABELLED: (labelled.images, labelled.targets), 'weak': weak,
                            'strong': strong, 'valid': valid}, key_dropout)

  def see(
    self, tools: Tools, variables: Variables, images: tuple[Array, ...], key: Array
  ) -> tuple[tuple[Seen, ...], Params]:
    """Logits and embedding of each batch of images, and batch_stats; one pass or several."""
    if self.batch_norm == 'joint':
      seen, stats = embed(
        tools.network, variables, join(*images), train=True, dropout_key=key)
      return separate(seen, *map(len, images)), stats
    found = []
    for i, x in enumerate(images):
      seen, stats = embed(
        tools.network, variables, x, train=True, dropout_key=jax.random.fold_in(key, i))
      found.append(seen)
      variables = with_statistics(variables, stats)
    return tuple(found), variables['batch_stats']

  def consistency(self, weak: Seen, strong: Seen, valid: Array) -> Array:
    """Line 2; no gradient reaches the weak view."""
    p_weak, p_strong = (
      jax.nn.softmax(resize_bilinear(seen[0].main, valid.shape[1:])) for seen in (weak, strong))
    p_weak = jax.lax.stop_gradient(p_weak)
    if self.normalised:
      p_weak, p_strong = unit(p_weak), unit(p_strong)
    distance = jnp.sum(jnp.square(p_strong - p_weak), axis=-1)
    return jnp.sum(jnp.where(valid, distance, 0.0)) / jnp.maximum(jnp.sum(valid), 1)

  def contrast(self, key: Array, weak: Seen, strong: Seen, valid: Array) -> Array:
    """Lines 3 and 4, at the embeddings' resolution."""
    queries, keys = (seen[1].reshape(-1, seen[1].shape[-1]) for seen in (strong, weak))
    keys = keys if self.key_gradient else jax.lax.stop_gradient(keys)
    seen = resize_nearest(valid, weak[1].shape[1:3]).reshape(-1)
    probabilities = jax.nn.softmax(weak[0].main).reshape(len(seen), -1)
    anchors, candidates, chosen, drawn = self.draw(
      key, jax.lax.stop_gradient(probabilities), seen, len(valid))
    queries = unit(queries[anchors])
    positive = jnp.einsum('ad,ad->a', queries, unit(keys[anchors]), precision=EXACT)
    cosines = jnp.einsum('ad,jd->aj', queries, unit(keys[candidates]), precision=EXACT)
    losses = info_nce(positive, jnp.take_along_axis(cosines, chosen, axis=1), drawn,
                      temperature=self.temperature)
    return jnp.where(jnp.any(seen), jnp.mean(losses), 0.0)

  def draw(
    self, key: Array, probabilities: Array, valid: Array, images: int
  ) -> tuple[Array, Array, Array, Array]:
    """Line 3: anchors [A] and candidates [J] among N pixels, which of the candidates are the
    negatives of each anchor [A,M], and whether they are there [A,M].

    Args:
      key: PRNG key.
      probabilities: [N,K] of the weak view.
      valid: [N] bool; no other pixel is an anchor or a negative.
      images: that the N pixels belong to, in order.
    """
    key_anchors, key_candidates, key_negatives = jax.random.split(key, 3)
    mask, count = valid[None], jnp.sum(valid)[None]
    anchors = nth_true(mask, draw_below(key_anchors, count, (self.anchors,)))[0]
    ranks, number = draw_spread(key_candidates, count, min(self.candidates, len(valid)))
    candidates = nth_true(mask, ranks)[0]
    weights = (jnp.arange(len(candidates)) < number).astype(jnp.float32)[None]
    if 'other_classes' in self.negative_rule:
      same = jnp.einsum('ac,jc->aj', probabilities[anchors], probabilities[candidates],
                        precision=EXACT)
      weights = weights * jnp.maximum(1 - same, 0)
    if 'other_images' in self.negative_rule:
      of_image = len(valid) // images
      weights = weights * (anchors[:, None] // of_image != candidates // of_image)
    weights = jnp.broadcast_to(weights, (len(anchors), len(candidates)))
    chosen, drawn = draw_without_replacement(
      key_negatives, jnp.log(weights), min(self.negatives, len(candidates)))
    return anchors, candidates, chosen, drawn
