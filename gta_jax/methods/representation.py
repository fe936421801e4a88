"""A pass of a network with an embedding head, for methods that compare features of pixels."""

from gta_jax.ops.network import Array, Logits, Network, Params, Variables, with_statistics

REPRESENTATION = 'representation'  # the head's key


def embed(
  network: Network, variables: Variables, images: Array, *, train: bool = False,
  dropout_key: Array | None = None,
) -> tuple[tuple[Logits, Array], Params]:
  """Network.apply that also runs the head `representation` on the decoder's features.

  Returns: the logits and the embedding [B,h,w,D] at the logits' size; batch_stats.
  """
  mode = {'train': train, 'dropout_key': dropout_key}
  stages, stats = network.encode(variables, images, **mode)
  decoded, stats = network.decode(with_statistics(variables, stats), stages, **mode)
  embedding, stats = network.head(
    with_statistics(variables, stats), REPRESENTATION, decoded.features, **mode)
  return (decoded.logits, embedding), stats
