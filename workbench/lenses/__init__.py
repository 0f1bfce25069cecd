"""What a store says of a model without running it again: lenses, direct attribution, scores of heads.

`unembedding` turns residual vectors into logits, `store_reading` checks stores; both serve the others.
`logit_lens` and `tuned_lens` (trained by `translators` on `stream_rows`) read every layer;
`direct_attribution` (with `frozen_norm` and `stream_writers`) splits a logit into what each component adds;
`head_scores` looks at attention patterns and value vectors.

Begin with `logit_lens.logit_lens`.
"""
