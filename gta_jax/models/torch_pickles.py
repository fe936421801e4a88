"""The pickles inside torch's files, interpreted: tensors, containers, numbers and text.

Not Python's own unpickler with a list of allowed names: in 3.11 a tuple in a tuple, a million times
over, as a dict's key crashes it, eight bytes make its memo ask for 32 GB, and it sets attributes of
what it has built. Here nothing is imported, nothing is called but the functions of
torch_objects.GLOBALS, and nothing recurses. The opcodes are those that torch.save writes, with
Python 2 and with pickle protocol 4 too.
"""

import collections
import io
import itertools
import mmap
import pickletools
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, cast

import numpy as np

from gta_jax.models.torch_objects import (
  GLOBALS,
  SAVE_AGAIN,
  Function,
  Refusal,
  Storage,
  StorageClass,
  Tensors,
  checked_key,
  damaged,
)

# A tensor takes some 40 of them; the most wasteful makes 200 bytes in memory.
_MOST_OPCODES = 2**22


class Interpreter:
  """Evaluates one pickle.

      content = Interpreter(tensors, read_storage).run(file)

  Args:
    tensors: makes the tensors.
    read_storage: (key, size in bytes, size of an element), as the pickle claims them, to the
      storage's bytes, uint8 [size in bytes].
  """

  def __init__(self, tensors: Tensors, read_storage: Callable[[str, int, int], np.ndarray]):
    self._tensors = tensors
    self._read_storage = read_storage
    self._stack: list[Any] = []
    self._below: list[list[Any]] = []  # the stack under each mark
    self._memo: dict[int, Any] = {}

  def run(self, file: io.BytesIO | mmap.mmap) -> Any:
    """The object whose pickle begins where the file stands; the file then stands behind it.

    The file is one whose `read` allocates no more than it has, whatever a pickle claims. The object
    may be nested as deep as the pickle is long, and may hold itself.

    Raises: Refusal; and whatever read_storage does.
    """
    for name, argument in itertools.islice(_opcodes(file), _MOST_OPCODES):
      if name == 'STOP':
        return self._pop()
      if name not in _ACTIONS:
        raise Refusal(f'holds the pickle opcode {name}, which torch.save does not write; '
                      f'{SAVE_AGAIN}.')
      _ACTIONS[name](self, argument)
    raise Refusal(f'takes more than {_MOST_OPCODES} pickle opcodes; {SAVE_AGAIN}.')

  def _push(self, value: Any) -> None:
    self._stack.append(value)

  def _push_text_of_python2(self, text: str) -> None:
    try:  # pickletools takes it for Latin-1, torch for UTF-8
      self._push(text.encode('latin-1').decode())
    except UnicodeError:
      damaged('holds text that is no UTF-8')

  def _pop(self) -> Any:
    return self._stack.pop() if self._stack else damaged('takes from an empty stack')

  def _top(self, *kinds: type) -> Any:
    if not (self._stack and isinstance(self._stack[-1], kinds)):
      damaged(f'lacks a {kinds[0].__name__} to work on')
    return self._stack[-1]

  def _mark(self, _: None) -> None:
    self._below.append(self._stack)
    self._stack = []

  def _pop_to_mark(self) -> list[Any]:
    items, self._stack = self._stack, self._below.pop() if self._below else damaged('lacks a mark')
    return items

  def _push_tuple(self, length: int) -> None:
    self._push(tuple([self._pop() for _ in range(length)][::-1]))

  def _append(self, items: Iterable[Any]) -> None:
    self._top(list).extend(items)

  def _add(self, items: Iterable[Any]) -> None:
    self._top(set).update(map(checked_key, items))

  def _set_items(self, items: list[Any]) -> None:
    into = self._top(dict)
    if len(items) % 2:
      damaged('holds a key without a value')
    into.update((checked_key(key), value) for key, value in zip(items[::2], items[1::2]))  # noqa: B905

  def _remember(self, index: int | None) -> None:
    self._memo[len(self._memo) if index is None else index] = self._top(object)

  def _recall(self, index: int) -> None:
    if index not in self._memo:
      damaged(f'recalls object {index}, which it has not stored')
    self._push(self._memo[index])

  def _find(self, module: str, name: str) -> None:
    found = f'{"builtins" if module == "__builtin__" else module}.{name}'
    if found not in GLOBALS:
      raise Refusal(f'holds {ascii(found)[1:-1][:100]}, which is no tensor, container, number or '
                    f'text; where you trust it, {SAVE_AGAIN}.')
    self._push(GLOBALS[found])

  def _find_on_stack(self, _: None) -> None:
    _, name = self._top(str), self._pop()
    _, module = self._top(str), self._pop()
    self._find(module, name)

  def _call(self, _: None) -> None:
    _, arguments = self._top(tuple), self._pop()
    _, function = self._top(Function), self._pop()
    try:
      self._push(function.call(self._tensors, *arguments))
    except (AttributeError, TypeError, ValueError) as error:
      damaged(f'calls a function with wrong arguments ({str(error)[:100]})')

  def _build(self, _: None) -> None:
    """Leaves a dict's attributes out (`_metadata`); checks the byte order of a number."""
    state, target = self._pop(), self._top(collections.OrderedDict, np.dtype)
    if isinstance(target, np.dtype) and not (
        isinstance(state, tuple) and len(state) > 1 and state[1] in ('<', '|')):
      raise Refusal(f'holds a NumPy number that is not little-endian; {SAVE_AGAIN}.')

  def _load_storage(self, _: None) -> None:
    match self._pop():
      case ('storage', StorageClass(dtype), str(key), str(), int(count), *view) if count >= 0:
        if any(part is not None for part in view):
          raise Refusal(f'holds a view of a storage, as torch before 0.4 wrote; {SAVE_AGAIN}.')
        raw = self._read_storage(key, count * dtype.itemsize, dtype.itemsize)
        self._push(Storage(raw, dtype))
      case _:
        damaged('refers to something that is no storage')


def _opcodes(file: io.BytesIO | mmap.mmap) -> Iterator[tuple[str, Any]]:
  try:
    for opcode, argument, _ in pickletools.genops(cast(IO[bytes], file)):
      yield opcode.name, argument
  except ValueError as error:
    damaged(f'is cut or overwritten ({str(error)[:100]})')


_ACTIONS: dict[str, Callable[[Interpreter, Any], None]] = {
  **dict.fromkeys(('PROTO', 'FRAME'), lambda it, _: None),
  **dict.fromkeys(('BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'BINUNICODE',
                   'SHORT_BINUNICODE', 'BINBYTES', 'SHORT_BINBYTES'), Interpreter._push),
  **dict.fromkeys(('BINSTRING', 'SHORT_BINSTRING'), Interpreter._push_text_of_python2),
  'NONE': lambda it, _: it._push(None),
  'NEWTRUE': lambda it, _: it._push(True),
  'NEWFALSE': lambda it, _: it._push(False),
  'EMPTY_TUPLE': lambda it, _: it._push(()),
  'EMPTY_LIST': lambda it, _: it._push([]),
  'EMPTY_DICT': lambda it, _: it._push({}),
  'EMPTY_SET': lambda it, _: it._push(set()),
  'MARK': Interpreter._mark,
  'TUPLE': lambda it, _: it._push(tuple(it._pop_to_mark())),
  'TUPLE1': lambda it, _: it._push_tuple(1),
  'TUPLE2': lambda it, _: it._push_tuple(2),
  'TUPLE3': lambda it, _: it._push_tuple(3),
  'APPEND': lambda it, _: it._append([it._pop()]),
  'APPENDS': lambda it, _: it._append(it._pop_to_mark()),
  'ADDITEMS': lambda it, _: it._add(it._pop_to_mark()),
  'SETITEM': lambda it, _: it._set_items([it._pop(), it._pop()][::-1]),
  'SETITEMS': lambda it, _: it._set_items(it._pop_to_mark()),
  **dict.fromkeys(('BINPUT', 'LONG_BINPUT', 'MEMOIZE'), Interpreter._remember),
  **dict.fromkeys(('BINGET', 'LONG_BINGET'), Interpreter._recall),
  'GLOBAL': lambda it, names: it._find(*names.split(' ', 1)),
  'STACK_GLOBAL': Interpreter._find_on_stack,
  'REDUCE': Interpreter._call,
  'BUILD': Interpreter._build,
  'BINPERSID': Interpreter._load_storage,
}
