"""A folder of eight small images, and its parts."""

import numpy as np
from PIL import Image

CLASSES = 'road 128 64 128\ntraffic light\ncar 64 0 128\n'


def jpeg(path, size=(12, 16), colour=(200, 30, 60)):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', size[::-1], colour).save(path, quality=95)


def mask(path, ids, size=(12, 16), palette=False):
  path.parent.mkdir(parents=True, exist_ok=True)
  array = np.resize(np.array(ids, np.uint8), size)
  image = Image.fromarray(array)
  if palette:
    image.putpalette([7] * 768)  # One colour for all: only indices can tell the classes apart.
  image.save(path)


def write_list(root, name, ids, end='\n'):
  path = root / 'splits' / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(end.join(ids).encode())
