"""Models: loaded from a name, a directory or the Hub, and told apart by a fingerprint.

`model` says what the package asks of a model (a protocol), `embedded` finds the small ones that come with the
package, `pinned` the real ones in the cache, which `fetch` brings, and `gguf` converts files. `load` uses them;
it alone imports TransformerLens. `bos` says whether prompts begin with BOS. `fingerprint` tells models and vocabularies
apart. `calls` is around public functions that run a model, and sets torch's ambient settings aside; `locks`
lets threads take turns on a model. Begin with `load.load_model`.
"""
