"""DINOv2's weights in the layouts of transformers and timm, with the published code's names."""

import functools
import re

import numpy as np

State = dict[str, np.ndarray]

# transformers' names, before and from its version 5, and the published code's.
_RENAMED = (
  (r'^(dinov2|dinov2_with_registers)\.', ''),
  (r'^embeddings\.position_embeddings$', 'pos_embed'),
  (r'^embeddings\.patch_embeddings\.projection\.', 'patch_embed.proj.'),
  (r'^embeddings\.', ''),
  (r'^encoder\.layer\.', 'blocks.'),
  (r'\.attention\.attention\.(query|key|value)\.', r'.attn.\1.'),
  (r'\.attention\.([qkv])_proj\.', r'.attn.\1.'),
  (r'\.attention\.(output\.dense|o_proj)\.', '.attn.proj.'),
  (r'\.layer_scale([12])\.lambda1$', r'.ls\1.gamma'),
  (r'^layernorm\.', 'norm.'),
)


def published_names(state: State) -> State:
  """A state dict with the published code's names where it has another layout of DINOv2's.

  Transformers keeps query, key and value apart; timm, with registers, has the class token's
  position added to that token. Any other state dict is returned as it is.
  """
  if any(name.endswith('embeddings.patch_embeddings.projection.weight') for name in state):
    return _from_transformers(state)
  if 'reg_token' in state and 'pos_embed' in state:
    return _from_timm(state)
  return state


def _from_transformers(state: State) -> State:
  renamed, parts = {}, {}
  for their_name, value in state.items():
    name = functools.reduce(lambda name, rule: re.sub(*rule, name), _RENAMED, their_name)
    found = re.fullmatch(r'(.*\.attn\.)(query|key|value|[qkv])(\..*)', name)
    if found:
      parts.setdefault(f'{found[1]}qkv{found[3]}', {})[found[2][0]] = value
    else:
      renamed[name] = value
  for name, of in parts.items():
    if set(of) == set('qkv'):  # else it is missing
      renamed[name] = np.concatenate([of[kind] for kind in 'qkv'])
  return renamed


def _from_timm(state: State) -> State:
  state = dict(state)
  state['register_tokens'] = state.pop('reg_token')
  # The sum is what the network reads.
  state['pos_embed'] = np.pad(state['pos_embed'], ((0, 0), (1, 0), (0, 0)))
  return state
