"""CutMix-Seg on the linear model: the rows CutMix of GTA-Seg's tables.

Sheet A, section 5, "CutMix" under the other methods of PixelSSL, the one description at hand:
  p_0, p_1 = sg softmax f_t(u0), f_t(u1); u_mix and p_mix: inside the box from u1, outside from u0
  conf = share of pixels whose teacher maximum exceeds .97, one number for the batch
  L = CE(f_s(x_l), y) + w conf mean over pixels and classes of (softmax f_s(u_mix) - p_mix)^2
  w = 20, no ramp; SGD of the student; then the EMA, min(1 - 1/(k+1), .99) as in its MT

Options; the first is the default here:
  hyper['confidence_on']: 'mixed' (the pixels of p_mix) or 'all' (the pixels of p_0 and p_1); the
    sheet does not say which.
  hyper['reduction']: 'mean' over classes, or 'sum' over classes (the paper's squared distance of
    probability vectors, with w = 1 as remembered).
  hyper['consistency_weight'], hyper['ema_decay']: functions of the step;
    mean_teacher_consistency.ramped makes the ramp.
Padding counts neither in the mean nor in conf: conf is a share of valid pixels.
"""

from tests.oracles.linear_model import (
  average,
  following,
  forward,
  learn,
  mean_weights,
  mix,
  mix_batch,
  pixels,
  softmax,
)
from tests.oracles.mean_teacher_consistency import objective


def confidence(probabilities, valid, threshold):
  """The share of valid pixels whose largest probability exceeds the threshold; 0 if none is."""
  sure = (probabilities.max(-1) > threshold) & valid
  return sure.sum() / max(valid.sum(), 1)


def step(state, labelled, unlabelled, *, inside, partner=None, hyper):
  """One step.

  Args:
    state: networks 'student' and 'teacher', momentum of 'student'.
    unlabelled: u0; partner: u1, by default image i + 1 of u0, cyclically.
    inside: [B,H,W] bool, true where the mixed image shows u1.
    hyper: 'threshold' as well, .97.
  Returns: the next state; losses {'labelled', 'consistency' (without w and conf), 'confidence',
    'total'} before the update.
  """
  partner = following(unlabelled) if partner is None else partner
  student, teacher = (state['networks'][name] for name in ('student', 'teacher'))
  maps = [softmax(forward(teacher, pixels(batch))['logits']).reshape(*inside.shape, -1)
          for batch in (unlabelled, partner)]
  mixed, target = mix_batch(unlabelled, partner, inside), mix(maps[0], maps[1], inside)
  if hyper.get('confidence_on', 'mixed') == 'mixed':
    share = confidence(target, mixed['valid'], hyper['threshold'])
  else:
    counts = [batch['valid'].sum() for batch in (unlabelled, partner)]
    sure = [confidence(p, batch['valid'], hyper['threshold']) * count for p, batch, count in
            zip(maps, (unlabelled, partner), counts, strict=True)]
    share = sum(sure) / max(sum(counts), 1)
  classes = target.shape[-1]
  weight = mean_weights(mixed['valid'].reshape(-1))
  if hyper.get('reduction', 'mean') == 'sum':
    weight = weight * classes
  factor = hyper['consistency_weight'](state['step']) * share
  losses, gradient = objective(
    student, labelled, pixels(mixed), target.reshape(-1, classes), weight, factor)
  decay = hyper['ema_decay'](state['step'])
  state = learn(state, {'student': gradient}, hyper)
  teacher = average(teacher, state['networks']['student'], decay)
  networks = {**state['networks'], 'teacher': teacher}
  return {**state, 'networks': networks}, {**losses, 'confidence': share}
