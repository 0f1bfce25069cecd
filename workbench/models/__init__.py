"""Models: loaded from a name, a directory or the Hub, and told apart by a fingerprint.

`model` says what the package asks of a model (a protocol), `embedded` finds the small ones that come with the
package, and `load` uses both; it alone imports TransformerLens. `fingerprint` tells models and vocabularies
apart. Begin with `load.load_model`.
"""
