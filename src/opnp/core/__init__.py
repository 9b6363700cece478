"""Pure tensor arithmetic: the method, equation by equation. No models, no files, no state.

- `sensitivity`: mean absolute gradients of the energy, for the last layer in closed form (step 1)
- `masks`: which weights and neurons stay (step 2)
- `scores`: how much an input looks out of distribution, from logits (step 3)
- `shaping`: ReAct, ASH-S and SCALE on features, before the head
- `conformal`: p-values and verdicts with a guarantee
- `metrics`: what a detector and a classifier are worth
- `moments`: sums over training features that the members of the fusion follow from
- `members`: which scores the fusion is made of, and the formula of each
- `fusion`: scores in units of their tails, and the one score that they make
- `kept_rows`: a sample of a stream that does not depend on its order
- `histogram`: quantiles of a stream
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
