"""PseudoSeg (Zou et al., ICLR 2021): soft labels fused from a decoder and a class activation map.

One network, one stage. A weak view of an unlabelled image is labelled twice: by the decoder, and by
Grad-CAM of an image classifier on the backbone, refined by attention. Both are brought to one
scale, averaged and sharpened; the strong view learns the result on every pixel, without a
threshold.

    1. z_w = decoder(w), batch statistics of w. From the backbone with running statistics: image
       classes t = [classifier >= 0], M = Grad-CAM of them, z_a = attention(M).
    2. r = sqrt(mean of squares of z_w, z_a);  q = (softmax(z_w/r) + softmax(z_a/r)) / 2, then
       q^(1/T) / sum q^(1/T), T = 0.5.
    3. s = jitter of w, a square cut out;  L_u = mean of CE(q, decoder(s)), at the decoder's size.
    4. On labelled images: L_x = CE; L_cls = binary CE of the classes that the mask holds; L_att =
       CE of attention on Grad-CAM of these classes, which moves the attention alone.
    5. L = L_x + L_u + L_cls + L_att. Biases have twice the gradient; the attention does not decay.

Class 0 is taken for background, which has neither image label nor activation map.

Cost 8 forward-equivalents of B images: w 1, the backbone's on w 1, s 3, labelled 3.

Reported mIoU: VOC 57.60 65.50 69.14 72.41 73.23 on lists of 92 to 1464 images, as GTA-Seg's Table 1
has them. COCO 1/512 to 1/32, Xception-65: 29.8 37.1 39.1 41.8 43.6, as cited by UniMatch.

Not as in the authors' code (TF1), which this follows, as the paper was not at hand:
  - Labelled images pass through the backbone once, not twice: the second pass gives the same
    features, and moved the running statistics once more. Cost 8 in the place of 11.
  - Scale r, batch statistics and the attention's norm are those of the whole batch on all devices,
    not of 4 images; of a pass, where batches are cut.
  - Padding of unlabelled images counts nowhere, neither in pools, maxima, norm nor r; the code
    leaves it out of losses and attention alone. It cannot be told from void on labelled images.
  - Contrast and saturation of the jitter are torchvision's, around the mean grey; flips come first.
  - Running statistics move by 0.1 a step, not 0.0003; the decoder is the project's.
Unverified: the backbone of the reported VOC row (the code's README trains Xception-65, GTA-Seg's
caption says ResNet-101); the paper's norm, remembered as without the mean (calibration='sum');
whether the paper's attention adds M and normalises (version 'v2', the code's default) or not ('v1',
whose background channel is taken as 1 - max N); which biases have twice the gradient (here those
beside a kernel); whether gradients of 16 replicas are averaged, as taken here, or summed.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from gta_jax.methods.accumulation import mean, over_micro_batches
from gta_jax.methods.contract import Batch, Metrics, Tools, TrainState
from gta_jax.methods.gradient_step import Objective, Outcome, Slope, descend, in_turn
from gta_jax.methods.learners import Learners
from gta_jax.methods.objectives import labelled_term, unlabelled_images
from gta_jax.methods.options import choice, number
from gta_jax.methods.pseudo_labelling import kept_metrics, oracle_metrics
from gta_jax.methods.supervised import LABELLED
from gta_jax.models.cam_attention import (
  AttentionInputs,
  CamAttention,
  ImageClassifier,
  columns_of,
)
from gta_jax.models.heads import MakeHead
from gta_jax.ops import grad_cam
from gta_jax.ops.losses import IGNORE, cross_entropy, mean_divisor
from gta_jax.ops.mixing import squares
from gta_jax.ops.network import Array, Params, Stages, Variables, with_statistics
from gta_jax.ops.optim import Optimizer
from gta_jax.ops.photometric import augment
from gta_jax.ops.resizing import resize_bilinear

MODEL, CLASSIFIER, ATTENTION = 'model', 'image_classifier', 'attention'
PSEUDO = 'pseudo'


@dataclasses.dataclass(frozen=True)
class PseudoSeg(Learners):
  """Options; the defaults are those of the authors' code."""

  summary: ClassVar[str] = 'soft labels fused from decoder and refined class activation maps'
  paper: ClassVar[str] = ('Zou et al., PseudoSeg: Designing Pseudo Labels for Semantic '
                          'Segmentation, ICLR 2021')
  # 30,000 steps of 64 + 64 images; the code's unlabelled list holds the labelled images too.
  published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
    'voc': {'data.crop': 513, 'model.output_stride': 16, 'model.multi_grid': (),
            'model.aspp_rates': (6, 12, 18), 'optim.rate': 0.007, 'optim.decoder_multiplier': 1.0,
            'optim.weight_decay': 1e-4, 'optim.decay': 'kernels', 'train.labelled_batch': 64,
            'train.unlabelled_batch': 64, 'train.epochs': 185}}

  # The labels.
  version: str = choice('v2', 'v2', 'v1')  # attention with M added and a norm, or neither
  calibration: str = choice('mean', *grad_cam.CALIBRATIONS)  # of the squares that make r
  temperature: float = number(0.5, least=1e-3)  # T of the sharpening; 1 leaves it out

  # The strong view.
  jitter: float = number(1.0, most=1)  # probability of colour jitter for an image
  cutout: float = number(100 / 513, most=1)  # side of the square, as a share of the crop's

  # The losses.
  pseudo_weight: float = number(1.0)  # of L_u
  classification_weight: float = number(1.0)  # of L_cls
  attention_weight: float = number(1.0)  # of L_att
  image_dropout: float = number(0.5, most=0.99)  # of the image classifier's inputs
  bias_multiplier: float = number(2.0)  # on the gradient of biases

  @property
  def heads(self) -> Mapping[str, MakeHead]:
    both = self.version == 'v2'
    return {CLASSIFIER: ImageClassifier,
            ATTENTION: functools.partial(CamAttention, residual=both, norm=both)}

  @property
  def cost(self) -> float:
    return 8

  def check(self, tools: Tools) -> tuple[str, ...]:
    """See Method."""
    if tools.num_classes < 2:
      raise ValueError(f'{tools.num_classes} class is background alone to PseudoSeg, whose image '
                       'classifier knows the others; use 2 or more classes.')
    return ('class 0 is taken for the background, of which there is no activation map',)

  def optimizers(self, tools: Tools) -> dict[str, Optimizer]:
    """The config's; it spares the attention from weight decay."""
    return {MODEL: tools.make_optimizer(undecayed=(ATTENTION,))}

  def step(self, tools: Tools) -> Callable:
    """The only step."""
    optimizer = self.optimizers(tools)[MODEL]

    def step(state: TrainState, batches: dict[str, Batch]) -> tuple[TrainState, Metrics]:
      keys = jax.random.split(state.step_key(), 4)
      unlabelled, valid = batches['unlabelled'], batches['unlabelled']['valid']
      variables = state.networks[MODEL]
      images = unlabelled_images(tools, unlabelled)
      soft, stats = self.label(tools, variables, images, valid, keys[0])
      strong, seen = self.strong_view(tools, images, valid, keys[1])
      metrics = _label_metrics(soft, grad_cam.nearest(seen, soft.shape[1:3]))
      if 'label' in unlabelled:
        labels = jnp.argmax(resize_bilinear(soft, valid.shape[1:3]), axis=-1)
        metrics |= oracle_metrics(jnp.where(valid, labels, IGNORE), unlabelled, tools.num_classes)

      slopes = [_scale_biases(each, self.bias_multiplier) for each in in_turn(
        tools, with_statistics(variables, stats),
        (self.pseudo_objective(tools, strong, seen, soft, keys[2]),
         self.labelled_objective(tools, batches[LABELLED], keys[3])))]
      state, learnt = descend(state, MODEL, optimizer, *slopes)
      return state.replace(step=state.step + 1), metrics | learnt

    return step

  def label(
    self, tools: Tools, variables: Variables, images: Array, valid: Array, key: Array
  ) -> tuple[Array, Params]:
    """Soft labels of the weak view at the decoder's size (1, 2), and the statistics afterwards."""
    network, kernel = tools.network, variables['params'][CLASSIFIER]['kernel']

    def of_part(parts: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], Params]:
      images, valid = parts
      logits, stats = network.apply(variables, images, train=True, dropout_key=key)
      stages, _ = network.encode(variables, images)
      counted = grad_cam.nearest(valid, stages[-1].shape[1:3])
      classes, _ = network.head(
        variables, CLASSIFIER, grad_cam.masked_mean(stages[-1], counted))
      cam = grad_cam.grad_cam(stages[-1], kernel, classes >= 0, counted)
      refined = self.attend(tools, variables, stages, cam, counted)
      return (logits.main, resize_bilinear(refined, logits.main.shape[1:3])), stats

    (of_decoder, of_attention), stats, count = over_micro_batches(
      of_part, (images, valid), tools.accumulation, key=key)
    soft = grad_cam.calibrated_fusion(
      of_decoder, of_attention, grad_cam.nearest(valid, of_decoder.shape[1:3]),
      temperature=self.temperature, calibration=self.calibration)
    return soft, mean(stats, count)

  def attend(
    self, tools: Tools, variables: Variables, stages: Stages, cam: Array, valid: Array
  ) -> Array:
    """z_a [B,h,w,K] at the last stage's size; no gradient passes to the backbone."""
    columns = jax.lax.stop_gradient(columns_of(stages))
    inputs = AttentionInputs(columns, cam, valid)
    return tools.network.head(variables, ATTENTION, inputs, train=True)[0]

  def strong_view(
    self, tools: Tools, images: Array, valid: Array, key: Array
  ) -> tuple[Array, Array]:
    """The strong view (3), and which of its pixels are learnt; the others are blank."""
    key_colour, key_square = jax.random.split(key)
    batch, height, width = valid.shape
    strong = augment(key_colour, images, tools.network, jitter=self.jitter, greyscale=0.0,
                     blur=0.0, hue=0.25, brightness='offset')
    side = round(self.cutout * height)
    seen = valid & ~squares(key_square, batch, (height, width), side=side)
    return jnp.where(seen[..., None], strong, 0.0), seen

  def pseudo_objective(
    self, tools: Tools, strong: Array, seen: Array, soft: Array, key: Array
  ) -> Objective:
    """L_u (3)."""
    seen = grad_cam.nearest(seen, soft.shape[1:3])
    divisor = jnp.maximum(jnp.sum(seen), 1)

    def loss(variables: Variables, batch: Any, key: Array) -> Outcome:
      strong, seen, soft = batch
      logits, stats = tools.network.apply(variables, strong, train=True, dropout_key=key)
      losses = optax.losses.softmax_cross_entropy(logits.main, soft)
      total = jnp.sum(jnp.where(seen, losses, 0.0)) / divisor
      return Outcome({PSEUDO: self.pseudo_weight * total}, stats)

    return Objective(loss, (strong, seen, soft), key)

  def labelled_objective(self, tools: Tools, labelled: Batch, key: Array) -> Objective:
    """L_x, L_cls and L_att (4) of one pass."""
    network, term = tools.network, labelled_term(tools, labelled)
    labels = labelled['label'].astype(jnp.int32)
    present = jnp.any(labels[..., None] == jnp.arange(1, tools.num_classes), axis=(1, 2))
    divisor, entries = mean_divisor(labels), present.size

    def loss(variables: Variables, batch: Any, key: Array) -> Outcome:
      images, labels, present = batch
      stages, stats = network.encode(variables, images, train=True, dropout_key=key)
      decoded, stats = network.decode(
        with_statistics(variables, stats), stages, train=True, dropout_key=key)
      everywhere = jnp.ones(stages[-1].shape[:3], bool)
      pooled = grad_cam.masked_mean(stages[-1], everywhere)
      kept = image_dropout(key, pooled.shape, self.image_dropout)
      classes, _ = network.head(variables, CLASSIFIER, pooled * kept, train=True)
      of_classes = jnp.sum(optax.losses.sigmoid_binary_cross_entropy(
        classes, present.astype(jnp.float32)))

      kernel = kept[..., None] * variables['params'][CLASSIFIER]['kernel']
      cam = grad_cam.grad_cam(stages[-1], kernel, present, everywhere)
      refined = self.attend(tools, variables, stages, cam, everywhere)
      refined = resize_bilinear(refined, decoded.logits.main.shape[1:3])
      of_attention = cross_entropy(
        resize_bilinear(refined, labels.shape[1:3]), labels, divisor=divisor)
      return Outcome({
        LABELLED: term.sole_loss(decoded.logits, labels),
        'classification': self.classification_weight * of_classes / entries,
        ATTENTION: self.attention_weight * of_attention,
      }, stats)

    return Objective(loss, (term.images, labels, present), key)


def image_dropout(key: Array, shape: tuple[int, ...], rate: float) -> Array:
  """Factors 0 and 1 / (1 - rate) for the image classifier's inputs."""
  kept = jax.random.bernoulli(jax.random.fold_in(key, 1), 1 - rate, shape)
  return kept / (1 - rate)


def _label_metrics(soft: Array, seen: Array) -> Metrics:
  """How sure the labels are, and what they say, on the pixels that are learnt."""
  labels = jnp.where(seen, jnp.argmax(soft, axis=-1), IGNORE)
  confidence = jnp.sum(jnp.where(seen, jnp.max(soft, axis=-1), 0.0))
  return {'confidence': confidence / jnp.maximum(jnp.sum(seen), 1),
          **kept_metrics(labels, soft.shape[-1])}


def _scale_biases(of: Slope, factor: float) -> Slope:
  """The slope with a factor on the gradient of every bias beside a kernel."""
  def scaled(tree: Any) -> Any:
    if not isinstance(tree, Mapping):
      return tree
    return {name: factor * leaf if name == 'bias' and 'kernel' in tree else scaled(leaf)
            for name, leaf in tree.items()}

  return of._replace(gradient=scaled(of.gradient))
