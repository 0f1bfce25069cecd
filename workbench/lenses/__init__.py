"""What a store says of a model without running it again: lenses, direct attribution, scores of heads.

`unembedding` turns residual vectors into logits and is read by the others; `logit_lens` and `tuned_lens` read
every layer with it; `direct_attribution` (with `frozen_norm`) splits a logit into what each component adds;
`head_scores` looks at attention patterns and value vectors.

Begin with `logit_lens.logit_lens`.
"""
