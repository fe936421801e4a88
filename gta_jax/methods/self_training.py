"""ST: self-training from stage to stage, with strong augmentation of the pseudo-labelled images.

A network learns from labelled images, labels all unlabelled ones once, and a fresh network learns
from both:

    1. theta_1 from labelled images alone
    2. y_u = argmax sum_v softmax(f(x_u; theta_1)_v)    over 5 scales and mirrored, whole images
    3. theta_2, fresh, from both:  L = sum CE / #{y != 255}   one mean over the whole mixed batch

No threshold and no teacher: nothing is left out, and every pixel weighs the same. Strong views are
for unlabelled images alone: colour jitter with hue for 80 %, greyscale 20 %, blur 50 %, and for
50 % a box of noise whose labels are 255.

Cost of a step: 6 for a labelled and an unlabelled batch (3 an image, as supervised); labelling an
image once: 16 forward passes of the whole image.

Reported, unverified (from memory), mIoU of ResNet-101 on VOC augmented 1/16, 1/8, 1/4: 72.9 75.7
76.4. GTA-Seg's tables have no row of ST.

Deviations from the published code, which were chosen here:
- A batch has exactly as many images of each kind as the config says; the code shuffles one list in
  which labelled ids are repeated until they are about half.
- Stages last for shares of the run's steps, whatever the number of labelled images; the code takes
  80 epochs of each stage's own list. The default is VOC's augmented split of 1/8.
- The last step of a stage goes on, not the best one on the validation images (author: as good).
- Fresh networks have the first one's drawn weights, and its pretrained ones.
- A pretrained crop's geometry, padding and BatchNorm over all images are the config's; the code has
  statistics of 8 images, and dropout of 0.5 behind ASPP.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from gta_jax.data.pseudo_masks import PseudoMaskReader, with_pseudo_masks
from gta_jax.data.sources import Dataset
from gta_jax.data.stage_files import StageFiles
from gta_jax.methods import labelling
from gta_jax.methods.contract import Batch, Host, Metrics, Stage, Tools, TrainState, init_state
from gta_jax.methods.gradient_step import gradient_step
from gta_jax.methods.learners import Learners, StrongView
from gta_jax.methods.objectives import (
  Term,
  check_joint,
  labelled_term,
  passes,
  unlabelled_images,
)
from gta_jax.methods.options import choice, number
from gta_jax.methods.pseudo_labelling import kept_metrics
from gta_jax.ops import trees
from gta_jax.ops.joining import join
from gta_jax.ops.losses import IGNORE
from gta_jax.ops.mixing import paste, unimatch_boxes
from gta_jax.ops.network import Array, Logits, Variables
from gta_jax.ops.optim import Optimizer

LABELLED, PSEUDO, STUDENT = 'labelled', 'pseudo', 'student'
STREAMS = ('labelled', 'pseudo_labelled')


@dataclasses.dataclass(frozen=True)
class SelfTraining(StrongView, Learners):
  """Options."""

  summary: ClassVar[str] = 'labels all unlabelled images once, and begins again with them'
  paper: ClassVar[str] = ('Yang, Zhuo, Qi, Shi, Gao, ST++: Make Self-training Work Better for '
                          'Semi-supervised Semantic Segmentation, CVPR 2022')
  scored: ClassVar[tuple[str, ...]] = (STUDENT,)
  published: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # below

  # Steps of the supervised stage, a share of all; the rest is the last stage's.
  supervised_share: float = number(0.066, least=1e-4, most=0.9)
  # How images are labelled: 5 scales, each also mirrored; or once as they are, for a 16th of it.
  labelling: str = choice('multiscale', *labelling.PROTOCOLS)

  # Strong augmentation of the pseudo-labelled images.
  cutout: float = number(0.5, most=1)  # probability of a box of noise for an image

  @property
  def cost(self) -> float:
    return 6

  @property
  def kept(self) -> tuple[str, ...]:
    """Networks that nothing learns in: checkpoints of the student."""
    return ()

  def check(self, tools: Tools) -> tuple[str, ...]:
    """See Method."""
    labelling.refuse_ohem(tools, 'self-training')
    check_joint(tools, 'self-training')
    tools.accumulation.count(tools.labelled_batch + tools.unlabelled_batch)  # or raises
    return ()

  def init(self, key: Array, draw: Callable[..., Variables], tools: Tools) -> TrainState:
    """See Method. The first variables stay in the memory: a fresh network needs no file."""
    one = draw()
    return init_state(
      key, dict.fromkeys((STUDENT, *self.kept), one), {STUDENT: tools.make_optimizer()},
      memory={'initial': one})

  def stages(self, tools: Tools) -> tuple[Stage, ...]:
    """See Method."""
    steps = labelling.divide(tools, {'supervised': self.supervised_share, 'all': 1})
    first = steps['supervised']

    def prepare(host: Host, state: TrainState | None) -> None:
      self.label(host, state, files(host))

    def files(host: Host) -> StageFiles:
      return labelling.stage_files(host, 'all', host.dataset.unlabelled, labelling.MASKS)

    return (
      self.supervised_stage(tools, 'supervised', first, self.supervised_step(tools, first)),
      self.mixed_stage(tools, 'all', first, steps['all'], prepare,
                       lambda host: pseudo_labelled(host, files(host))))

  def label(self, host: Host, state: TrainState | None, files: StageFiles) -> None:
    """The student's labels of the files' images, made or checked."""
    if state is None:
      files.check()
    else:
      protocol = labelling.PROTOCOLS[self.labelling]
      labelling.write_labels(host, files, state.networks[STUDENT], protocol)

  def supervised_stage(self, tools: Tools, name: str, steps: int, step: Callable) -> Stage:
    """Labelled images alone, as many as the mixed batch has of both kinds."""
    batch = tools.labelled_batch + tools.unlabelled_batch
    return Stage(name, steps, step, sizes={'labelled': batch})

  def mixed_stage(
    self, tools: Tools, name: str, first_step: int, steps: int, prepare: Callable,
    dataset: Callable[[Host], Dataset],
  ) -> Stage:
    """A fresh network learns from labelled and pseudo-labelled images."""
    optimizer = tools.make_optimizer(first_step=first_step, steps=steps)
    return Stage(name, steps, self.mixed_step(tools, optimizer), STREAMS, restart(tools),
                 prepare, dataset)

  def supervised_step(self, tools: Tools, steps: int) -> Callable:
    """The step of the first stage, which lasts for so many steps."""
    optimizer = tools.make_optimizer(steps=steps)

    def step(state: TrainState, batches: dict[str, Batch]) -> tuple[TrainState, Metrics]:
      terms = {LABELLED: labelled_term(tools, batches['labelled'])}
      objectives = passes(tools, terms, (LABELLED,), joint=False, key=state.step_key())
      state, metrics = gradient_step(tools, state, STUDENT, optimizer, *objectives)
      return state.replace(step=state.step + 1), metrics

    return step

  def mixed_step(self, tools: Tools, optimizer: Optimizer) -> Callable:
    """The step of a stage with pseudo-labels: one batch of both kinds, one mean over its pixels."""

    def step(state: TrainState, batches: dict[str, Batch]) -> tuple[TrainState, Metrics]:
      key_view, key_pass = jax.random.split(state.step_key())
      labels = batches['labelled']['label'].astype(jnp.int32)
      images, pseudo = self.strong_view(tools, batches['pseudo_labelled'], key_view)
      divisor = tools.loss.divisor(join(labels, pseudo))

      def loss(logits: Logits, targets: Array) -> Array:
        return tools.loss(logits, targets, divisor=divisor)

      clean = tools.network.normalize(batches['labelled']['image'])
      terms = {LABELLED: Term(clean, labels, loss), PSEUDO: Term(images, pseudo, loss)}
      objectives = passes(tools, terms, tuple(terms), joint=True, key=key_pass)
      state, metrics = gradient_step(tools, state, STUDENT, optimizer, *objectives)
      metrics |= kept_metrics(pseudo, tools.num_classes)
      return state.replace(step=state.step + 1), metrics

    return step

  def strong_view(self, tools: Tools, batch: Batch, key: Array) -> tuple[Array, Array]:
    """Augmented images [B,H,W,3] and labels [B,H,W] int32, 255 on padding and in boxes of noise."""
    images, labels = blank_padding(tools, batch)
    key_colour, key_box, key_noise = jax.random.split(key, 3)
    images = self.strong_colours(key_colour, images, tools.network)
    images = jnp.where(batch['valid'][..., None], images, 0.0)  # The colours have filled padding.
    if not self.cutout:
      return images, labels
    box = unimatch_boxes(key_box, len(images), images.shape[1:3], probability=self.cutout)
    noise = 255 * jax.random.uniform(key_noise, images.shape)
    return paste(images, tools.network.normalize(noise), box), paste(labels, IGNORE, box)


def restart(tools: Tools) -> Callable[[TrainState], TrainState]:
  """A state with the first variables and a new optimiser in the student's place."""
  def enter(state: TrainState) -> TrainState:
    fresh = trees.copy(state.memory['initial'])
    optimizer = tools.make_optimizer().init(fresh['params'])
    return state.with_networks(student=fresh).replace(optimizers={STUDENT: optimizer})

  return enter


def pseudo_labelled(host: Host, *files: StageFiles) -> Dataset:
  """The run's data set whose unlabelled images are those of the files, with their masks."""
  paths = {id: str(of.path(labelling.MASKS, id)) for of in files for id in of.ids}
  ids = [id for id in host.dataset.unlabelled if id in paths]  # In the order of the list.
  reader = PseudoMaskReader(host.dataset.reader, {id: paths[id] for id in ids})
  return with_pseudo_masks(host.dataset, reader)


def blank_padding(tools: Tools, batch: Batch) -> tuple[Array, Array]:
  """Normalised images, 0 on padding, and labels int32, 255 there, of pseudo-labelled images."""
  labels = jnp.where(batch['valid'], batch['label'].astype(jnp.int32), IGNORE)
  return unlabelled_images(tools, batch), labels


# 16 images a step in every stage, as published; the rates are those of a mean over all 16, whatever
# the number of GPUs. Epochs are passes over the unlabelled images, of which 8 are in a batch: VOC's
# 80 and Cityscapes' 240 are those of the last stage, the others come on top. VOC's long side is 0.5
# to 2 times 400 pixels, of the images' 500.
_COMMON = {
  'optim.decoder_multiplier': 10.0, 'optim.weight_decay': 1e-4, 'train.labelled_batch': 8,
  'train.unlabelled_batch': 8, 'loss.ohem_threshold': None, 'model.auxiliary': False,
  'model.multi_grid': (), 'evaluate.protocols': ('whole',)}
VOC = {**_COMMON, 'optim.rate': 0.001, 'data.crop': 321, 'data.scale': (0.4, 1.6)}
CITYSCAPES = {**_COMMON, 'optim.rate': 0.004, 'data.crop': 721}
SelfTraining.published = {'voc': {**VOC, 'train.epochs': 86},
                          'cityscapes': {**CITYSCAPES, 'train.epochs': 257}}
