"""One training step of each method in NumPy, written from its published description alone.

"Sheet A" in docstrings is the specification of CPS, U2PL, ST++, CCT, GCT and DMT that was drawn up
from the papers and the official code; its step numbers are repeated where they are implemented.
"""
