"""GCT: guided collaborative training (Ke, Qiu, Li, Yan, Lau; ECCV 2020), as its authors' PixelSSL.

Two networks, student (l) and assistant (r), and a flaw detector D that says pixel by pixel how
wrong a prediction is. Where one network is the better one, the other follows its probabilities;
where both are bad, they reduce the flaw that D sees. x = [x_l; x_u], all images of both kinds:

    0  p_k = softmax f_k(x), g_k = handled(D(x, p_k)); where g > xi it counts as 1
       t_l = p_l where g_r >= g_l, else p_r; t_r likewise; bad = g_l > xi and g_r > xi before that
    1  L_k = CE_k + 1.0 mean bad D(x, p_k)^2 + s 100 mean (p_k - t_k)^2, D a constant;  one step of
       each network; s = exp(-5 (1 - t/K)^2) over the first epochs
    2  L_D = 10 mean over k and labelled pixels of (D(x_l, p_k) - T_k)^2, T_k from |onehot - p_k|;
       one step of Adam

Cost: 16 forward-equivalents of B images, gct_torchsemiseg 20; D besides, each pass of it roughly a
fifth of DeepLabV3+'s (derived). Reported figures: docs/methods/gct.md.

gct_torchsemiseg is the version of TorchSemiSeg, of GTA-Seg's Table 2 (unverified: that the table
quotes it): to the networks both kinds of images are batches of their own, CE is a mean over known
pixels, D learns from predictions of the updated networks, at a constant rate, and from max(F, 0).

Deviations: padding of unlabelled images has no loss and no flaw; pixels without a label count in
all but CE, as published. D has no biases before a normalisation, which would take them away.
PixelSSL labels padding as background: data.padding_label=0. unverified: the paper's text was not at
hand; the code decides.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from gta_jax.methods.contract import Batch, Metrics, Tools, TrainState, init_state
from gta_jax.methods.cps import TORCHSEMISEG_VOC
from gta_jax.methods.gct_images import (
  Images,
  Parts,
  in_passes,
  probabilities,
  read_images,
  shares,
)
from gta_jax.methods.gradient_step import Objective, Outcome, forward, gradient_step
from gta_jax.methods.learners import Learners, draw_each
from gta_jax.methods.objectives import check_joint
from gta_jax.methods.options import choice, number
from gta_jax.models.flaw_detector import FlawDetector, make_flaw_detector, map_size
from gta_jax.ops.flaws import flaw_target, handle_flaw, odd_size, who_follows
from gta_jax.ops.joining import join, separate
from gta_jax.ops.network import Array, Logits, Params, Variables, with_statistics
from gta_jax.ops.optim import Optimizer, make_adam, poly_schedule
from gta_jax.ops.ramps import sigmoid_ramp

NETWORKS = ('student', 'assistant')
DETECTOR = 'detector'


@dataclasses.dataclass(frozen=True)
class Gct(Learners):
  """Options; the defaults are PixelSSL's step."""

  summary: ClassVar[str] = 'two networks follow each other where a flaw detector finds them better'
  paper: ClassVar[str] = ('Ke, Qiu, Li, Yan, Lau, Guided Collaborative Training for Pixel-wise '
                          'Semi-Supervised Learning, ECCV 2020')
  scored: ClassVar[tuple[str, ...]] = NETWORKS
  compared: ClassVar[tuple[str, ...]] = NETWORKS
  # PixelSSL's DeepLabV2 on 1/16 and 1/8, rates as its flags times its 4 GPUs.
  published: ClassVar[Mapping[str, Mapping[str, Any]]] = {'voc': {
    'data.crop': 321, 'optim.rate': 0.001, 'optim.decoder_multiplier': 10.0,
    'optim.weight_decay': 5e-4, 'train.epochs': 20, 'train.labelled_batch': 8,
    'train.unlabelled_batch': 8}}

  consistency_weight: float = number(100.0)  # of the mean squared difference to t
  ramp_epochs: float = number(3.0)  # K, epochs until the consistency has its full weight
  flaw_weight: float = number(1.0)  # of the mean squared flaw where both networks are bad
  flaw_threshold: float = number(0.6, most=1)  # xi, the handled flaw from which a pixel is bad
  unsure_flaw: str = choice('as_coded', 'as_coded', 'zero')  # g of images without a clear flaw
  supervised_divisor: str = choice('all', 'all', 'known')  # pixels that CE's sum is divided by
  batch_norm: str = choice('joint', 'joint', 'own')  # which images share batch statistics

  detector_blocks: int = number(4, least=1, most=4)  # of convolutions; fewer for small crops
  detector_rate: float = number(4e-4)  # of Adam, whose betas are 0.9 and 0.99
  detector_schedule: str = choice('poly', 'poly', 'constant')  # of that rate
  detector_weight: float = number(10.0)  # of the detector's loss
  detector_sees: str = choice('before', 'before', 'after')  # predictions of which networks
  rectified: bool = False  # the detector's loss sees max(F, 0), with the gradient of F

  @property
  def cost(self) -> float:
    return len(NETWORKS) * (2 + 6 + 2 * (self.detector_sees == 'after'))

  def check(self, tools: Tools) -> tuple[str, ...]:
    """See Method."""
    check_joint(tools, 'GCT')
    side = map_size(tools.crop, self.detector_blocks)
    if side < 1:
      raise ValueError(
        f'data.crop={tools.crop} leaves nothing of an image in a flaw detector of '
        f'method.detector_blocks={self.detector_blocks}; use larger crops or fewer blocks.')
    notes = []
    if tools.loss.ohem_threshold is not None and self.supervised_divisor == 'all':
      notes.append('method.supervised_divisor=all has no effect, as loss.ohem_threshold chooses '
                   'pixels and divides by their number')
    if side < 4:
      notes.append(f'the flaw detector has {side} x {side} values for an image, too few to find '
                   'flaws; larger crops or a lower method.detector_blocks give more')
    return tuple(notes)

  def init(self, key: Array, draw: Callable[..., Variables], tools: Tools) -> TrainState:
    """See Method. The networks' heads are drawn separately, or they would stay equal."""
    detector = self.detector().init(
      jax.random.fold_in(key, 2), (tools.crop, tools.crop), tools.num_classes)
    networks = draw_each(key, draw, NETWORKS) | {DETECTOR: detector}
    return init_state(key, networks, self.optimizers(tools))

  def detector(self) -> FlawDetector:
    """Its functions."""
    return make_flaw_detector(blocks=self.detector_blocks)

  def optimizers(self, tools: Tools) -> dict[str, Optimizer]:
    """SGD, or what the config says, of the networks, and Adam of the detector."""
    rate = optax.constant_schedule(self.detector_rate)
    if self.detector_schedule == 'poly':
      rate = poly_schedule(self.detector_rate, total_steps=tools.total_steps)
    return super().optimizers(tools) | {DETECTOR: make_adam(rate, b1=0.9, b2=0.99)}

  def step(self, tools: Tools) -> Callable:
    """The step of steps 0 to 2 above."""
    optimizers = self.optimizers(tools)

    def step(state: TrainState, batches: dict[str, Batch]) -> tuple[TrainState, Metrics]:
      keys = jax.random.split(state.step_key(), 3)
      x = read_images(tools, batches)
      detector = state.networks[DETECTOR]
      state, logits = self.predict(tools, state, x, keys[0])
      flaws = self.handled_flaws(detector, x, logits)
      own_l, own_r, both_bad = who_follows(*flaws, threshold=self.flaw_threshold)
      ramp = sigmoid_ramp(state.step, self.ramp_epochs * tools.epoch_steps)
      metrics = shares(x, own_l, own_r, both_bad) | {'consistency_ramp': ramp}
      for i, (name, own) in enumerate(zip(NETWORKS, (own_l, own_r), strict=True)):
        guidance = (own, logits[name], logits[NETWORKS[1 - i]], both_bad)
        objective = self.objective(
          tools, detector, x, guidance, ramp, jax.random.fold_in(keys[1], i))
        state, learnt = gradient_step(tools, state, name, optimizers[name], objective)
        # The other network waits, or a GPU would hold the activations of both.
        state = jax.lax.optimization_barrier(state)
        metrics |= learnt
      if self.detector_sees == 'after':
        state, logits = self.predict(tools, state, x, keys[2])
      state, learnt = gradient_step(
        tools, state, DETECTOR, optimizers[DETECTOR], self.detector_objective(x, logits))
      return state.replace(step=state.step + 1), metrics | learnt

    return step

  def predict(
    self, tools: Tools, state: TrainState, x: Images, key: Array
  ) -> tuple[TrainState, dict[str, Parts]]:
    """Step 0: low-resolution logits in train mode, and the state with the statistics moved."""
    found = {}
    for i, name in enumerate(NETWORKS):
      variables, parts = state.networks[name], []
      for j, images in enumerate((x.images,) if self._joint else ((part,) for part in x.images)):
        key_pass = jax.random.fold_in(key, 2 * i + j)
        logits, stats = forward(tools, variables, *images, key=key_pass, train=True)
        variables = with_statistics(variables, stats)
        parts += [of_part.main for of_part in logits]
      state = state.with_networks(**{name: variables})
      found[name] = tuple(parts)
    return state, found

  def handled_flaws(
    self, detector: Variables, x: Images, logits: Mapping[str, Parts]
  ) -> tuple[Array, Array]:
    """g of both networks, [2B,H,W], of the joined images."""
    valid = join(*x.valid)

    def handled(parts: Parts) -> Array:
      flaw, _ = self.detect(detector, x.images, probabilities(parts, x.size))
      return handle_flaw(
        join(*flaw), valid, size=odd_size(x.size[0] / 16), unsure=self.unsure_flaw)

    one, other = (jax.lax.stop_gradient(handled(logits[name])) for name in NETWORKS)
    return one, other

  def detect(self, variables: Variables, images: Parts, seen: Parts) -> tuple[Parts, Params]:
    """The detector's output on each part and its probabilities, and its statistics afterwards.

    It sees both parts as one batch, also where the networks do not.
    """
    flaws, stats = self.detector().apply(variables, join(*images), join(*seen))
    return separate(flaws, *map(len, images)), stats

  def objective(
    self, tools: Tools, detector: Variables, x: Images,
    guidance: tuple[Array, Parts, Parts, Array], ramp: Array, key: Array,
  ) -> Objective:
    """Step 1 of one network, as a sum over images.

    Args:
      detector: variables, constant.
      guidance: where the network keeps its own prediction [2B,H,W]; low-resolution logits of its
        own and of the other network; where both are bad [2B,H,W].
      ramp: s.
      key: of the dropout.
    """
    own, own_logits, other_logits, both_bad = guidance
    pixels = jnp.maximum(sum(jnp.sum(valid, dtype=jnp.float32) for valid in x.valid), 1)
    divisor = (jnp.float32(x.labels.size) if self.supervised_divisor == 'all'
               else tools.loss.divisor(x.labels))

    def split(maps: Array) -> Parts:
      return separate(maps, *map(len, x.images))

    def loss(variables: Variables, batch: tuple, key: Array) -> Outcome:
      labels, images, valid, own, own_logits, other_logits, both_bad = batch

      def apply(stats: Params, part: Array, number: int) -> tuple[Logits, Params]:
        return tools.network.apply(with_statistics(variables, stats), part, train=True,
                                   dropout_key=jax.random.fold_in(key, number))

      logits, stats = in_passes(apply, variables['batch_stats'], images, joint=self._joint)
      seen = probabilities(tuple(one.main for one in logits), x.size)
      flaws, _ = self.detect(detector, images, seen)
      consistency = flaw = jnp.float32(0)
      kept, others = (probabilities(of, x.size) for of in (own_logits, other_logits))
      for i, p in enumerate(seen):
        target = jnp.where(own[i][..., None], kept[i], others[i])
        difference = jnp.mean(jnp.square(p - target), axis=-1)
        consistency += jnp.sum(jnp.where(valid[i], difference, 0.0))
        flaw += jnp.sum(jnp.where(valid[i] & both_bad[i], jnp.square(flaws[i]), 0.0))
      return Outcome({
        'labelled': tools.loss(logits[0], labels, divisor=divisor),
        'flaw': self.flaw_weight * flaw / pixels,
        'consistency': self.consistency_weight * ramp * consistency / pixels,
      }, stats)

    return Objective(loss, (x.labels, x.images, x.valid, split(own), own_logits, other_logits,
                            split(both_bad)), key)

  def detector_objective(self, x: Images, logits: Mapping[str, Parts]) -> Objective:
    """Step 2, as a sum over labelled images; the detector's statistics are those of all."""
    height, size = x.size[0], x.size
    sizes = odd_size(height / 8), odd_size(height / 4)
    divisor = x.labels.size * len(NETWORKS)

    def loss(variables: Variables, batch: tuple, key: Array) -> Outcome:
      del key
      labels, images, seen = batch
      total, stats = jnp.float32(0), variables['batch_stats']
      for parts in seen.values():
        p = probabilities(parts, size)
        target = flaw_target(p[0], labels, sizes=sizes)
        flaws, stats = self.detect(with_statistics(variables, stats), images, p)
        flaw = flaws[0]
        if self.rectified:
          flaw = flaw + jax.lax.stop_gradient(jnp.maximum(flaw, 0) - flaw)
        total += jnp.sum(jnp.square(flaw - target))
      return Outcome({'flaw': self.detector_weight * total / divisor}, stats)

    return Objective(loss, (x.labels, x.images, dict(logits)), jax.random.key(0))

  @property
  def _joint(self) -> bool:
    return self.batch_norm == 'joint'


@dataclasses.dataclass(frozen=True)
class GctTorchSemiSeg(Gct):
  """TorchSemiSeg's version, of GTA-Seg's Table 2."""

  summary: ClassVar[str] = "TorchSemiSeg's version of gct, of GTA-Seg's Table 2"
  published: ClassVar[Mapping[str, Mapping[str, Any]]] = {'voc': TORCHSEMISEG_VOC}

  supervised_divisor: str = choice('known', 'all', 'known')
  batch_norm: str = choice('own', 'joint', 'own')
  detector_schedule: str = choice('constant', 'poly', 'constant')
  detector_sees: str = choice('after', 'before', 'after')
  rectified: bool = True
