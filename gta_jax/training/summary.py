"""What a run is about to do, as the console shows it before the first step."""

from pathlib import Path

import jax

from gta_jax.training.setup import Run


def device_line() -> str:
  """The devices of all processes, by kind."""
  kinds = sorted({device.device_kind for device in jax.devices()})
  return f'{jax.device_count()} {", ".join(kinds)} (jax {jax.__version__})'


def parameter_counts(run: Run) -> tuple[int, int]:
  """Parameters of one network, and how many of these learn."""
  params = run.abstract_state().networks[run.method.scored[0]]['params']
  sizes = {(key, module): sum(leaf.size for leaf in jax.tree.leaves(tree))
           for key, modules in params.items() for module, tree in modules.items()}
  frozen = sum(size for (key, module), size in sizes.items()
               if key == 'backbone' and module in run.network.frozen)
  return sum(sizes.values()), sum(sizes.values()) - frozen


def summary(run: Run, workdir: Path, *, first_step: int, evaluations: int) -> str:
  """Device, images by role, networks, steps and where results go; a line each.

  How long it takes is not among them: that is said as soon as steps have been measured.

  Args:
    run: to be trained.
    workdir: of its files.
    first_step: the step that it goes on from.
    evaluations: how many are to come.
  """
  data, (parameters, learning) = run.dataset, parameter_counts(run)
  roles = {'labelled': data.labelled, 'unlabelled': data.unlabelled,
           'validation': data.validation, 'test': data.test}
  images = ', '.join(f'{len(ids)} {role}' for role, ids in roles.items() if ids)
  state = run.abstract_state().networks
  sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(state[name]['params']))
           for name in dict.fromkeys([*run.method.scored, *state])}
  # Of another size than those that are scored is a network such as GCT's detector of flaws.
  networks = ', '.join(name if size == parameters else f'{name} ({_millions(size)})'
                       for name, size in sizes.items())
  frozen = f', {_millions(parameters - learning)} of them frozen' if learning < parameters else ''
  stages = ', '.join(f'{stage.name} {stage.steps}' for stage in run.stages if stage.steps)
  going_on = f', goes on from step {first_step}' if first_step else ''
  rows = {
    'device': device_line(),
    'images': f'{images} of {data.name}; {len(data.classes)} classes',
    'networks': f'{networks}; {_millions(parameters)} parameters '
                f'each{frozen}; {run.method.scored[0]} predicts',
    'steps': f'{run.total_steps} ({stages}), evaluations to come: {evaluations}{going_on}; '
             'compiles first, which may take minutes; how long it takes is said after some steps',
    'results': f'{workdir}; watch {workdir / "report.html"}, or tensorboard --logdir {workdir}'}
  return '\n'.join(f'{name:<10}{value}' for name, value in rows.items())


def _millions(count: int) -> str:
  return f'{count / 1e6:.3g} million' if count >= 1e5 else str(count)
