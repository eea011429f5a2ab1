"""Reading a tree of token sequences: every token is read once, whatever branches off behind it.

- `reader`: `TreeReader`, for searches;
- `nodes`: which nodes there are, and where what was read of them is kept;
- `keys`: keys and values of transformers, one slot a token;
- `others`: states of recurrent networks, and models that keep nothing known.
"""

from alignkit.models.tree.nodes import Nodes
from alignkit.models.tree.reader import TreeReader

__all__ = ["Nodes", "TreeReader"]
